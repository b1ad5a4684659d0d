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

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::address::Mac;
use crate::config::Machine;
use plan::Plan;
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
    thread: Option<(JoinHandle<()>, Arc<EventFd>)>,
}

impl Networks {
    /// Makes the taps and has a thread do the rest. Whatever fails is told as news; the guests run nevertheless.
    pub fn start(
        machine: &Machine,
        place: Place,
        news: impl Fn(News) + Clone + Send + 'static,
    ) -> Self {
        let Some(config) = &machine.network else {
            news(News::Remark("network: guests have none".to_owned()));
            return Self::default();
        };
        let plan = plan::plan(machine, config, place, &board());
        for remark in &plan.remarks {
            news(News::Remark(format!("network: {remark}")));
        }
        if plan.cards.is_empty() && place == Place::Linux {
            return Self::default();
        }
        let told = news.clone();
        match Self::try_start(plan, place, news) {
            Ok(networks) => networks,
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
        news: impl Fn(News) + Send + 'static,
    ) -> io::Result<Self> {
        if place == Place::Rom {
            bridge::clear(&mut rtnl::Rtnl::open()?);
        }
        let mut taps: Vec<Tap> = Vec::new();
        for card in &plan.cards {
            match tap::create() {
                Ok(name) => taps.push(Tap {
                    name,
                    mac: card.mac,
                    guest: card.guest,
                }),
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
        let thread = Service::new(plan, names, place, Arc::clone(&bell), Box::new(news))
            .and_then(|service| thread::Builder::new().spawn(move || service.run()));
        match thread {
            Ok(thread) => Ok(Self {
                taps,
                thread: Some((thread, bell)),
            }),
            Err(error) => {
                remove(&taps);
                Err(error)
            }
        }
    }

    /// The taps of a guest, in the order of its cards.
    pub fn taps(&self, guest: usize) -> impl Iterator<Item = &Tap> {
        self.taps.iter().filter(move |tap| tap.guest == guest)
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        if let Some((thread, bell)) = self.thread.take() {
            // A bell that cannot be rung is ringing already; a thread that panicked has nothing to take down.
            let _ = bell.write(1);
            let _ = thread.join();
        }
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
