//! The wired network: a bridge with the host's card in it, and the host's own address there.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::dhcp::client::{Action, Client};
use super::dhcp::{CLIENT_PORT, Message, SERVER_PORT};
use super::frame::{self, BROADCAST, Frame, MAX_FRAME};
use super::links::{self, Link};
use super::packet::{PacketSocket, Wanted};
use super::rtnl::Rtnl;
use crate::address::Subnet;
use crate::config::{HostAddress, NetworkConfig};

/// Messages read in one go; the rest waits its turn.
const MAX_AT_ONCE: usize = 16;
/// After this long a card that could not be used is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The network.
#[derive(Debug)]
pub struct Wired {
    /// The bridge.
    pub bridge: Link,
    /// The card in it.
    card: Option<Link>,
    /// Cards that were switched on.
    raised: HashSet<u32>,
    config: HostAddress,
    nic: Option<String>,
    name: String,
    /// The bridge has its hardware address from a card.
    has_mac: bool,
    /// The DHCP client, and what it sends through.
    client: Option<(Client, PacketSocket)>,
    /// What the DHCP client hears, with the index of the card that it listens to: on the bridge any guest could answer
    /// in the server's place.
    ear: Option<(u32, PacketSocket)>,
    /// When a card is tried again.
    retry: Option<Duration>,
    /// The host's address here, as it was set.
    address: Option<Subnet>,
    router: Option<Ipv4Addr>,
    dns: Vec<Ipv4Addr>,
}

impl Wired {
    /// The network on a bridge that has no card yet.
    ///
    /// # Errors
    /// A static address cannot be set.
    pub fn open(
        rtnl: &mut Rtnl,
        bridge: Link,
        config: &NetworkConfig,
        name: &str,
    ) -> io::Result<Self> {
        let mut wired = Self {
            bridge,
            card: None,
            raised: HashSet::new(),
            config: config.address,
            nic: config.nic.clone(),
            name: name.to_owned(),
            has_mac: false,
            client: None,
            ear: None,
            retry: None,
            address: None,
            router: None,
            dns: Vec::new(),
        };
        if let HostAddress::Static { subnet, gateway } = config.address {
            wired.set_address(rtnl, subnet, gateway)?;
        }
        Ok(wired)
    }

    /// The host's address, its way out and the resolvers that DHCP named.
    #[must_use]
    pub fn address(&self) -> Option<Subnet> {
        self.address
    }

    /// The way out.
    #[must_use]
    pub fn router(&self) -> Option<Ipv4Addr> {
        self.router
    }

    /// Resolvers that DHCP named.
    #[must_use]
    pub fn dns(&self) -> &[Ipv4Addr] {
        &self.dns
    }

    /// What [`Self::receive`] reads.
    #[must_use]
    pub fn socket(&self) -> Option<&PacketSocket> {
        self.ear.as_ref().map(|(_, socket)| socket)
    }

