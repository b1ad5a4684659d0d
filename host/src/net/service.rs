//! The thread that keeps the networks: one loop over what the kernel, the guests and the wire have to say.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::nft::Table;
use super::plan::{Card, Plan};
use super::private::{Private, free_subnet};
use super::rtnl::{Monitor, Rtnl};
use super::rules::{Forward, Net, rules};
use super::watch::Watch;
use super::wired::Wired;
use super::{News, Place, bridge, links, resolvers};
use crate::address::Subnet;
use crate::clock;
use crate::config::Mode;

/// Rules are changed at most this often: a guest that changes its address without end does not keep the kernel busy.
const RULES_PAUSE: Duration = Duration::from_secs(1);
const FORWARDING: &str = "net/ipv4/ip_forward";

/// All networks of the machine.
pub struct Service {
    plan: Plan,
    /// Names of the taps, one for each card of the plan.
    taps: Vec<String>,
    place: Place,
    rtnl: Rtnl,
    monitor: Monitor,
    /// Cards that come later, each with its tap.
    orders: Receiver<(Card, String)>,
    bell: Arc<EventFd>,
    news: Box<dyn Fn(News) + Send>,
    table: Option<Table>,
    wired: Option<Wired>,
    /// On the wired network's bridge, where there is no wired card at all.
    instead: Option<Private>,
    nat: Option<Private>,
    isolated: Option<Private>,
    watches: Vec<Watch>,
    /// The address of each card, and as it was last told.
    addresses: Vec<Option<Ipv4Addr>>,
    told: Vec<Option<Ipv4Addr>>,
    told_state: String,
    rules_due: Option<Duration>,
    rules_set: Option<Duration>,
    /// What forwarding was before, where that is to be put back.
    forwarding: Option<String>,
    remarked: Vec<String>,
}

/// What woke the loop.
#[derive(Clone, Copy)]
enum Token {
    Bell,
    Links,
    Wired,
    Instead,
    Nat,
    Isolated,
    Watch(usize),
}

impl Service {
    /// Opens what everything else is done through.
    pub fn new(
        plan: Plan,
        taps: Vec<String>,
        place: Place,
        (orders, bell): (Receiver<(Card, String)>, Arc<EventFd>),
        news: Box<dyn Fn(News) + Send>,
    ) -> io::Result<Self> {
        let cards = plan.cards.len();
        Ok(Self {
            rtnl: Rtnl::open()?,
            monitor: Monitor::open()?,
            plan,
            taps,
            place,
            orders,
            bell,
            news,
            table: None,
            wired: None,
            instead: None,
            nat: None,
            isolated: None,
            watches: Vec::new(),
            addresses: vec![None; cards],
            told: vec![None; cards],
            told_state: String::new(),
            rules_due: None,
            rules_set: None,
            forwarding: None,
            remarked: Vec::new(),
        })
    }

    /// Sets the networks up and keeps them until there is nobody who could order anything.
    pub fn run(mut self) {
        // Guests run already: first of all they are connected.
        let order = [
            (Mode::Bridge, "the wired network"),
            (Mode::Nat, "the nat network"),
            (Mode::Isolated, "the isolated network"),
        ];
        for (mode, name) in order {
            if let Err(error) = self.open(mode) {
                self.remark(format!("{name} cannot be set up: {error}"));
            }
        }
        self.look();
        self.rules_due = Some(clock::now());
        loop {
            let now = clock::now();
            if let Some(wired) = &mut self.wired
                && let Err(error) = wired.tick(&mut self.rtnl, now)
            {
                self.remark(format!("the host's address cannot be changed: {error}"));
            }
            self.settle(now);
            for token in self.wait() {
                if matches!(token, Token::Bell) && !self.ordered() {
                    self.close();
                    return;
                }
                self.handle(token);
            }
        }
    }

