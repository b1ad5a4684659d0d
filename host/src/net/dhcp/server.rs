//! The server of a private network. Each guest's card has one address for good, so there is no pool to exhaust and
//! nothing to remember.

use std::net::Ipv4Addr;

use smoltcp::wire::DhcpMessageType;

use super::{Message, blank, emit};
use crate::address::{Mac, Subnet};
use crate::net::frame::BROADCAST;

/// Short: a card that moves to another network notices soon.
const LEASE_SECONDS: u32 = 600;
/// The first guest's address; those below are for the host and for what comes.
const FIRST: u32 = 10;

/// A server and whom it serves.
#[derive(Debug)]
pub struct Server {
    /// The host's address in the subnet.
    host: Subnet,
    /// There is a way out: the host is router and resolver.
    router: bool,
    cards: Vec<Mac>,
}

/// An answer and where it goes.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The message.
    pub bytes: Vec<u8>,
    /// Hardware address.
    pub to: Mac,
    /// IP address.
    pub address: Ipv4Addr,
    /// The client's card, and the address it was given for good.
    pub given: Option<(Mac, Ipv4Addr)>,
}

impl Server {
    /// A server at `host` for the cards with these hardware addresses.
    #[must_use]
    pub fn new(host: Subnet, router: bool, cards: Vec<Mac>) -> Self {
        Self {
            host,
            router,
            cards,
        }
    }

    /// Serves one more card.
    pub fn add(&mut self, card: Mac) {
        self.cards.push(card);
    }

    /// The address of a card.
    #[must_use]
    pub fn address_of(&self, card: Mac) -> Option<Ipv4Addr> {
        let index = self.cards.iter().position(|other| *other == card)?;
        self.host
            .nth(FIRST.checked_add(u32::try_from(index).ok()?)?)
    }

    /// The answer to a message, if it is for us.
    #[must_use]
    pub fn answer(&self, message: &Message) -> Option<Answer> {
        let address = self.address_of(message.hardware)?;
        let own = self.host.address;
        let kind = match message.kind {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            DhcpMessageType::Request => {
                if message.server.is_some_and(|server| server != own) {
                    // It chose another server.
                    return None;
                }
                let wants = message.requested.unwrap_or(message.client);
                if wants == address {
                    DhcpMessageType::Ack
                } else {
                    DhcpMessageType::Nak
                }
            }
            _ => return None,
        };
        let mut answer = blank(kind, message.transaction, message.hardware);
        answer.server_identifier = Some(own);
        answer.broadcast = message.broadcast;
        if kind == DhcpMessageType::Nak {
            // RFC 2131 §4.3.2: the client's idea of its address is wrong, so it can only hear a broadcast.
            answer.broadcast = true;
            return Some(Answer {
                bytes: emit(&answer),
                to: BROADCAST,
                address: Ipv4Addr::BROADCAST,
                given: None,
            });
        }
        answer.client_ip = message.client;
        answer.your_ip = address;
        answer.subnet_mask = Some(self.host.mask());
        answer.lease_duration = Some(LEASE_SECONDS);
        if self.router {
            answer.router = Some(own);
            answer.dns_servers = Some([own].into_iter().collect());
        }
        let (to, ip) = if message.broadcast && message.client.is_unspecified() {
            (BROADCAST, Ipv4Addr::BROADCAST)
        } else {
            (message.hardware, address)
        };
        Some(Answer {
            bytes: emit(&answer),
            to,
            address: ip,
            given: (kind == DhcpMessageType::Ack).then_some((message.hardware, address)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smoltcp::wire::DhcpRepr;

    use super::*;

    const CARD: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn server(router: bool) -> Server {
        let host = Subnet::new(Ipv4Addr::new(10, 9, 0, 1), 24).unwrap();
        Server::new(host, router, vec![Mac([2, 0, 0, 0, 0, 9]), CARD])
    }

    fn ask(kind: DhcpMessageType, change: impl FnOnce(&mut DhcpRepr<'static>)) -> Message {
        let mut message = blank(kind, 7, CARD);
        change(&mut message);
        Message::parse(&emit(&message)).unwrap()
    }

    fn reply(server: &Server, message: &Message) -> (Message, Answer) {
        let answer = server.answer(message).unwrap();
        (Message::parse(&answer.bytes).unwrap(), answer)
    }

    #[test]
    fn each_card_gets_its_own_address_every_time() {
        let server = server(true);
        let (offer, answer) = reply(&server, &ask(DhcpMessageType::Discover, |_| {}));
        assert_eq!(offer.kind, DhcpMessageType::Offer);
        assert_eq!(offer.yours, Ipv4Addr::new(10, 9, 0, 11));
        assert_eq!(offer.router, Some(Ipv4Addr::new(10, 9, 0, 1)));
        assert_eq!(offer.dns, [Ipv4Addr::new(10, 9, 0, 1)]);
        assert_eq!((answer.to, answer.address), (CARD, offer.yours));
        assert_eq!(answer.given, None);
        let request = ask(DhcpMessageType::Request, |message| {
            message.requested_ip = Some(offer.yours);
            message.server_identifier = offer.server;
            message.broadcast = true;
        });
        let (ack, answer) = reply(&server, &request);
        assert_eq!((ack.kind, ack.yours), (DhcpMessageType::Ack, offer.yours));
        assert_eq!(answer.to, BROADCAST);
        assert_eq!(answer.given, Some((CARD, offer.yours)));
    }

    #[test]
    fn an_address_that_is_not_the_cards_is_refused() {
        let request = ask(DhcpMessageType::Request, |message| {
            message.client_ip = Ipv4Addr::new(10, 9, 0, 10);
        });
        let (nak, answer) = reply(&server(true), &request);
        assert_eq!(nak.kind, DhcpMessageType::Nak);
        assert_eq!(answer.address, Ipv4Addr::BROADCAST);
    }

    #[test]
    fn strangers_and_other_servers_clients_get_no_answer() {
        let server = server(true);
        let stranger = ask(DhcpMessageType::Discover, |message| {
            message.client_hardware_address.0[5] = 77;
        });
        assert_eq!(server.answer(&stranger), None);
        let elsewhere = ask(DhcpMessageType::Request, |message| {
            message.server_identifier = Some(Ipv4Addr::new(10, 9, 0, 2));
        });
        assert_eq!(server.answer(&elsewhere), None);
        assert_eq!(server.answer(&ask(DhcpMessageType::Release, |_| {})), None);
    }

    #[test]
    fn an_isolated_network_has_no_way_out() {
        let (offer, _) = reply(&server(false), &ask(DhcpMessageType::Discover, |_| {}));
        assert_eq!((offer.router, offer.dns), (None, Vec::new()));
    }

    proptest! {
        #[test]
        fn any_message_is_answered_or_not(at in 0_usize..300, value: u8) {
            let mut bytes = emit(&blank(DhcpMessageType::Request, 7, CARD));
            bytes[at] = value;
            if let Some(message) = Message::parse(&bytes) {
                let _ = server(true).answer(&message);
            }
        }
    }
}
