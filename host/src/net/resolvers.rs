//! Which resolver guests behind the host are led to, and the host's own `resolv.conf`.

use std::fs;
use std::net::Ipv4Addr;

use super::Place;
use crate::address::is_unicast;

/// On a Linux whose own resolver is on the loopback interface, systemd-resolved names the real ones here.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The first that is named: in the machine file, by DHCP, or by the Linux around us.
#[must_use]
pub fn choose(place: Place, configured: &[Ipv4Addr], leased: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    let named = configured.iter().chain(leased).next().copied();
    let around = || {
        let texts = FILES
            .iter()
            .filter_map(|file| fs::read_to_string(file).ok());
        texts.into_iter().find_map(|text| first_in(&text))
    };
    named.or_else(|| (place == Place::Linux).then(around)?)
}

/// The first IPv4 resolver of a `resolv.conf` that a packet can be led to.
fn first_in(text: &str) -> Option<Ipv4Addr> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        if words.next()? != "nameserver" {
            return None;
        }
        words.next()?.parse().ok().filter(|ip| is_unicast(*ip))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_on_the_loopback_interface_is_no_use_to_guests() {
        let text = "# x\nsearch a\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\n";
        assert_eq!(first_in(text), Some(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(first_in("nameserver\n\nnameserver x"), None);
    }

    #[test]
    fn the_machine_file_comes_before_dhcp() {
        let (a, b) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        assert_eq!(choose(Place::Rom, &[a], &[b]), Some(a));
        assert_eq!(choose(Place::Rom, &[], &[b]), Some(b));
        assert_eq!(choose(Place::Rom, &[], &[]), None);
    }
}
