//! The DHCP client (RFC 2131) of a machine with one interface: gets an address, keeps it, and gets another when it is
//! lost. It runs on a thread of its own, so it may simply wait.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use smoltcp::wire::{DHCP_SERVER_PORT, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress};

use crate::interface::Interface;
use crate::machine::Console;

const NO_INTERFACE: Duration = Duration::from_secs(1);
/// First and longest pause between two questions without an answer.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// Without a word of the server, and at least: a hostile one must not keep us busy.
const DEFAULT_LEASE: u32 = 3600;
const SHORTEST_LEASE: u32 = 20;
/// A server that leaves the subnet out.
const DEFAULT_MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// Subnet mask, router.
const WANTED: &[u8] = &[1, 3];

/// What the server gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lease {
    address: Ipv4Addr,
    mask: Ipv4Addr,
    router: Option<Ipv4Addr>,
    server: Ipv4Addr,
    seconds: u32,
}

/// Keeps the first interface's address for as long as the machine runs.
pub fn keep_address() {
    let interface = loop {
        match Interface::find() {
            Some(interface) => break interface,
            None => thread::sleep(NO_INTERFACE),
        }
    };
    loop {
        if let Err(error) = run(&interface) {
            Console::open().say(&format!("web: {}: {error}", interface.name));
        }
        thread::sleep(LONGEST_WAIT);
    }
}

fn run(interface: &Interface) -> io::Result<()> {
    interface.up()?;
    let socket = interface.dhcp_socket(FIRST_WAIT)?;
    let mut client = Client {
        mac: EthernetAddress(interface.mac),
        transaction: first_transaction(interface.mac),
    };
    loop {
        let mut lease = client.acquire(&socket)?;
        interface.set_address(lease.address, lease.mask)?;
        if let Some(router) = lease.router {
            interface.set_router(router)?;
        }
        let bits = u32::from(lease.mask).count_ones();
        Console::open().say(&format!("web: address {}/{bits}", lease.address));
        // Until the lease has run out unrenewed or the server took it back.
        loop {
            let whole = Duration::from_secs(lease.seconds.into());
            thread::sleep(whole / 2);
            match client.renew(&socket, lease, whole / 2)? {
                Some(renewed) if renewed.address == lease.address => lease = renewed,
                _ => break,
            }
        }
        interface.set_address(Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED)?;
        Console::open().say("web: address lost");
    }
}

/// Differs between guests and runs; it only tells our exchanges from others'.
fn first_transaction(mac: [u8; 6]) -> u32 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]]) ^ now.subsec_nanos()
}

struct Client {
    mac: EthernetAddress,
    transaction: u32,
}

