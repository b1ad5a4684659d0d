use proptest::prelude::*;

use super::*;

const GUEST: &str = r#"
[[guest]]
name = "web"
memory = 64
kernel = "flash:daruma/kernel"
ready = { boot-timer = true }
"#;

fn parse(text: &str) -> Machine {
    Machine::parse("m.toml", text, Limits::default()).unwrap()
}

fn network(section: &str) -> Machine {
    parse(&format!("[network]\n{section}\n{GUEST}"))
}

/// The message of a `[network]` that must be wrong.
fn wrong(section: &str) -> String {
    let machine = network(section);
    assert_eq!(machine.network, None);
    // The guests run nevertheless.
    assert!(machine.guests[0].config.is_ok());
    machine.remarks[0].to_string()
}

fn guest(lines: &str) -> Result<GuestConfig, String> {
    let machine = parse(&format!("{GUEST}{lines}\n"));
    let config = machine.guests.into_iter().next().unwrap().config;
    config.map_err(|error| error.to_string())
}

#[test]
fn every_guest_has_a_network_without_a_word() {
    let machine = parse(GUEST);
    assert_eq!(machine.network, Some(NetworkConfig::default()));
    let guest = machine.guests[0].config.as_ref().unwrap();
    assert_eq!(guest.nics, [Nic::default()]);
    assert!(guest.publish.is_empty());
    assert_eq!(guest.transport, Transport::Pci);
}

#[test]
fn machine_network_is_read() {
    let config = network(
        "mode = \"nat\"\nnic = \"eth1\"\naddress = \"192.0.2.5/24\"\ngateway = \"192.0.2.1\"\n\
         dns = [\"192.0.2.2\"]\nsubnet = \"10.9.0.0/24\"",
    )
    .network
    .unwrap();
    assert_eq!(config.mode, Some(Mode::Nat));
    assert_eq!(config.nic.as_deref(), Some("eth1"));
    let HostAddress::Static { subnet, gateway } = config.address else {
        panic!("{:?}", config.address);
    };
    assert_eq!(subnet.to_string(), "192.0.2.5/24");
    assert_eq!(gateway.unwrap().to_string(), "192.0.2.1");
    assert_eq!(config.dns.len(), 1);
    assert_eq!(config.subnet.unwrap().to_string(), "10.9.0.0/24");
}

#[test]
fn mistakes_in_the_machine_network_name_line_and_way_out() {
    for (section, words) in [
        (
            "mdoe = \"nat\"",
            "line 2: unknown key 'mdoe' in [network]; did you mean 'mode'?",
        ),
        ("mode = \"brigde\"", "did you mean \"bridge\"?"),
        ("nic = \"an-interface-too-long\"", "name of a network card"),
        ("address = \"192.0.2.5\"", "192.0.2.5/24"),
        ("address = \"192.0.2.0/24\"", "192.0.2.5/24"),
        ("address = \"224.0.0.1/24\"", "192.0.2.5/24"),
        ("gateway = \"192.0.2.1\"", "it comes by DHCP"),
        (
            "address = \"192.0.2.5/24\"\ngateway = \"198.51.100.1\"",
            "another address in 192.0.2.5/24",
        ),
        ("dns = [\"a\"]", "list of IPv4 addresses"),
        ("dns = \"192.0.2.1\"", "a list of strings"),
        (
            "dns = [\"192.0.2.1\", \"192.0.2.2\", \"192.0.2.3\", \"192.0.2.4\"]",
            "at most 3",
        ),
        ("subnet = \"10.9.0.1/24\"", "lowest address"),
        ("subnet = \"10.9.0.0/30\"", "lowest address"),
        (
            "address = \"10.9.0.5/16\"\nsubnet = \"10.9.0.0/24\"",
            "overlaps the host's own network 10.9.0.5/16",
        ),
    ] {
        let message = wrong(section);
        assert!(message.contains(words), "{section}: {message}");
    }
}

