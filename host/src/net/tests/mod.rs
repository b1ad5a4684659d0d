//! The networks in the kernel's own bridges, taps and packet filter: a host, a wire with a DHCP server on it, and
//! guests, each in a network namespace of its own.

mod lab;

use std::net::Ipv4Addr;

use lab::{Lab, RESOLVER_ANSWER};

use super::nft::{Chain, Match, Rule, Table, Verdict};
use super::{Place, identity, links};
use crate::config::Protocol;

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

#[test]
fn a_bridged_guest_is_not_the_hosts_dhcp_server() {
    let Some(lab) = Lab::enter("a_bridged_guest_is") else {
        return;
    };
    let address = lab.address_beside_a_rogue();
    assert_eq!(address.network(), Ipv4Addr::new(192, 0, 2, 0));
}

#[test]
fn bridge_with_a_static_address_is_known_by_its_card_and_has_no_ipv6() {
    let Some(lab) = Lab::enter("bridge_with_a_static") else {
        return;
    };
    let subnet = "192.0.2.10/24".parse().unwrap();
    let (mut wired, mut rtnl) = lab.static_address(subnet, WIRE);
    let find = |name: &str| links::find(name).unwrap();
    assert_eq!(find(&wired.bridge.name).mac, find("up0").mac);
    // A kernel without IPv6 has no such list.
    let ipv6 = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    assert!(!ipv6.contains(&wired.bridge.name), "{ipv6}");
    let way_out = || {
        let routes = std::fs::read_to_string("/proc/thread-self/net/route").unwrap();
        let is_default = |line: &str| line.split_whitespace().nth(1) == Some("00000000");
        routes.lines().any(is_default)
    };
    assert!(way_out());
    for _ in 0..2 {
        wired.set_address(&mut rtnl, subnet, None).unwrap();
        assert_eq!((wired.router(), way_out()), (None, false));
    }
}

#[test]
fn table_of_many_rules_is_taken_and_told_so() {
    let Some(_lab) = Lab::enter("table_of_many") else {
        return;
    };
    let rule = |port| Rule {
        chain: Chain::Arrive,
        matches: vec![Match::Port(Protocol::Tcp, port)],
        verdict: Verdict::SendTo(HOST, port),
    };
    let mut table = Table::open("many").unwrap();
    table.set((1..=1000).map(rule).collect()).unwrap();
    // A refusal among them is still heard: only what goes out is masqueraded.
    let mut rules: Vec<_> = (1..=1000).map(rule).collect();
    rules[500].verdict = Verdict::Masquerade;
    table.set(rules).unwrap_err();
    table.set((2..=3).map(rule).collect()).unwrap();
}

#[test]
fn board_without_a_number_is_known_by_its_first_card() {
    let card = |name: &str, last, wired, own_mac| links::Link {
        name: name.to_owned(),
        index: 1,
        mac: crate::address::Mac([0x52, 0x54, 0, 0, 0, last]),
        own_mac,
        carrier: false,
        wired,
        bridged: false,
    };
    let cards = [
        card("eth1", 1, true, true),
        card("eth0", 2, true, true),
        card("daruma0", 3, false, true),
        card("dummy", 4, true, false),
    ];
    let known_by = |texts: &[&str], cards: &[links::Link]| {
        identity(texts.iter().map(|text| format!("{text}\n")), cards)
    };
    let (number, blank) = (
        "4c4c4544-0034-3510-8052-b4c04f4a3132",
        "00000000-0000-0000-0000-000000000000",
    );
    assert_eq!(known_by(&[number], &cards), number);
    assert_eq!(known_by(&[blank, number], &cards), number);
    for none in [
        &[][..],
        &[blank],
        &["FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF"],
        &["", "uninitialized"],
    ] {
        assert_eq!(known_by(none, &cards), "52:54:00:00:00:02");
        assert_eq!(known_by(none, &cards[2..]), "");
    }
}
