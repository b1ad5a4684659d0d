//! The guests' networks: bridges, taps, the host's address, DHCP, and published ports.
//!
//! A guest's card is a tap. Taps are made before the first guest starts; everything else is done by a thread
//! ([`service`]) beside the guests, which find a network when it is there. Each [`crate::config::Mode`] in use has a bridge:
//!
//! - *bridge* ([`wired`]): the host's wired card is a port like the guests' taps; the host's own address, from the DHCP
//!   client, is on the bridge. Without any card, the host serves DHCP there itself.
//! - *nat*, *isolated* ([`private`]): the host's DHCP server, and for nat the way out.
//!
//! Published ports, nat and name queries of guests behind the host are rules of the kernel's packet filter ([`rules`],
//! [`nft`]) that follow the addresses; no packet of theirs comes through this process.

mod bridge;
mod dhcp;
mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod links;
mod netlink;
mod nft;
mod packet;
mod plan;
mod private;
mod resolvers;
mod rtnl;
mod rules;
mod service;
mod tap;
mod watch;
mod wired;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::address::Mac;
use crate::config::Machine;
use plan::{Card, Plan};
use service::Service;

/// Where this host runs: what may be done with its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The machine is ours, cards and all.
    Rom,
    /// Somebody's Linux: its cards and addresses are left alone, and nothing stays behind.
    Linux,
}

/// What the networks have to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A guest's card has another address.
    Address {
        /// The guest's index in the machine file.
        guest: usize,
        /// The card.
        mac: Mac,
        /// Its address.
        address: Option<Ipv4Addr>,
    },
    /// The networks in words, a line for each.
    State(String),
    /// Something is wrong.
    Remark(String),
}

/// A guest's end of a network, as its VMM is to open it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// Name of the interface.
    pub name: String,
    /// The guest's hardware address.
    pub mac: Mac,
    guest: usize,
}

/// The networks of a machine. Dropping it takes them down.
#[derive(Debug, Default)]
pub struct Networks {
    taps: Vec<Tap>,
    /// Taps that were there before, of guests that run.
    kept: HashMap<Mac, String>,
    /// How the cards were planned, for those that come later.
    cards: Vec<Card>,
    names: [String; 2],
    thread: Option<Keeper>,
}

/// The thread, and the way to it: a card that comes with its tap, then the bell. It ends when the way does.
#[derive(Debug)]
struct Keeper {
    thread: JoinHandle<()>,
    orders: Sender<(Card, String)>,
    bell: Arc<EventFd>,
}

impl Networks {
    /// Makes the taps, but for those that are `kept` because guests have them, and has a thread do the rest. Whatever fails is told as news; the guests run nevertheless.
    pub fn start(
        machine: &Machine,
        place: Place,
        kept: HashMap<Mac, String>,
        news: impl Fn(News) + Clone + Send + 'static,
    ) -> Self {
        let Some(config) = &machine.network else {
            news(News::Remark("network: guests have none".to_owned()));
            return Self::default();
        };
        let board = board();
        let plan = plan::plan(machine, config, place, &board);
        for remark in &plan.remarks {
            news(News::Remark(format!("network: {remark}")));
        }
        if plan.cards.is_empty() && place == Place::Linux {
            return Self::default();
        }
        let told = news.clone();
        let names = [board, machine.name.clone()];
        match Self::try_start(plan, place, kept, news) {
            Ok(mut networks) => {
                networks.names = names;
                networks
            }
            Err(error) => {
                let hint = match error.kind() {
                    io::ErrorKind::PermissionDenied => "; root may",
                    _ => "",
                };
                told(News::Remark(format!(
                    "network: guests have none, it cannot be set up: {error}{hint}"
                )));
                Self::default()
            }
        }
    }

