//! The networks in the kernel's own bridges, taps and packet filter: a host, a wire with a DHCP server on it, and
//! guests, each in a network namespace of its own.

mod lab;

use std::net::Ipv4Addr;

use lab::{Lab, RESOLVER_ANSWER};

use super::Place;

const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const WIRE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A machine with one guest called `web`.
fn machine(network: &str, guest: &str) -> String {
    format!(
        "[network]\n{network}\n[[guest]]\nname = \"web\"\nmemory = 64\nkernel = \"k\"\n\
         ready = {{ boot-timer = true }}\n{guest}\n[[guest.publish]]\nport = 8080\nto = 80\n"
    )
}

#[test]
fn bridged_guest_gets_an_address_from_the_wire_and_serves_a_published_port() {
    let Some(mut lab) = Lab::enter("bridged_guest") else {
        return;
    };
    lab.start(&machine("nic = \"up0\"", ""), Place::Rom);
    lab.wait_for_state("192.0.2.10/24 by DHCP, router 192.0.2.1");
    let guest = lab.guest(0);
    // The wire's server knows the host's card first, then the guest's.
    assert_eq!(guest.address(), Ipv4Addr::new(192, 0, 2, 11));
    guest.serve(80, "page of the guest");
    lab.wait_for_address(Ipv4Addr::new(192, 0, 2, 11));
    assert_eq!(lab.ask(HOST, 8080).unwrap(), "page of the guest");
    // As a machine of its own on the wire, too.
    assert_eq!(lab.ask(guest.address(), 80).unwrap(), "page of the guest");
    // From the host's own network stack, and from the guest itself by way of the host.
    assert_eq!(lab::ask(HOST, 8080).unwrap(), "page of the guest");
    assert_eq!(guest.ask(HOST, 8080).unwrap(), "page of the guest");
}

#[test]
fn link_that_is_lost_comes_back_with_the_same_address() {
    let Some(mut lab) = Lab::enter("link_that_is_lost") else {
        return;
    };
    lab.start(&machine("nic = \"up0\"", ""), Place::Rom);
    lab.wait_for_state("up0, 192.0.2.10/24");
    lab.cable(false);
    lab.wait_for_state("up0: no link, 192.0.2.10/24");
    lab.cable(true);
    lab.wait_for_state("up0, 192.0.2.10/24");
    let guest = lab.guest(0);
    guest.serve(80, "still here");
    lab.wait_for_address(guest.address());
    assert_eq!(lab.ask(HOST, 8080).unwrap(), "still here");
}

#[test]
fn guest_behind_the_host_reaches_out_and_is_reached_by_its_port_alone() {
    let Some(mut lab) = Lab::enter("guest_behind") else {
        return;
    };
    lab.start(&machine("mode = \"nat\"\nnic = \"up0\"", ""), Place::Rom);
    lab.wait_for_state("192.0.2.10/24 by DHCP");
    let guest = lab.guest(0);
    let subnet: crate::address::Subnet = "10.214.214.0/24".parse().unwrap();
    assert_eq!(guest.address(), subnet.nth(10).unwrap());
    guest.serve(80, "behind");
    lab.wait_for_address(guest.address());
    assert_eq!(lab.ask(HOST, 8080).unwrap(), "behind");
    // By the host's address inside, from the guest itself: the hairpin.
    assert_eq!(guest.ask(subnet.nth(1).unwrap(), 8080).unwrap(), "behind");
    // Out, in the host's name.
    lab.serve(7, "outside");
    assert_eq!(guest.ask(WIRE, 7).unwrap(), "outside");
    assert_eq!(lab.last_client(), Some(HOST));
    // Names, by the resolver that DHCP named.
    lab.resolver();
    assert_eq!(guest.query(subnet.nth(1).unwrap()), RESOLVER_ANSWER);
    // A stranger who guesses the subnet gets nowhere.
    lab.route(subnet, HOST);
    assert!(lab.ask(guest.address(), 80).is_err());
}

#[test]
fn isolated_guest_has_an_address_and_no_way_out() {
    let Some(mut lab) = Lab::enter("isolated_guest") else {
        return;
    };
    let text = machine("nic = \"up0\"", "network = \"isolated\"");
    lab.start(
        &text.replace("[[guest.publish]]\nport = 8080\nto = 80\n", ""),
        Place::Rom,
    );
    lab.wait_for_state("192.0.2.10/24 by DHCP");
    let guest = lab.guest(0);
    guest.route(HOST);
    lab.serve(7, "outside");
    assert!(guest.ask(WIRE, 7).is_err());
    assert!(guest.ask(HOST, 8080).is_err());
}

#[test]
fn guests_without_any_card_have_a_network_among_themselves() {
    let Some(mut lab) = Lab::enter("guests_without") else {
        return;
    };
    let second = "[[guest]]\nname = \"second\"\nmemory = 64\nkernel = \"k\"\nready = { boot-timer = true }\n";
    let text = machine("nic = \"absent0\"", "") + second;
    lab.start(&text, Place::Rom);
    lab.wait_for_state("no wired card; guests among themselves");
    let (web, other) = (lab.guest(0), lab.guest(1));
    web.serve(80, "hello neighbour");
    assert_eq!(other.ask(web.address(), 80).unwrap(), "hello neighbour");
}

#[test]
fn an_ordinary_linux_is_left_as_it_was() {
    let Some(mut lab) = Lab::enter("an_ordinary") else {
        return;
    };
    lab.give_host_an_address();
    let before = lab.interfaces();
    lab.start(&machine("", ""), Place::Linux);
    let guest = lab.guest(0);
    guest.serve(80, "from a user's Linux");
    lab.wait_for_address(guest.address());
    assert_eq!(lab.ask(HOST, 8080).unwrap(), "from a user's Linux");
    drop(guest);
    lab.stop();
    assert_eq!(lab.interfaces(), before);
    assert_eq!(lab.forwarding(), "0");
}

#[test]
fn hardware_addresses_survive_a_restart_of_the_host() {
    let Some(mut lab) = Lab::enter("hardware_addresses") else {
        return;
    };
    let text = machine("nic = \"up0\"", "");
    lab.start(&text, Place::Rom);
    lab.wait_for_state("192.0.2.10/24");
    let first = lab.macs();
    // What the first run made stays behind, as it does when process 1 falls.
    lab.stop();
    lab.start(&text, Place::Rom);
    lab.wait_for_state("192.0.2.10/24");
    assert_eq!(lab.macs(), first);
    assert_eq!(lab.bridges(), ["daruma0"]);
}