    /// When [`Self::tick`] has something to do.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        let client = self.client.as_ref().and_then(|(client, _)| client.due());
        client.into_iter().chain(self.retry).min()
    }

    /// Whether there is any card, with a link or without.
    #[must_use]
    pub fn has_card(&self) -> bool {
        self.card.is_some() || !self.raised.is_empty()
    }

    /// The state in words.
    #[must_use]
    pub fn describe(&self) -> String {
        let card = match &self.card {
            None if self.raised.is_empty() => "no wired card".to_owned(),
            None => "no link".to_owned(),
            Some(card) if card.carrier => card.name.clone(),
            Some(card) => format!("{}: no link", card.name),
        };
        let address = match (self.address, self.config) {
            (Some(subnet), HostAddress::Dhcp) => format!("{subnet} by DHCP"),
            (Some(subnet), HostAddress::Static { .. }) => subnet.to_string(),
            (None, _) => "no address yet".to_owned(),
        };
        let router = self.router.map(|router| format!(", router {router}"));
        format!("{card}, {address}{}", router.unwrap_or_default())
    }

    /// Looks at the cards again: switches new ones on, and connects the one to use. What fails is tried again later.
    ///
    /// # Errors
    /// The card cannot be connected.
    pub fn look(&mut self, rtnl: &mut Rtnl, now: Duration) -> io::Result<()> {
        let result = self.connect(rtnl, now);
        self.retry = result.is_err().then(|| now.saturating_add(RETRY));
        result
    }

    fn connect(&mut self, rtnl: &mut Rtnl, now: Duration) -> io::Result<()> {
        let cards = links::cards(links::scan(), self.nic.as_deref());
        self.raised
            .retain(|index| cards.iter().any(|card| card.index == *index));
        for card in &cards {
            if self.raised.insert(card.index) {
                // A link is seen only on a card that is on. One that refuses has none.
                let _ = rtnl.up(card.index);
            }
        }
        let present = self.card.as_ref().map(|card| card.index);
        let chosen = links::choose(present, &cards).cloned();
        let moved = chosen.as_ref().map(|card| card.index) != present;
        if moved && let Some(old) = &self.card {
            // It may be gone altogether.
            let _ = rtnl.set_bridge(old.index, None);
        }
        if let Some(card) = &chosen {
            if moved || !card.bridged {
                rtnl.set_bridge(card.index, Some(self.bridge.index))?;
            }
            self.meet(rtnl, card)?;
        } else {
            self.ear = None;
        }
        let had_link = self.card.as_ref().is_some_and(|card| card.carrier);
        let has_link = chosen.as_ref().is_some_and(|card| card.carrier);
        if let Some((client, _)) = &mut self.client {
            match (had_link && !moved, has_link) {
                (false, true) => client.link_up(now),
                (_, false) if had_link => client.link_down(),
                _ => {}
            }
        }
        // Last: a card that was not met in full is new the next time.
        self.card = chosen;
        Ok(())
    }

    /// The first card lends its hardware address to the bridge: the network knows the host by it.
    fn meet(&mut self, rtnl: &mut Rtnl, card: &Link) -> io::Result<()> {
        if !self.has_mac {
            rtnl.set_mac(self.bridge.index, card.mac)?;
            self.bridge.mac = card.mac;
            self.has_mac = true;
        }
        if self.config != HostAddress::Dhcp {
            return Ok(());
        }
        let wanted = Wanted {
            arp: false,
            udp_port: CLIENT_PORT,
        };
        if self
            .ear
            .as_ref()
            .is_none_or(|(index, _)| *index != card.index)
        {
            self.ear = Some((card.index, PacketSocket::open(card.index, wanted)?));
        }
        if self.client.is_none() {
            let mouth = PacketSocket::sender(self.bridge.index)?;
            self.client = Some((Client::new(self.bridge.mac, &self.name), mouth));
        }
        Ok(())
    }

    /// Reads what DHCP servers said.
    ///
    /// # Errors
    /// An address cannot be set.
    pub fn receive(&mut self, rtnl: &mut Rtnl, now: Duration) -> io::Result<()> {
        let mut buffer = [0; MAX_FRAME];
        for _ in 0..MAX_AT_ONCE {
            let (Some((client, _)), Some((_, socket))) = (&mut self.client, &self.ear) else {
                break;
            };
            // An error is the card being off for a moment.
            let Ok(Some(length)) = socket.receive(&mut buffer) else {
                break;
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            let Some(Frame::Udp {
                from,
                source,
                payload,
            }) = Frame::parse(bytes)
            else {
                continue;
            };
            if source.port() != SERVER_PORT {
                continue;
            }
            if let Some(message) = Message::parse(payload) {
                let actions = client.receive(now, &message, from);
                self.act(rtnl, actions)?;
            }
        }
        Ok(())
    }

    /// Does what time has come for.
    ///
    /// # Errors
    /// An address cannot be taken away, or a card again not be used.
    pub fn tick(&mut self, rtnl: &mut Rtnl, now: Duration) -> io::Result<()> {
        if self.retry.is_some_and(|retry| retry <= now) {
            self.look(rtnl, now)?;
        }
        let Some((client, _)) = &mut self.client else {
            return Ok(());
        };
        let actions = client.tick(now);
        self.act(rtnl, actions)
    }

    fn act(&mut self, rtnl: &mut Rtnl, actions: Vec<Action>) -> io::Result<()> {
        for action in actions {
            match action {
                Action::Broadcast(bytes) => {
                    let none = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);
                    let all = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
                    self.send(&frame::udp(self.bridge.mac, BROADCAST, none, all, &bytes));
                }
                Action::Unicast {
                    bytes,
                    from,
                    to,
                    via,
                } => {
                    let (from, to) = (
                        SocketAddrV4::new(from, CLIENT_PORT),
                        SocketAddrV4::new(to, SERVER_PORT),
                    );
                    self.send(&frame::udp(self.bridge.mac, via, from, to, &bytes));
                }
                Action::Bound(lease) => {
                    self.dns = lease.dns;
                    self.set_address(rtnl, lease.subnet, lease.router)?;
                }
                Action::Lost => {
                    self.dns.clear();
                    self.router = None;
                    if let Some(subnet) = self.address.take() {
                        rtnl.delete_address(self.bridge.index, subnet)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn send(&self, frame: &[u8]) {
        if let Some((_, socket)) = &self.client {
            // Lost like any frame: the client asks again.
            let _ = socket.send(frame);
        }
    }

    /// Sets the host's address and its way out; without a router it has none.
    pub(super) fn set_address(
        &mut self,
        rtnl: &mut Rtnl,
        subnet: Subnet,
        router: Option<Ipv4Addr>,
    ) -> io::Result<()> {
        if self.address != Some(subnet) {
            if let Some(old) = self.address.take() {
                rtnl.delete_address(self.bridge.index, old)?;
            }
            rtnl.add_address(self.bridge.index, subnet)?;
            self.address = Some(subnet);
        }
        match (router, self.router) {
            (Some(router), _) => rtnl.set_default_route(self.bridge.index, router)?,
            (None, Some(old)) => rtnl.delete_default_route(self.bridge.index, old)?,
            (None, None) => {}
        }
        self.router = router;
        Ok(())
    }
}