    /// Takes in the cards that have come; false at the end.
    fn ordered(&mut self) -> bool {
        let _ = self.bell.read();
        loop {
            match self.orders.try_recv() {
                Ok((card, tap)) => {
                    let text = format!("{tap} cannot be connected");
                    if let Err(error) = self.add(card, tap) {
                        self.remark(format!("{text}: {error}"));
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Connects one more card.
    fn add(&mut self, card: Card, tap: String) -> io::Result<()> {
        let index = self.plan.cards.len();
        let private = match card.mode {
            Mode::Bridge => self.instead.as_mut(),
            Mode::Nat => self.nat.as_mut(),
            Mode::Isolated => self.isolated.as_mut(),
        };
        let wired = self.wired.as_ref().filter(|_| card.mode == Mode::Bridge);
        let bridge = wired.map(|wired| wired.bridge.index);
        let bridge = bridge.or_else(|| Some(private.as_ref()?.bridge.index));
        let bridge = bridge.ok_or(io::ErrorKind::NotFound)?;
        let link = bridge::connect(&mut self.rtnl, &tap, bridge)?;
        if card.mode == Mode::Bridge {
            self.watches.push(Watch::open(index, link.index, card.mac)?);
        }
        if let Some(private) = private {
            private.add(card.mac);
        }
        self.plan.cards.push(card);
        self.taps.push(tap);
        self.addresses.push(None);
        self.told.push(None);
        Ok(())
    }

    fn has(&self, mode: Mode) -> bool {
        self.plan.cards.iter().any(|card| card.mode == mode)
    }

    /// Makes the bridge of a mode and connects its guests' taps.
    fn open(&mut self, mode: Mode) -> io::Result<()> {
        // The host itself is on the wired network, whether a guest is or not.
        let needed = match mode {
            Mode::Bridge => self.place == Place::Rom,
            _ => self.has(mode),
        };
        if !needed {
            return Ok(());
        }
        let used = addresses();
        let bridge = bridge::create(&mut self.rtnl, 0)?;
        let mut macs = Vec::new();
        for (index, card) in self.plan.cards.iter().enumerate() {
            if card.mode != mode {
                continue;
            }
            let tap = self.taps.get(index).ok_or(io::ErrorKind::NotFound)?;
            let tap = bridge::connect(&mut self.rtnl, tap, bridge.index)?;
            if mode == Mode::Bridge {
                self.watches.push(Watch::open(index, tap.index, card.mac)?);
            }
            macs.push(card.mac);
        }
        let rtnl = &mut self.rtnl;
        match mode {
            Mode::Bridge => {
                let wired = Wired::open(rtnl, bridge, &self.plan.config, &self.plan.name)?;
                self.wired = Some(wired);
            }
            Mode::Nat => {
                let subnet = self.plan.config.subnet.or_else(|| free_subnet(&used));
                let subnet = subnet.ok_or(io::ErrorKind::AddrInUse)?;
                self.nat = Some(Private::open(rtnl, bridge, subnet, macs, true, true)?);
            }
            Mode::Isolated => {
                let mut used = used;
                used.extend(self.nat.as_ref().map(|nat| nat.host));
                used.extend(self.plan.config.subnet);
                let subnet = free_subnet(&used).ok_or(io::ErrorKind::AddrInUse)?;
                bridge::wall_off(&bridge)?;
                let isolated = Private::open(rtnl, bridge, subnet, macs, false, false)?;
                self.isolated = Some(isolated);
            }
        }
        Ok(())
    }

    /// Looks at the cards, when one may have come, gone, or changed its link.
    fn look(&mut self) {
        let Some(wired) = &mut self.wired else { return };
        if let Err(error) = wired.look(&mut self.rtnl, clock::now()) {
            self.remark(format!("the wired card cannot be used: {error}"));
        }
        let Some(wired) = &self.wired else { return };
        let has_card = wired.has_card() || wired.address().is_some();
        match (&self.instead, has_card) {
            (None, false) => {
                let macs = self.plan.cards.iter();
                let macs = macs.filter(|card| card.mode == Mode::Bridge);
                let macs = macs.map(|card| card.mac).collect();
                let bridge = wired.bridge.clone();
                let opened = free_subnet(&addresses())
                    .ok_or_else(|| io::ErrorKind::AddrInUse.into())
                    .and_then(|net| Private::open(&mut self.rtnl, bridge, net, macs, true, false));
                match opened {
                    Ok(private) => self.instead = Some(private),
                    Err(error) => self.remark(format!("no network without a card: {error}")),
                }
            }
            (Some(private), true) => {
                // Guests hear from the wired network's server when they renew.
                let _ = self.rtnl.delete_address(private.bridge.index, private.host);
                self.instead = None;
            }
            _ => {}
        }
    }

    fn wait(&self) -> Vec<Token> {
        let now = clock::now();
        let mut waiting: Vec<(Token, BorrowedFd<'_>)> = vec![
            (Token::Bell, self.bell.as_fd()),
            (Token::Links, self.monitor.as_fd()),
        ];
        let wired = self.wired.as_ref().and_then(Wired::socket);
        waiting.extend(wired.map(|socket| (Token::Wired, socket.as_fd())));
        for (token, private) in [
            (Token::Instead, &self.instead),
            (Token::Nat, &self.nat),
            (Token::Isolated, &self.isolated),
        ] {
            waiting.extend(private.as_ref().map(|net| (token, net.socket.as_fd())));
        }
        let mut due = self.wired.as_ref().and_then(Wired::due);
        let mut until = |time: Option<Duration>| due = due.into_iter().chain(time).min();
        until(self.rules_due);
        for (index, watch) in self.watches.iter().enumerate() {
            match watch.deaf(now) {
                Some(time) => until(Some(time)),
                None => waiting.push((Token::Watch(index), watch.socket.as_fd())),
            }
        }
        // Rounded up, so that the loop does not spin through the last millisecond.
        let timeout = due.map_or(PollTimeout::NONE, |due| {
            let left = due.saturating_sub(now).as_millis();
            let left = if due <= now {
                0
            } else {
                left.saturating_add(1)
            };
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut fds: Vec<_> = waiting
            .iter()
            .map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut fds, timeout) {
            Ok(_) => fds
                .iter()
                .zip(&waiting)
                .filter(|(fd, _)| fd.any() == Some(true))
                .map(|(_, (token, _))| *token)
                .collect(),
            // Interrupted, or out of memory for a moment: look again.
            Err(_) => Vec::new(),
        }
    }

    fn handle(&mut self, token: Token) {
        let now = clock::now();
        let given = match token {
            Token::Bell => return,
            Token::Links => {
                self.monitor.drain();
                self.look();
                self.forget();
                self.change(now);
                return;
            }
            Token::Wired => {
                if let Some(wired) = &mut self.wired
                    && let Err(error) = wired.receive(&mut self.rtnl, now)
                {
                    self.remark(format!("the host's address cannot be set: {error}"));
                }
                self.change(now);
                return;
            }
            Token::Watch(index) => {
                let watch = self.watches.get_mut(index);
                if let Some((card, address)) =
                    watch.and_then(|watch| Some((watch.card, watch.hear(now)?)))
                {
                    self.learn(card, address, now);
                }
                return;
            }
            Token::Instead => self.instead.as_ref().map(Private::serve),
            Token::Nat => self.nat.as_ref().map(Private::serve),
            Token::Isolated => self.isolated.as_ref().map(Private::serve),
        };
        for (mac, address) in given.into_iter().flatten() {
            if let Some(card) = self.plan.cards.iter().position(|card| card.mac == mac) {
                self.learn(card, address, now);
            }
        }
    }

    /// A guest whose VMM is gone has no address: who asks for its ports is refused at once, and nothing for it is sent
    /// out to the wire in the hope that somebody there knows it.
    fn forget(&mut self) {
        for (tap, address) in self.taps.iter().zip(&mut self.addresses) {
            if address.is_some() && !links::find(tap).is_some_and(|link| link.carrier) {
                *address = None;
            }
        }
    }

    fn learn(&mut self, card: usize, address: Ipv4Addr, now: Duration) {
        if let Some(known) = self.addresses.get_mut(card)
            && *known != Some(address)
        {
            *known = Some(address);
            self.change(now);
        }
    }

    /// The rules may have to change: soon, but not too often.
    fn change(&mut self, now: Duration) {
        let earliest = self.rules_set.map_or(now, |set| set + RULES_PAUSE);
        if self.rules_due.is_none() {
            self.rules_due = Some(earliest.max(now));
        }
    }

    /// Sets the rules and tells the news, when that is due.
    fn settle(&mut self, now: Duration) {
        if self.rules_due.is_none_or(|due| due > now) {
            return;
        }
        self.rules_due = None;
        self.rules_set = Some(now);
        let shown: Vec<_> = (0..self.plan.cards.len())
            .map(|card| self.usable(card))
            .collect();
        if let Err(error) = self.set_rules(&shown) {
            self.remark(format!(
                "no ports are published and no nat network leads out: {error}"
            ));
        }
        for (card, address) in shown.iter().enumerate() {
            if self.told.get(card) != Some(address)
                && let Some(card) = self.plan.cards.get(card)
            {
                (self.news)(News::Address {
                    guest: card.guest,
                    mac: card.mac,
                    address: *address,
                });
            }
        }
        self.told = shown;
        let state = self.describe();
        if state != self.told_state {
            (self.news)(News::State(state.clone()));
            self.told_state = state;
        }
    }

    /// The address of a card, if it can be one on its network: what a guest claims is not taken on trust.
    fn usable(&self, card: usize) -> Option<Ipv4Addr> {
        let address = (*self.addresses.get(card)?)?;
        let mode = self.plan.cards.get(card)?.mode;
        let host = match mode {
            Mode::Bridge => match &self.instead {
                Some(private) => Some(private.host),
                None => self.wired.as_ref()?.address(),
            },
            Mode::Nat => self.nat.as_ref().map(|net| net.host),
            Mode::Isolated => self.isolated.as_ref().map(|net| net.host),
        }?;
        let router = self.wired.as_ref().and_then(Wired::router);
        let foreign = host.has_host(address) && address != host.address;
        (foreign && router != Some(address)).then_some(address)
    }

    fn set_rules(&mut self, addresses_of_cards: &[Option<Ipv4Addr>]) -> io::Result<()> {
        let net_of = |mode: Mode| match mode {
            Mode::Bridge => self.wired.as_ref().map(|net| Net::Wired {
                bridge: net.bridge.index,
            }),
            Mode::Nat => self.nat.as_ref().map(|net| Net::Nat {
                bridge: net.bridge.index,
                host: net.host,
            }),
            Mode::Isolated => None,
        };
        let nets: Vec<_> = [Mode::Bridge, Mode::Nat]
            .into_iter()
            .filter_map(net_of)
            .collect();
        let forwards: Vec<_> = self
            .plan
            .published
            .iter()
            .filter_map(|(card, publish)| {
                Some(Forward {
                    publish: *publish,
                    guest: (*addresses_of_cards.get(*card)?)?,
                    net: net_of(self.plan.cards.get(*card)?.mode)?,
                })
            })
            .collect();
        let host: Vec<_> = addresses()
            .iter()
            .map(|subnet| subnet.address)
            .filter(|address| !address.is_loopback())
            .collect();
        let leased = self.wired.as_ref().map(Wired::dns).unwrap_or_default();
        let resolver = resolvers::choose(self.place, &self.plan.config.dns, leased);
        let rules = rules(&nets, &forwards, &host, resolver);
        if rules.is_empty() && self.table.is_none() {
            return Ok(());
        }
        if self.forwarding.is_none() {
            self.forwarding = Some(bridge::set_option(FORWARDING, "1")?);
        }
        let name = self.name();
        let table = match &mut self.table {
            Some(table) => table,
            none => none.insert(Table::open(&name)?),
        };
        table.set(rules)
    }

    /// A name for our table that no other machine on this host has: that of our first bridge.
    fn name(&self) -> String {
        let wired = self.wired.as_ref().map(|net| &net.bridge);
        let private = [&self.nat, &self.isolated];
        let private = private.into_iter().flatten().map(|net| &net.bridge);
        let bridge = wired.into_iter().chain(private).next();
        bridge.map_or_else(|| bridge::PREFIX.to_owned(), |link| link.name.clone())
    }

    fn describe(&self) -> String {
        let mut lines = Vec::new();
        if let Some(wired) = &self.wired {
            lines.push(match &self.instead {
                None => format!("{}: {}", wired.bridge.name, wired.describe()),
                Some(private) => format!(
                    "{}: no wired card; guests among themselves, {}",
                    wired.bridge.name, private.host
                ),
            });
        }
        if let Some(nat) = &self.nat {
            lines.push(format!("{}: nat, {}", nat.bridge.name, nat.host));
        }
        if let Some(isolated) = &self.isolated {
            let subnet = Subnet {
                address: isolated.host.network(),
                ..isolated.host
            };
            lines.push(format!("{}: isolated, {subnet}", isolated.bridge.name));
        }
        lines.join("\n")
    }

    /// Says what is wrong, once.
    fn remark(&mut self, text: String) {
        /// More different mistakes than there are; a message with a changing part is told no more often.
        const MAX_REMARKS: usize = 20;
        if self.remarked.len() < MAX_REMARKS && !self.remarked.contains(&text) {
            (self.news)(News::Remark(format!("network: {text}")));
            self.remarked.push(text);
        }
    }

    /// Leaves an ordinary Linux as it was. The machine in the ROM is switched off next.
    fn close(mut self) {
        if self.place == Place::Rom {
            return;
        }
        self.table = None;
        if let Some(before) = self.forwarding.take() {
            let _ = bridge::set_option(FORWARDING, &before);
        }
        let private = [self.nat.take(), self.isolated.take()];
        let bridges = private.into_iter().flatten().map(|net| net.bridge.index);
        let taps = self.taps.iter().filter_map(|tap| links::find(tap));
        for index in taps.map(|tap| tap.index).chain(bridges) {
            // What is gone already need not go.
            let _ = self.rtnl.delete(index);
        }
    }
}

/// The host's IPv4 addresses.
fn addresses() -> Vec<Subnet> {
    let all = getifaddrs().into_iter().flatten();
    all.filter_map(|entry| {
        let address = entry.address?.as_sockaddr_in()?.ip();
        let mask = entry.netmask?.as_sockaddr_in()?.ip();
        Subnet::with_mask(address, mask)
    })
    .collect()
}
