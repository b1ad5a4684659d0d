//! Which packet filter rules the present state of the networks asks for.

use std::net::Ipv4Addr;

use super::nft::{Chain, Match, Rule, Verdict};
use crate::address::Subnet;
use crate::config::{Protocol, Publish};

/// `lo` is the first interface of every network namespace.
const LOOPBACK: u32 = 1;
const DNS: u16 = 53;

/// A bridge with guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Net {
    /// Part of the wired network.
    Wired {
        /// The bridge.
        bridge: u32,
    },
    /// Behind the host.
    Nat {
        /// The bridge.
        bridge: u32,
        /// The host's address in the subnet.
        host: Subnet,
    },
}

/// A published port, with where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The ports.
    pub publish: Publish,
    /// The guest's present address.
    pub guest: Ipv4Addr,
    /// The guest's network.
    pub net: Net,
}

/// The rules, for a host with these addresses and the resolver that guests behind it are to use.
#[must_use]
pub fn rules(
    nets: &[Net],
    forwards: &[Forward],
    host: &[Ipv4Addr],
    resolver: Option<Ipv4Addr>,
) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut rule = |chain, matches: Vec<Match>, verdict| {
        rules.push(Rule {
            chain,
            matches,
            verdict,
        });
    };
    for net in nets {
        match *net {
            Net::Wired { .. } => {}
            Net::Nat { bridge, host } => {
                // The host routes for its guests, not for strangers on the wire who guess the subnet. Answers and
                // published ports bear the host's own address here.
                let strangers = vec![
                    Match::NotIn(bridge),
                    Match::NotIn(LOOPBACK),
                    Match::Destination(host),
                ];
                rule(Chain::Guard, strangers, Verdict::Drop);
                let out = vec![Match::Source(host), Match::NotOut(bridge)];
                rule(Chain::Leave, out, Verdict::Masquerade);
            }
        }
    }
    for Forward {
        publish,
        guest,
        net,
    } in forwards
    {
        for address in host {
            for chain in [Chain::Arrive, Chain::Local] {
                let matches = vec![
                    Match::Destination(Subnet::host(*address)),
                    Match::Port(publish.protocol, publish.port),
                ];
                rule(chain, matches, Verdict::SendTo(*guest, publish.to));
            }
        }
        let to_guest = [
            Match::Destination(Subnet::host(*guest)),
            Match::Port(publish.protocol, publish.to),
        ];
        // The guest must answer by way of the host: on the wire it would answer the asker directly, and so it would one
        // of its own private network.
        let mut matches = match *net {
            Net::Wired { bridge } => vec![Match::Out(bridge)],
            Net::Nat { bridge, host } => vec![Match::Out(bridge), Match::Source(host)],
        };
        matches.extend(to_guest);
        rule(Chain::Leave, matches, Verdict::Masquerade);
    }
    for net in nets {
        let (Net::Nat { bridge, host }, Some(resolver)) = (*net, resolver) else {
            continue;
        };
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let matches = vec![
                Match::In(bridge),
                Match::Destination(Subnet::host(host.address)),
                Match::Port(protocol, DNS),
            ];
            rule(Chain::Arrive, matches, Verdict::SendTo(resolver, DNS));
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 5);
    const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

    fn nat() -> Net {
        Net::Nat {
            bridge: 7,
            host: "10.9.0.1/24".parse().unwrap(),
        }
    }

    fn forward(net: Net) -> Forward {
        Forward {
            publish: Publish {
                port: 8080,
                to: 80,
                protocol: Protocol::Tcp,
            },
            guest: GUEST,
            net,
        }
    }

    #[test]
    fn a_wired_network_needs_no_rules_but_for_its_ports() {
        let wired = Net::Wired { bridge: 3 };
        assert_eq!(rules(&[wired], &[], &[HOST], Some(HOST)), []);
        let rules = rules(&[wired], &[forward(wired)], &[HOST], None);
        let send = Verdict::SendTo(GUEST, 80);
        let verdicts: Vec<_> = rules
            .iter()
            .map(|rule| (rule.chain, rule.verdict))
            .collect();
        assert_eq!(
            verdicts,
            [
                (Chain::Arrive, send),
                (Chain::Local, send),
                (Chain::Leave, Verdict::Masquerade)
            ]
        );
    }

    #[test]
    fn a_port_is_published_on_every_address_of_the_host() {
        let other = Ipv4Addr::new(10, 9, 0, 1);
        let rules = rules(&[nat()], &[forward(nat())], &[HOST, other], None);
        for address in [HOST, other] {
            let to = Match::Destination(Subnet::host(address));
            assert!(
                rules
                    .iter()
                    .any(|rule| rule.chain == Chain::Arrive && rule.matches.contains(&to))
            );
        }
    }

    #[test]
    fn strangers_do_not_get_behind_the_host() {
        let rules = rules(&[nat()], &[], &[], None);
        let drops: Vec<_> = rules
            .iter()
            .filter(|rule| rule.verdict == Verdict::Drop)
            .collect();
        assert_eq!(drops.len(), 1);
        assert!(drops[0].matches.contains(&Match::NotIn(7)));
    }

    #[test]
    fn only_guests_behind_the_host_ask_it_for_names() {
        let resolver = Ipv4Addr::new(192, 0, 2, 53);
        let rules = rules(&[nat()], &[], &[HOST], Some(resolver));
        let sent = rules
            .iter()
            .filter(|rule| rule.verdict == Verdict::SendTo(resolver, 53));
        assert!(
            sent.clone()
                .all(|rule| rule.matches.contains(&Match::In(7)))
        );
        assert_eq!(sent.count(), 2);
    }
}