impl Client {
    /// Asks until there is a lease.
    fn acquire(&mut self, socket: &UdpSocket) -> io::Result<Lease> {
        let mut wait = FIRST_WAIT;
        loop {
            self.transaction = self.transaction.wrapping_add(1);
            send(socket, &self.message(DhcpMessageType::Discover))?;
            let offer = self.answer(socket, wait, |kind| kind == DhcpMessageType::Offer)?;
            if let Some((_, offer)) = offer {
                let mut request = self.message(DhcpMessageType::Request);
                request.requested_ip = Some(offer.address);
                request.server_identifier = Some(offer.server);
                send(socket, &request)?;
                match self.answer(socket, wait, is_final)? {
                    Some((DhcpMessageType::Ack, lease)) => return Ok(lease),
                    // Taken back, or lost: from the beginning, after a pause.
                    _ => thread::sleep(wait),
                }
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Asks for more time, for at most `limit`; `None` if that is refused or nobody answers.
    fn renew(
        &mut self,
        socket: &UdpSocket,
        lease: Lease,
        limit: Duration,
    ) -> io::Result<Option<Lease>> {
        let start = Instant::now();
        while start.elapsed() < limit {
            self.transaction = self.transaction.wrapping_add(1);
            let mut request = self.message(DhcpMessageType::Request);
            request.client_ip = lease.address;
            send(socket, &request)?;
            match self.answer(socket, LONGEST_WAIT.min(limit), is_final)? {
                Some((DhcpMessageType::Ack, lease)) => return Ok(Some(lease)),
                Some(_) => return Ok(None),
                None => {}
            }
        }
        Ok(None)
    }

    /// Waits for a message that `wanted` names, at most `limit`.
    fn answer(
        &self,
        socket: &UdpSocket,
        limit: Duration,
        wanted: impl Fn(DhcpMessageType) -> bool,
    ) -> io::Result<Option<(DhcpMessageType, Lease)>> {
        let start = Instant::now();
        let mut buffer = [0; 1500];
        loop {
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    let answer = self.read(&buffer[..length]);
                    if let Some(answer) = answer.filter(|(kind, _)| wanted(*kind)) {
                        return Ok(Some(answer));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads a server's message, if it is one, for us, and makes sense.
    fn read(&self, bytes: &[u8]) -> Option<(DhcpMessageType, Lease)> {
        let packet = DhcpPacket::new_checked(bytes).ok()?;
        let message = DhcpRepr::parse(&packet).ok()?;
        let ours = message.transaction_id == self.transaction
            && message.client_hardware_address == self.mac;
        let server = message.server_identifier?;
        let address = message.your_ip;
        let usable = |address: Ipv4Addr| {
            !address.is_unspecified()
                && !address.is_broadcast()
                && !address.is_multicast()
                && !address.is_loopback()
        };
        let refusal = message.message_type == DhcpMessageType::Nak;
        if !ours || !(refusal || usable(address)) {
            return None;
        }
        // A server may name several routers: the first is the one it prefers.
        let router = packet
            .options()
            .find(|option| option.kind == 3)
            .and_then(|option| option.data.first_chunk::<4>())
            .map(|octets| Ipv4Addr::from(*octets));
        let lease = Lease {
            address,
            mask: message.subnet_mask.unwrap_or(DEFAULT_MASK),
            router: router.filter(|router| usable(*router)),
            server,
            seconds: message
                .lease_duration
                .unwrap_or(DEFAULT_LEASE)
                .max(SHORTEST_LEASE),
        };
        Some((message.message_type, lease))
    }

    fn message(&self, message_type: DhcpMessageType) -> DhcpRepr<'static> {
        DhcpRepr {
            message_type,
            transaction_id: self.transaction,
            secs: 0,
            client_hardware_address: self.mac,
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            // An interface without an address takes nothing else in.
            broadcast: true,
            requested_ip: None,
            client_identifier: Some(self.mac),
            server_identifier: None,
            parameter_request_list: Some(WANTED),
            dns_servers: None,
            max_size: Some(1400),
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        }
    }
}

fn is_final(kind: DhcpMessageType) -> bool {
    matches!(kind, DhcpMessageType::Ack | DhcpMessageType::Nak)
}

fn send(socket: &UdpSocket, message: &DhcpRepr<'_>) -> io::Result<()> {
    let mut bytes = vec![0; message.buffer_len()];
    message
        .emit(&mut DhcpPacket::new_unchecked(&mut bytes[..]))
        .map_err(|_| io::ErrorKind::InvalidData)?;
    let all = SocketAddrV4::new(Ipv4Addr::BROADCAST, DHCP_SERVER_PORT);
    socket.send_to(&bytes, all).map(drop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: Client = Client {
        mac: EthernetAddress([2, 0, 0, 0, 0, 1]),
        transaction: 77,
    };

    fn bytes(change: impl FnOnce(&mut DhcpRepr<'static>)) -> Vec<u8> {
        let mut message = CLIENT.message(DhcpMessageType::Ack);
        message.parameter_request_list = None;
        message.your_ip = Ipv4Addr::new(10, 0, 2, 16);
        message.server_identifier = Some(Ipv4Addr::new(10, 0, 2, 2));
        change(&mut message);
        let mut bytes = vec![0; message.buffer_len()];
        let mut packet = DhcpPacket::new_unchecked(&mut bytes[..]);
        message.emit(&mut packet).unwrap();
        bytes
    }

    #[test]
    fn lease_is_what_the_server_gave() {
        let (kind, lease) = CLIENT
            .read(&bytes(|message| {
                message.subnet_mask = Some(Ipv4Addr::new(255, 255, 0, 0));
                message.router = Some(Ipv4Addr::new(10, 0, 2, 2));
                message.lease_duration = Some(1);
            }))
            .unwrap();
        assert_eq!(kind, DhcpMessageType::Ack);
        assert_eq!(lease.mask, Ipv4Addr::new(255, 255, 0, 0));
        assert_eq!(lease.router, Some(Ipv4Addr::new(10, 0, 2, 2)));
        assert_eq!(lease.seconds, SHORTEST_LEASE);
    }

    #[test]
    fn foreign_and_senseless_answers_are_passed_over() {
        assert!(CLIENT.read(&bytes(|_| {})).is_some());
        assert!(CLIENT.read(&bytes(|m| m.transaction_id = 78)).is_none());
        assert!(
            CLIENT
                .read(&bytes(|m| m.server_identifier = None))
                .is_none()
        );
        assert!(
            CLIENT
                .read(&bytes(|m| m.your_ip = Ipv4Addr::LOCALHOST))
                .is_none()
        );
        assert!(
            CLIENT
                .read(&bytes(|m| m.client_hardware_address.0[5] = 9))
                .is_none()
        );
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(at in 0_usize..290, value: u8, cut in 0_usize..300) {
            let mut bytes = bytes(|message| message.lease_duration = Some(60));
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let length = bytes.len();
            let _ = CLIENT.read(&bytes[..length.min(cut)]);
            let _ = CLIENT.read(&bytes);
        }
    }
}
