//! A private network: a bridge, the host's DHCP server on it, and for `nat` the host as the way out.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::dhcp::server::Server;
use super::dhcp::{CLIENT_PORT, Message, SERVER_PORT};
use super::frame::{self, Frame, MAX_FRAME};
use super::links::Link;
use super::packet::{PacketSocket, Wanted};
use super::rtnl::Rtnl;
use crate::address::{Mac, Subnet};

/// Subnets to choose from: rarely used by others, each checked against the host's own addresses.
const CANDIDATES: std::ops::RangeInclusive<u8> = 214..=254;
/// Messages answered in one go; the rest waits its turn.
const MAX_AT_ONCE: usize = 16;

/// The network.
#[derive(Debug)]
pub struct Private {
    /// The bridge.
    pub bridge: Link,
    /// The host's address in the subnet.
    pub host: Subnet,
    /// The DHCP server's socket.
    pub socket: PacketSocket,
    server: Server,
}

impl Private {
    /// Begins to serve these cards on a bridge. With `has_host` the host has an address there, with `router` it leads
    /// further.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn open(
        rtnl: &mut Rtnl,
        bridge: Link,
        subnet: Subnet,
        cards: Vec<Mac>,
        has_host: bool,
        router: bool,
    ) -> io::Result<Self> {
        let host = subnet.nth(1).and_then(|ip| Subnet::new(ip, subnet.prefix));
        let host = host.ok_or(io::ErrorKind::AddrNotAvailable)?;
        if has_host {
            rtnl.add_address(bridge.index, host)?;
        }
        let wanted = Wanted {
            arp: false,
            udp_port: SERVER_PORT,
        };
        Ok(Self {
            socket: PacketSocket::open(bridge.index, wanted)?,
            server: Server::new(host, router, cards),
            bridge,
            host,
        })
    }

    /// Serves one more card.
    pub fn add(&mut self, card: Mac) {
        self.server.add(card);
    }

    /// Answers what came in; returns the addresses that cards have from now on.
    pub fn serve(&self) -> Vec<(Mac, Ipv4Addr)> {
        let mut given = Vec::new();
        let mut buffer = [0; MAX_FRAME];
        for _ in 0..MAX_AT_ONCE {
            // An error is the bridge being off for a moment; the next frame is as good.
            let Ok(Some(length)) = self.socket.receive(&mut buffer) else {
                break;
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            let Some(Frame::Udp { payload, .. }) = Frame::parse(bytes) else {
                continue;
            };
            let answer = Message::parse(payload).and_then(|message| self.server.answer(&message));
            let Some(answer) = answer else { continue };
            let frame = frame::udp(
                self.bridge.mac,
                answer.to,
                SocketAddrV4::new(self.host.address, SERVER_PORT),
                SocketAddrV4::new(answer.address, CLIENT_PORT),
                &answer.bytes,
            );
            // A client that hears nothing asks again.
            let _ = self.socket.send(&frame);
            given.extend(answer.given);
        }
        given
    }
}

/// A subnet that overlaps none of those in use.
#[must_use]
pub fn free_subnet(used: &[Subnet]) -> Option<Subnet> {
    CANDIDATES
        .filter_map(|third| Subnet::new(Ipv4Addr::new(10, 214, third, 0), 24))
        .find(|subnet| !used.iter().any(|other| other.overlaps(*subnet)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_in_use_is_not_chosen() {
        let first = free_subnet(&[]).unwrap();
        let second = free_subnet(&[first]).unwrap();
        assert!(!first.overlaps(second));
        assert_eq!(free_subnet(&["10.0.0.0/8".parse().unwrap()]), None);
    }
}