#[test]
fn cards_and_ports_of_a_guest_are_read() {
    let config = guest(
        "[[guest.net]]\nmac = \"02:00:00:00:00:01\"\n[[guest.net]]\nmode = \"isolated\"\n\
         [[guest.publish]]\nport = 8080\nto = 80\n[[guest.publish]]\nport = 53\nprotocol = \"udp\"",
    )
    .unwrap();
    assert_eq!(config.nics.len(), 2);
    assert_eq!(config.nics[1].mode, Some(Mode::Isolated));
    let [first, second] = config.publish.as_slice() else {
        panic!("{:?}", config.publish);
    };
    assert_eq!(
        (first.port, first.to, first.protocol),
        (8080, 80, Protocol::Tcp)
    );
    assert_eq!(
        (second.port, second.to, second.protocol),
        (53, 53, Protocol::Udp)
    );
}

#[test]
fn a_guest_may_have_no_network() {
    assert_eq!(guest("network = \"none\"").unwrap().nics, []);
    assert_eq!(guest("net = []").unwrap().nics, []);
    let nat = guest("network = \"nat\"").unwrap();
    assert_eq!(nat.nics[0].mode, Some(Mode::Nat));
}

#[test]
fn mistakes_of_a_guest_are_its_own() {
    for (lines, words) in [
        ("network = \"isolate\"", "did you mean \"isolated\"?"),
        ("network = \"none\"\n[[guest.net]]", "leave it out"),
        ("transport = \"usb\"", "\"pci\" or \"mmio\""),
        ("[[guest.net]]\nmac = \"01:00:00:00:00:01\"", "multicast"),
        ("[[guest.net]]\nmac = \"02:00\"", "six bytes"),
        ("[[guest.publish]]\nto = 80", "'port' is missing"),
        ("[[guest.publish]]\nport = 0", "1 to 65535"),
        ("[[guest.publish]]\nport = 65536", "1 to 65535"),
        (
            "[[guest.publish]]\nport = 80\nprotocol = \"icmp\"",
            "\"tcp\" or \"udp\"",
        ),
        (
            "network = \"none\"\n[[guest.publish]]\nport = 80",
            "has no network",
        ),
        (
            "network = \"isolated\"\n[[guest.publish]]\nport = 80",
            "is isolated",
        ),
        (
            "[[guest.publish]]\nport = 80\n[[guest.publish]]\nport = 80\nto = 81",
            "tcp port 80 of guest 'web' is already published for guest 'web'",
        ),
        (
            "[[guest.net]]\nmac = \"02:00:00:00:00:01\"\n[[guest.net]]\nmac = \"02:00:00:00:00:01\"",
            "hardware address 02:00:00:00:00:01 of guest 'web' is already used",
        ),
    ] {
        let message = guest(lines).unwrap_err();
        assert!(message.contains(words), "{lines}: {message}");
    }
}

#[test]
fn the_later_guest_loses_an_address_or_a_port_that_both_want() {
    let second = GUEST.replace("web", "second");
    for lines in [
        "[[guest.publish]]\nport = 80\n",
        "[[guest.net]]\nmac = \"02:00:00:00:00:01\"\n",
    ] {
        let machine = parse(&format!("{GUEST}{lines}{second}{lines}"));
        assert!(machine.guests[0].config.is_ok());
        let message = machine.guests[1].config.as_ref().unwrap_err().to_string();
        assert!(message.contains("guest 'web' (line 2)"), "{message}");
    }
    // TCP and UDP are different ports.
    let udp = "[[guest.publish]]\nport = 80\nprotocol = \"udp\"\n";
    let machine = parse(&format!(
        "{GUEST}[[guest.publish]]\nport = 80\n{second}{udp}"
    ));
    assert!(machine.guests[1].config.is_ok());
}

proptest! {
    #[test]
    fn any_value_for_any_key_is_read_without_panic(
        key in prop::sample::select(vec!["mode", "nic", "address", "gateway", "dns", "subnet", "net", "publish"]),
        value in prop_oneof![
            "\"[0-9./a-f:]{0,24}\"", "[-+0-9]{1,12}",
            Just("[]".to_owned()), Just("[{}]".to_owned()), Just("[[]]".to_owned()), Just("[\"\"]".to_owned()),
            Just("[{ port = -1, to = 99999 }]".to_owned()), Just("[{ mac = \"\" }]".to_owned()),
        ],
    ) {
        let _ = Machine::parse("x", &format!("[network]\n{key} = {value}\n"), Limits::default());
        let _ = Machine::parse("x", &format!("{GUEST}{key} = {value}\n"), Limits::default());
    }
}
