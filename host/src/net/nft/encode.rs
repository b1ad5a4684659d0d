//! nf_tables' netlink messages (linux/netfilter/nf_tables.h), as many as [`super::Rule`] needs.

use nix::libc;

use super::{Chain, Match, Rule, Verdict};
use crate::address::Subnet;
use crate::config::Protocol;

// linux/netfilter/nfnetlink.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const IPV4: u8 = 2;
const UNSPECIFIED: u8 = 0;
/// Attributes that hold attributes.
const NESTED: u16 = 0x8000;

/// The register that conditions use; verdicts with two values need a second one.
const REGISTER: u32 = 1;
const SECOND_REGISTER: u32 = 2;
const VERDICT_REGISTER: u32 = 0;

// Message types: NFT_MSG_*.
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

/// Replaces the whole table.
pub fn replace(table: &str, rules: &[Rule], sequence: impl FnMut() -> u32) -> Vec<u8> {
    let mut batch = Batch::begin(sequence);
    // Deleting what is not there fails: so it is made first.
    batch.table(NEW_TABLE, table);
    batch.table(DELETE_TABLE, table);
    batch.table(NEW_TABLE, table);
    for chain in Chain::ALL {
        batch.chain(table, chain);
    }
    for rule in rules {
        batch.rule(table, rule);
    }
    batch.end()
}

/// Removes the whole table.
pub fn delete(table: &str, sequence: impl FnMut() -> u32) -> Vec<u8> {
    let mut batch = Batch::begin(sequence);
    batch.table(DELETE_TABLE, table);
    batch.end()
}

struct Batch<S> {
    bytes: Vec<u8>,
    /// Where the flags of the last command are.
    last_flags: Option<usize>,
    sequence: S,
}

impl<S: FnMut() -> u32> Batch<S> {
    fn begin(sequence: S) -> Self {
        let mut batch = Self {
            bytes: Vec::new(),
            last_flags: None,
            sequence,
        };
        batch.message(BATCH_BEGIN, UNSPECIFIED, SUBSYSTEM, 0, &[]);
        batch
    }

    /// Only the last command asks for an acknowledgement, which stands for all: refusals come unasked, and as many
    /// acknowledgements as a large table has rules would overflow the socket that they are read from.
    fn end(mut self) -> Vec<u8> {
        if let Some(flags) = self
            .last_flags
            .and_then(|at| self.bytes.get_mut(at..)?.first_chunk_mut::<2>())
        {
            let with_answer = i32::from(u16::from_ne_bytes(*flags)) | libc::NLM_F_ACK;
            *flags = u16::try_from(with_answer).unwrap_or_default().to_ne_bytes();
        }
        self.message(BATCH_END, UNSPECIFIED, SUBSYSTEM, 0, &[]);
        self.bytes
    }

    /// One message: netlink header, netfilter header, attributes.
    fn message(&mut self, kind: u16, family: u8, resource: u16, flags: i32, attributes: &[u8]) {
        let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
        let flags = u16::try_from(libc::NLM_F_REQUEST | flags).unwrap_or_default();
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend((self.sequence)().to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(attributes);
    }

    fn command(&mut self, command: u16, attributes: &[u8]) {
        let flags = match command {
            DELETE_TABLE => 0,
            NEW_RULE => libc::NLM_F_CREATE | libc::NLM_F_APPEND,
            _ => libc::NLM_F_CREATE,
        };
        self.last_flags = Some(self.bytes.len() + 6);
        self.message(SUBSYSTEM << 8 | command, IPV4, 0, flags, attributes);
    }

    fn table(&mut self, command: u16, name: &str) {
        self.command(command, &text(1, name));
    }

    fn chain(&mut self, table: &str, chain: Chain) {
        // NF_INET_* hooks, priorities of linux/netfilter_ipv4.h: raw, destination and source translation.
        let (kind, hook, priority): (_, u32, i32) = match chain {
            Chain::Guard => ("filter", 0, -300),
            Chain::Arrive => ("nat", 0, -100),
            Chain::Local => ("nat", 3, -100),
            Chain::Leave => ("nat", 4, 100),
        };
        let hook = [number(1, hook), attribute(2, &priority.to_be_bytes())].concat();
        let attributes = [
            text(1, table),
            text(3, name(chain)),
            attribute(4 | NESTED, &hook),
            text(7, kind),
        ];
        self.command(NEW_CHAIN, &attributes.concat());
    }

    fn rule(&mut self, table: &str, rule: &Rule) {
        let mut expressions = Vec::new();
        for condition in &rule.matches {
            expressions.extend(conditions(*condition));
        }
        expressions.extend(verdict(rule.verdict));
        let attributes = [
            text(1, table),
            text(2, name(rule.chain)),
            attribute(4 | NESTED, &expressions),
        ];
        self.command(NEW_RULE, &attributes.concat());
    }
}

fn name(chain: Chain) -> &'static str {
    match chain {
        Chain::Guard => "guard",
        Chain::Arrive => "arrive",
        Chain::Local => "local",
        Chain::Leave => "leave",
    }
}

