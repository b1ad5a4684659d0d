//! What reads frames from a network, for fuzz targets: everything between a packet socket and what is done about a frame.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::dhcp::Message;
use super::dhcp::client::{Action, Client};
use super::dhcp::server::Server;
use super::frame::Frame;
use crate::address::{Mac, Subnet, is_unicast};

const CARD: Mac = Mac([2, 0, 0, 0, 0, 1]);

/// Where message and hardware address of a DHCP packet have what an answer repeats (RFC 2131 §2).
const TRANSACTION: std::ops::Range<usize> = 4..8;
const HARDWARE: std::ops::Range<usize> = 28..34;

/// A server of a private network hears `frame`, and `message` as if it had come in a frame.
pub fn server(frame: &[u8], message: &[u8]) {
    let Some(host) = Subnet::new(Ipv4Addr::new(10, 0, 0, 1), 24) else {
        return;
    };
    let server = Server::new(host, true, vec![CARD]);
    let _ = Frame::parse(frame).and_then(|frame| match frame {
        Frame::Udp { payload, .. } => server.answer(&Message::parse(payload)?),
        Frame::Arp { .. } => None,
    });
    let Some(heard) = Message::parse(message) else {
        return;
    };
    let Some(answer) = server.answer(&heard) else {
        return;
    };
    assert_eq!(heard.hardware, CARD, "nobody else is answered");
    let said = Message::parse(&answer.bytes);
    assert!(
        said.is_some_and(|said| said.transaction == heard.transaction),
        "an answer is a message that answers the question"
    );
}

/// A client whose server, or who says that it is one, sends `messages`, each after some seconds of waiting.
pub fn client<'a>(messages: impl Iterator<Item = (u8, &'a [u8])>) {
    let mut client = Client::new(CARD, "fuzz");
    let mut now = Duration::from_secs(1);
    let mut transaction = [0; 4];
    client.link_up(now);
    for (wait, message) in messages {
        now += Duration::from_secs(wait.into());
        let mut actions = Vec::new();
        // It asks again and again; each time what it asks has a number that answers repeat.
        let mut ticks = 0;
        while client.due().is_some_and(|due| due <= now) {
            actions.extend(client.tick(now));
            ticks += 1;
            assert!(
                ticks < 16,
                "whatever a server says, the client comes to rest"
            );
        }
        let mut message = message.to_vec();
        for action in &actions {
            if let Action::Broadcast(bytes) | Action::Unicast { bytes, .. } = action
                && let Some(asked) = bytes.get(TRANSACTION)
            {
                transaction.copy_from_slice(asked);
            }
        }
        if let Some(place) = message.get_mut(TRANSACTION) {
            place.copy_from_slice(&transaction);
        }
        if let Some(place) = message.get_mut(HARDWARE) {
            place.copy_from_slice(&CARD.0);
        }
        if let Some(message) = Message::parse(&message) {
            actions.extend(client.receive(now, &message, Mac([2, 0, 0, 0, 0, 2])));
        }
        for action in actions {
            if let Action::Bound(lease) = action {
                let address = lease.subnet.address;
                assert!(is_unicast(address), "{address} is taken for the host's");
            }
        }
    }
}
