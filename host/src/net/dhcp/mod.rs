//! DHCP (RFC 2131): the host's client on the wired network, and the server of private networks. Neither touches a
//! socket or a clock.

pub mod client;
pub mod server;

use std::net::Ipv4Addr;

use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress};

use crate::address::Mac;

pub use smoltcp::wire::{DHCP_CLIENT_PORT as CLIENT_PORT, DHCP_SERVER_PORT as SERVER_PORT};

/// RFC 2132 §3.5: routers.
const OPTION_ROUTER: u8 = 3;

/// What a message says, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: DhcpMessageType,
    /// Number of the exchange.
    pub transaction: u32,
    /// The client's hardware address.
    pub hardware: Mac,
    /// The client's present address.
    pub client: Ipv4Addr,
    /// The address that is given.
    pub yours: Ipv4Addr,
    /// The server that speaks, or is spoken to.
    pub server: Option<Ipv4Addr>,
    /// The address that is asked for.
    pub requested: Option<Ipv4Addr>,
    /// Mask of the subnet.
    pub mask: Option<Ipv4Addr>,
    /// The first router.
    pub router: Option<Ipv4Addr>,
    /// Resolvers, at most three.
    pub dns: Vec<Ipv4Addr>,
    /// Seconds: the lease, and when to renew and to rebind.
    pub times: [Option<u32>; 3],
    /// The client takes in broadcasts only.
    pub broadcast: bool,
}

impl Message {
    /// Reads a message; `None` for what is none.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let packet = DhcpPacket::new_checked(bytes).ok()?;
        let message = DhcpRepr::parse(&packet).ok()?;
        // A server may name several routers; the first is the one it prefers.
        let router = packet
            .options()
            .find(|option| option.kind == OPTION_ROUTER)
            .and_then(|option| option.data.first_chunk::<4>())
            .map(|octets| Ipv4Addr::from(*octets));
        Some(Self {
            kind: message.message_type,
            transaction: message.transaction_id,
            hardware: Mac(message.client_hardware_address.0),
            client: message.client_ip,
            yours: message.your_ip,
            server: message.server_identifier,
            requested: message.requested_ip,
            mask: message.subnet_mask,
            router,
            dns: message.dns_servers.iter().flatten().copied().collect(),
            times: [
                message.lease_duration,
                message.renew_duration,
                message.rebind_duration,
            ],
            broadcast: message.broadcast,
        })
    }
}

/// A message with nothing in it yet.
fn blank(kind: DhcpMessageType, transaction: u32, hardware: Mac) -> DhcpRepr<'static> {
    DhcpRepr {
        message_type: kind,
        transaction_id: transaction,
        secs: 0,
        client_hardware_address: EthernetAddress(hardware.0),
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: Ipv4Addr::UNSPECIFIED,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: None,
        subnet_mask: None,
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: false,
        requested_ip: None,
        client_identifier: None,
        server_identifier: None,
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    }
}

/// The bytes of a message.
fn emit(message: &DhcpRepr<'_>) -> Vec<u8> {
    /// RFC 951: some servers and relays drop what is shorter than a BOOTP message.
    const LEAST: usize = 300;
    let mut bytes = vec![0; message.buffer_len().max(LEAST)];
    // The buffer has the length that the message says it needs.
    if message
        .emit(&mut DhcpPacket::new_unchecked(&mut bytes[..]))
        .is_err()
    {
        bytes.clear();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Message::parse(&bytes);
        }

        #[test]
        fn any_options_are_survived(options in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = emit(&blank(DhcpMessageType::Discover, 1, Mac([2; 6])));
            bytes.truncate(240);
            bytes.extend(options);
            let _ = Message::parse(&bytes);
        }
    }
}
