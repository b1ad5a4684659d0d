//! Learning a guest's address on the wired network: what it says of itself by ARP and DHCP, seen on its own tap, where no
//! other guest can speak for it.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use smoltcp::wire::DhcpMessageType;

use super::dhcp::{Message, SERVER_PORT};
use super::frame::{Frame, MAX_FRAME};
use super::packet::{PacketSocket, Wanted};
use crate::address::{Mac, is_unicast};

/// Frames read in one go, and the pause after that many: a guest that floods is heard no more often.
const MAX_AT_ONCE: usize = 16;
const PAUSE: Duration = Duration::from_millis(200);

/// The ear on one tap.
#[derive(Debug)]
pub struct Watch {
    /// Index of the card in the plan.
    pub card: usize,
    /// Where its frames come from.
    pub socket: PacketSocket,
    mac: Mac,
    deaf_until: Duration,
}

impl Watch {
    /// Begins to listen on the tap of that index.
    ///
    /// # Errors
    /// The tap is gone.
    pub fn open(card: usize, tap: u32, mac: Mac) -> io::Result<Self> {
        let wanted = Wanted {
            arp: true,
            udp_port: SERVER_PORT,
        };
        Ok(Self {
            card,
            socket: PacketSocket::open(tap, wanted)?,
            mac,
            deaf_until: Duration::ZERO,
        })
    }

    /// When it listens again; `None` while it does.
    #[must_use]
    pub fn deaf(&self, now: Duration) -> Option<Duration> {
        (self.deaf_until > now).then_some(self.deaf_until)
    }

    /// The address that the guest speaks for now, if it said so.
    pub fn hear(&mut self, now: Duration) -> Option<Ipv4Addr> {
        let mut heard = None;
        let mut buffer = [0; MAX_FRAME];
        for _ in 0..MAX_AT_ONCE {
            // An error is the tap being off for a moment.
            let Ok(Some(length)) = self.socket.receive(&mut buffer) else {
                return heard;
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            heard = address_in(bytes, self.mac).or(heard);
        }
        self.deaf_until = now + PAUSE;
        heard
    }
}

/// The address that a frame of the card `mac` claims for it.
fn address_in(bytes: &[u8], mac: Mac) -> Option<Ipv4Addr> {
    let address = match Frame::parse(bytes)? {
        Frame::Arp { mac: from, address } => (from == mac).then_some(address),
        Frame::Udp { payload, .. } => {
            let message = Message::parse(payload)?;
            if message.kind != DhcpMessageType::Request || message.hardware != mac {
                return None;
            }
            message.requested.or(Some(message.client))
        }
    };
    // A probe for an address (RFC 5227) has no sender yet.
    address.filter(|address| is_unicast(*address))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
        let message = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: EthernetAddress(mac.0),
            source_protocol_addr: address,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: Ipv4Addr::new(192, 0, 2, 1),
        };
        let mut bytes = [&[0xff; 6][..], &mac.0, &[8, 6]].concat();
        let mut packet = vec![0; message.buffer_len()];
        message.emit(&mut ArpPacket::new_unchecked(&mut packet[..]));
        bytes.extend(packet);
        bytes
    }

    #[test]
    fn a_guest_speaks_for_its_own_card_only() {
        let address = Ipv4Addr::new(192, 0, 2, 9);
        assert_eq!(address_in(&arp(MAC, address), MAC), Some(address));
        assert_eq!(address_in(&arp(Mac([2; 6]), address), MAC), None);
        let probe = arp(MAC, Ipv4Addr::UNSPECIFIED);
        assert_eq!(address_in(&probe, MAC), None);
    }

    proptest! {
        #[test]
        fn any_frame_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = address_in(&bytes, MAC);
        }
    }
}
