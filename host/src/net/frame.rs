//! Ethernet frames: what is read from them, and how ours are made. Whatever comes in is hostile.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol,
    Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use crate::address::Mac;

/// Longer frames are none of ours: what we read fits Ethernet's usual 1,500 bytes.
pub const MAX_FRAME: usize = 1514;
/// Everyone on the network.
pub const BROADCAST: Mac = Mac([0xff; 6]);
const HOP_LIMIT: u8 = 64;

/// A frame that was understood.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Somebody's ARP: the sender's addresses.
    Arp {
        /// Who sent it, by its own words.
        mac: Mac,
        /// The address it speaks for.
        address: Ipv4Addr,
    },
    /// A UDP datagram.
    Udp {
        /// Who sent the frame.
        from: Mac,
        /// Source of the datagram.
        source: SocketAddrV4,
        /// Its content.
        payload: &'a [u8],
    },
}

impl<'a> Frame<'a> {
    /// Reads a frame; `None` for anything else.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let frame = EthernetFrame::new_checked(bytes).ok()?;
        let from = Mac(frame.src_addr().0);
        match frame.ethertype() {
            EthernetProtocol::Arp => {
                let packet = ArpPacket::new_checked(frame.payload()).ok()?;
                let ArpRepr::EthernetIpv4 {
                    source_hardware_addr,
                    source_protocol_addr,
                    ..
                } = ArpRepr::parse(&packet).ok()?
                else {
                    return None;
                };
                Some(Self::Arp {
                    mac: Mac(source_hardware_addr.0),
                    address: source_protocol_addr,
                })
            }
            EthernetProtocol::Ipv4 => {
                // The checksums are not looked at: a guest's card may have left them to hardware that is not there.
                let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
                let whole = !packet.more_frags() && packet.frag_offset() == 0;
                if packet.next_header() != IpProtocol::Udp || !whole {
                    return None;
                }
                let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
                Some(Self::Udp {
                    from,
                    source: SocketAddrV4::new(packet.src_addr(), datagram.src_port()),
                    payload: datagram.payload(),
                })
            }
            _ => None,
        }
    }
}

/// A UDP datagram as a frame.
#[must_use]
pub fn udp(
    from: Mac,
    to: Mac,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    payload: &[u8],
) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let datagram = UdpRepr {
        src_port: source.port(),
        dst_port: destination.port(),
    };
    let packet = Ipv4Repr {
        src_addr: *source.ip(),
        dst_addr: *destination.ip(),
        next_header: IpProtocol::Udp,
        payload_len: datagram.header_len() + payload.len(),
        hop_limit: HOP_LIMIT,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(from.0),
        dst_addr: EthernetAddress(to.0),
        ethertype: EthernetProtocol::Ipv4,
    };
    let header = EthernetFrame::<&[u8]>::header_len();
    let mut bytes = vec![0; header + packet.buffer_len() + packet.payload_len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    ethernet.emit(&mut frame);
    let mut ip = Ipv4Packet::new_unchecked(frame.payload_mut());
    packet.emit(&mut ip, &checksums);
    datagram.emit(
        &mut UdpPacket::new_unchecked(ip.payload_mut()),
        &(*source.ip()).into(),
        &(*destination.ip()).into(),
        payload.len(),
        |buffer| buffer.copy_from_slice(payload),
        &checksums,
    );
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let address = |last| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, last), 67);
        udp(Mac([2; 6]), BROADCAST, address(1), address(2), payload)
    }

    #[test]
    fn what_is_made_is_read_again() {
        let bytes = frame(b"payload");
        let Some(Frame::Udp {
            from,
            source,
            payload,
        }) = Frame::parse(&bytes)
        else {
            panic!("not read");
        };
        assert_eq!((from, payload), (Mac([2; 6]), &b"payload"[..]));
        assert_eq!(source, SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 67));
    }

    #[test]
    fn fragments_and_other_protocols_are_passed_over() {
        let mut fragment = frame(b"x");
        fragment[14 + 6] = 0x20;
        assert_eq!(Frame::parse(&fragment), None);
        let mut tcp = frame(b"x");
        tcp[14 + 9] = 6;
        assert_eq!(Frame::parse(&tcp), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Frame::parse(&bytes);
        }

        #[test]
        fn any_damage_is_survived(at in 0_usize..60, value: u8, cut in 0_usize..60) {
            let mut bytes = frame(b"some payload here");
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let _ = Frame::parse(&bytes);
            let _ = Frame::parse(&bytes[..cut.min(bytes.len())]);
        }
    }
}