fn conditions(condition: Match) -> Vec<u8> {
    // NFT_META_*
    const IN_INDEX: u32 = 4;
    const OUT_INDEX: u32 = 5;
    const PROTOCOL: u32 = 16;
    // Offsets in the IPv4 header (RFC 791).
    const SOURCE: u32 = 12;
    const DESTINATION: u32 = 16;
    let interface =
        |key, index: u32, equal| [meta(key), compare(equal, &index.to_ne_bytes())].concat();
    match condition {
        Match::In(index) => interface(IN_INDEX, index, true),
        Match::NotIn(index) => interface(IN_INDEX, index, false),
        Match::Out(index) => interface(OUT_INDEX, index, true),
        Match::NotOut(index) => interface(OUT_INDEX, index, false),
        Match::Source(subnet) => in_subnet(SOURCE, subnet),
        Match::Destination(subnet) => in_subnet(DESTINATION, subnet),
        Match::Port(protocol, port) => [
            meta(PROTOCOL),
            compare(true, &[ip_protocol(protocol)]),
            // The destination port is the second field of both TCP's and UDP's header.
            payload(2, 2, 2),
            compare(true, &port.to_be_bytes()),
        ]
        .concat(),
    }
}

fn ip_protocol(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

fn in_subnet(offset: u32, subnet: Subnet) -> Vec<u8> {
    let mut bytes = payload(1, offset, 4);
    if subnet.prefix < 32 {
        bytes.extend(mask(subnet.mask().octets()));
    }
    bytes.extend(compare(true, &subnet.network().octets()));
    bytes
}

fn verdict(verdict: Verdict) -> Vec<u8> {
    match verdict {
        Verdict::Drop => {
            // NFTA_DATA_VERDICT of NF_DROP.
            let drop = attribute(2 | NESTED, &number(1, 0));
            immediate(VERDICT_REGISTER, &drop)
        }
        Verdict::SendTo(address, port) => {
            let destination = [
                // NFT_NAT_DNAT to the IPv4 address and port in the registers.
                number(1, 1),
                number(2, IPV4.into()),
                number(3, REGISTER),
                number(5, SECOND_REGISTER),
            ];
            [
                immediate(REGISTER, &attribute(1, &address.octets())),
                immediate(SECOND_REGISTER, &attribute(1, &port.to_be_bytes())),
                expression("nat", &destination.concat()),
            ]
            .concat()
        }
        Verdict::Masquerade => expression("masq", &[]),
    }
}

/// Loads a packet's property.
fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[number(1, REGISTER), number(2, key)].concat())
}

/// Loads a packet's bytes; base 1 is the network header, 2 the transport header.
fn payload(base: u32, offset: u32, length: u32) -> Vec<u8> {
    let attributes = [
        number(1, REGISTER),
        number(2, base),
        number(3, offset),
        number(4, length),
    ];
    expression("payload", &attributes.concat())
}

/// Clears the bits that are not in the mask.
fn mask(mask: [u8; 4]) -> Vec<u8> {
    let attributes = [
        number(1, REGISTER),
        number(2, REGISTER),
        number(3, 4),
        attribute(4 | NESTED, &attribute(1, &mask)),
        attribute(5 | NESTED, &attribute(1, &[0; 4])),
    ];
    expression("bitwise", &attributes.concat())
}

fn compare(equal: bool, value: &[u8]) -> Vec<u8> {
    let attributes = [
        number(1, REGISTER),
        number(2, u32::from(!equal)),
        attribute(3 | NESTED, &attribute(1, value)),
    ];
    expression("cmp", &attributes.concat())
}

fn immediate(register: u32, data: &[u8]) -> Vec<u8> {
    let attributes = [number(1, register), attribute(2 | NESTED, data)];
    expression("immediate", &attributes.concat())
}

/// One element of a rule's list.
fn expression(name: &str, data: &[u8]) -> Vec<u8> {
    let inside = [text(1, name), attribute(2 | NESTED, data)].concat();
    attribute(1 | NESTED, &inside)
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(usize::from(length).next_multiple_of(4));
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_but_not_counted_so() {
        assert_eq!(attribute(3, &[9]), [5, 0, 3, 0, 9, 0, 0, 0]);
        assert_eq!(text(1, "abc"), [8, 0, 1, 0, b'a', b'b', b'c', 0]);
        assert_eq!(number(2, 258), [8, 0, 2, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn every_message_of_a_batch_has_its_length_and_number() {
        let mut next = 0;
        let batch = delete("t", || {
            next += 1;
            next
        });
        let mut rest = &batch[..];
        let mut numbers = Vec::new();
        while !rest.is_empty() {
            let length =
                usize::try_from(u32::from_ne_bytes(rest[..4].try_into().unwrap())).unwrap();
            numbers.push(rest[8]);
            rest = &rest[length..];
        }
        assert_eq!(numbers, [1, 2, 3]);
    }

    #[test]
    fn only_the_last_command_of_a_batch_asks_for_an_answer() {
        let batch = replace("t", &[], || 0);
        let mut rest = &batch[..];
        let mut asks = Vec::new();
        while !rest.is_empty() {
            let length =
                usize::try_from(u32::from_ne_bytes(rest[..4].try_into().unwrap())).unwrap();
            let flags = u16::from_ne_bytes(rest[6..8].try_into().unwrap());
            asks.push(i32::from(flags) & libc::NLM_F_ACK != 0);
            rest = &rest[length..];
        }
        // Begin, three of the table, four chains, end.
        let mut wanted = [false; 9];
        wanted[7] = true;
        assert_eq!(asks, wanted);
    }
}