    fn try_start(
        plan: Plan,
        place: Place,
        kept: HashMap<Mac, String>,
        news: impl Fn(News) + Send + 'static,
    ) -> io::Result<Self> {
        if place == Place::Rom {
            bridge::clear(&mut rtnl::Rtnl::open()?, |tap| {
                kept.values().any(|name| name == tap)
            });
        }
        let mut taps: Vec<Tap> = Vec::new();
        let cards = plan.cards.clone();
        for card in &cards {
            match card.tap(&kept) {
                Ok(tap) => taps.push(tap),
                Err(error) => {
                    remove(&taps);
                    return Err(error);
                }
            }
        }
        let names = taps.iter().map(|tap| tap.name.clone()).collect();
        let bell = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC,
        )?);
        let (orders, come) = channel();
        let thread = Service::new(
            plan,
            names,
            place,
            (come, Arc::clone(&bell)),
            Box::new(news),
        )
        .and_then(|service| thread::Builder::new().spawn(move || service.run()));
        match thread {
            Ok(thread) => Ok(Self {
                taps,
                cards,
                kept,
                names: Default::default(),
                thread: Some(Keeper {
                    thread,
                    orders,
                    bell,
                }),
            }),
            Err(error) => {
                remove(&taps);
                Err(error)
            }
        }
    }

    /// Gives a guest that came later cards on the networks of `like`, another guest.
    ///
    /// # Errors
    /// The kernel refused a tap.
    pub fn add(&mut self, guest: usize, name: &str, like: usize) -> io::Result<()> {
        let Some(keeper) = &self.thread else {
            return Ok(());
        };
        let modes: Vec<_> = self
            .cards
            .iter()
            .filter(|card| card.guest == like)
            .collect();
        let modes: Vec<_> = modes.into_iter().map(|card| card.mode).collect();
        for (index, mode) in modes.iter().enumerate() {
            let [board, machine] = &self.names;
            let mut tries = (index..usize::MAX).step_by(modes.len());
            let mac = tries.find_map(|index| {
                let mac = Mac::derive(board, machine, name, index);
                (self.cards.iter().all(|card| card.mac != mac)).then_some(mac)
            });
            let card = Card {
                guest,
                mode: *mode,
                mac: mac.ok_or(io::ErrorKind::AddrInUse)?,
            };
            let tap = card.tap(&self.kept)?;
            // Without a thread the networks are gone, and the guests go with them.
            let _ = keeper.orders.send((card.clone(), tap.name.clone()));
            self.cards.push(card);
            self.taps.push(tap);
        }
        let _ = keeper.bell.write(1);
        Ok(())
    }

    /// All taps by their hardware addresses, as they can be kept.
    pub(crate) fn named(&self) -> Vec<(String, String)> {
        let taps = self.taps.iter();
        taps.map(|tap| (tap.mac.to_string(), tap.name.clone()))
            .collect()
    }

    /// The taps of a guest, in the order of its cards.
    pub fn taps(&self, guest: usize) -> impl Iterator<Item = &Tap> {
        self.taps.iter().filter(move |tap| tap.guest == guest)
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        if let Some(keeper) = self.thread.take() {
            drop(keeper.orders);
            // A bell that cannot be rung is ringing already; a thread that panicked has nothing to take down.
            let _ = keeper.bell.write(1);
            let _ = keeper.thread.join();
        }
    }
}

impl Card {
    /// The tap that it is: one that is kept, or a new one.
    fn tap(&self, kept: &HashMap<Mac, String>) -> io::Result<Tap> {
        let kept = kept.get(&self.mac);
        let kept = kept.filter(|name| links::find(name).is_some());
        Ok(Tap {
            name: kept.map_or_else(tap::create, |name| Ok(name.clone()))?,
            mac: self.mac,
            guest: self.guest,
        })
    }
}

fn remove(taps: &[Tap]) {
    let Ok(mut rtnl) = rtnl::Rtnl::open() else {
        return;
    };
    for link in taps.iter().filter_map(|tap| links::find(&tap.name)) {
        // It would only be in the way by its name.
        let _ = rtnl.delete(link.index);
    }
}

/// What tells this machine from others: two of them on one network must not give their guests the same addresses.
fn board() -> String {
    let read = |path| fs::read_to_string(path).ok();
    let texts = ["/sys/class/dmi/id/product_uuid", "/etc/machine-id"].map(read);
    identity(texts.into_iter().flatten(), &links::scan())
}

/// The first of the texts that is a number of this machine's own, or else the address that its first wired card was made
/// with: firmware that was told no UUID has none to tell.
fn identity(texts: impl IntoIterator<Item = String>, links: &[links::Link]) -> String {
    let number = |text: &str| {
        let mut digits = text.chars().filter(|character| *character != '-');
        let blank = |digit| text.trim_matches([digit, '-']).is_empty();
        digits.all(|digit| digit.is_ascii_hexdigit()) && !blank('0') && !blank('f') && !blank('F')
    };
    let mut texts = texts.into_iter().map(|text| text.trim().to_owned());
    let card = || {
        let own = links.iter().filter(|link| link.wired && link.own_mac);
        own.min_by_key(|link| &link.name)
            .map(|link| link.mac.to_string())
    };
    texts
        .find(|text| number(text))
        .or_else(card)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
