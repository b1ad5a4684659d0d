//! What interfaces there are, by sysfs.

use std::fs;
use std::path::Path;

use crate::address::Mac;

const FOLDER: &str = "/sys/class/net";
/// `ARPHRD_ETHER`.
const ETHERNET: &str = "1";

/// An Ethernet interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// Its hardware address.
    pub mac: Mac,
    /// That address is the one it was made with, neither drawn by lot nor set later.
    pub own_mac: bool,
    /// It is on and its cable leads somewhere.
    pub carrier: bool,
    /// It is a wired card, not something that software made.
    pub wired: bool,
    /// It is a port of a bridge.
    pub bridged: bool,
}

/// All Ethernet interfaces, by number: the order in which the kernel found them.
#[must_use]
pub fn scan() -> Vec<Link> {
    let entries = fs::read_dir(FOLDER).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut links: Vec<_> = names.filter_map(|name| find(&name)).collect();
    links.sort_by_key(|link| link.index);
    links
}

/// One interface; `None` if it is gone or no Ethernet.
#[must_use]
pub fn find(name: &str) -> Option<Link> {
    let folder = Path::new(FOLDER).join(name);
    let read = |file: &str| {
        let text = fs::read_to_string(folder.join(file)).ok()?;
        Some(text.trim().to_owned())
    };
    if read("type")? != ETHERNET {
        return None;
    }
    let wireless = ["wireless", "phy80211"]
        .iter()
        .any(|file| folder.join(file).exists());
    Some(Link {
        name: name.to_owned(),
        index: read("ifindex")?.parse().ok()?,
        mac: read("address")?.parse().ok()?,
        // NET_ADDR_PERM of linux/netdevice.h.
        own_mac: read("addr_assign_type").is_some_and(|kind| kind == "0"),
        // Reading it from an interface that is off is an error.
        carrier: read("carrier").is_some_and(|carrier| carrier == "1"),
        wired: folder.join("device").exists() && !wireless,
        bridged: folder.join("brport").exists(),
    })
}

/// The card to use: the present one while it has a link, or else the first that has one.
#[must_use]
pub fn choose(present: Option<u32>, cards: &[Link]) -> Option<&Link> {
    let present = cards.iter().find(|card| Some(card.index) == present);
    let with_link = || cards.iter().find(|card| card.carrier);
    present
        .filter(|card| card.carrier)
        .or_else(with_link)
        .or(present)
}

/// Which interfaces may be the host's way out: the one that was named, or every wired card.
#[must_use]
pub fn cards(links: Vec<Link>, named: Option<&str>) -> Vec<Link> {
    let wanted = |link: &Link| match named {
        Some(name) => link.name == name,
        None => link.wired,
    };
    links.into_iter().filter(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(index: u32, carrier: bool) -> Link {
        Link {
            name: format!("eth{index}"),
            index,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            own_mac: true,
            carrier,
            wired: true,
            bridged: false,
        }
    }

    #[test]
    fn the_first_card_with_a_link_is_kept_while_it_has_one() {
        let index = |present, cards: &[Link]| choose(present, cards).map(|card| card.index);
        assert_eq!(index(None, &[]), None);
        assert_eq!(index(None, &[card(1, false), card(2, false)]), None);
        assert_eq!(index(None, &[card(1, false), card(2, true)]), Some(2));
        assert_eq!(index(Some(2), &[card(1, true), card(2, true)]), Some(2));
        assert_eq!(index(Some(2), &[card(1, true), card(2, false)]), Some(1));
        assert_eq!(index(Some(2), &[card(1, false), card(2, false)]), Some(2));
        assert_eq!(index(Some(3), &[card(1, false)]), None);
    }

    #[test]
    fn a_named_card_is_the_only_one() {
        let links = vec![card(1, true), card(2, true)];
        assert_eq!(cards(links.clone(), Some("eth2")).len(), 1);
        assert_eq!(cards(links, Some("eth9")).len(), 0);
    }
}
