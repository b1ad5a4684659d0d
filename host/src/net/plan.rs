//! What the machine file comes to: which card of which guest is on which network, with which hardware address.

use std::collections::HashSet;

use super::Place;
use crate::address::Mac;
use crate::config::{Machine, Mode, NetworkConfig, Publish};

/// The plan.
#[derive(Debug)]
pub struct Plan {
    /// What the host is called.
    pub name: String,
    /// The machine's network.
    pub config: NetworkConfig,
    /// The cards of all guests.
    pub cards: Vec<Card>,
    /// The published ports, each with the index of its card.
    pub published: Vec<(usize, Publish)>,
    /// What cannot be as the file says.
    pub remarks: Vec<String>,
}

/// A card of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// The guest's index in the machine file.
    pub guest: usize,
    /// What it is connected to.
    pub mode: Mode,
    /// Its hardware address.
    pub mac: Mac,
}

/// Makes the plan. `board` tells this machine from others with the same names.
#[must_use]
pub fn plan(machine: &Machine, config: &NetworkConfig, place: Place, board: &str) -> Plan {
    let mut plan = Plan {
        name: machine.name.clone(),
        config: config.clone(),
        cards: Vec::new(),
        published: Vec::new(),
        remarks: Vec::new(),
    };
    let guests: Vec<_> = machine
        .guests
        .iter()
        .enumerate()
        .filter_map(|(index, entry)| Some((index, entry.config.as_ref().ok()?)))
        .collect();
    let mut taken: HashSet<Mac> = guests
        .iter()
        .flat_map(|(_, guest)| guest.nics.iter().filter_map(|nic| nic.mac))
        .collect();
    let usual = config.mode.unwrap_or(match place {
        Place::Rom => Mode::Bridge,
        Place::Linux => Mode::Nat,
    });
    let mut moved = false;
    for (guest, config) in guests {
        let first = plan.cards.len();
        for (index, nic) in config.nics.iter().enumerate() {
            let mut mode = nic.mode.unwrap_or(usual);
            if mode == Mode::Bridge && place == Place::Linux {
                // The user's own cards are left alone.
                moved = true;
                mode = Mode::Nat;
            }
            let mac = nic.mac.unwrap_or_else(|| {
                // Two that are equal are as good as impossible; but then the later one gives way.
                let mut tries = (0..usize::MAX).step_by(config.nics.len());
                let free = tries.find_map(|step| {
                    let mac = Mac::derive(board, &machine.name, &config.name, index + step);
                    (!taken.contains(&mac)).then_some(mac)
                });
                free.unwrap_or(Mac([2, 0, 0, 0, 0, 1]))
            });
            taken.insert(mac);
            plan.cards.push(Card { guest, mode, mac });
        }
        match plan.cards.get(first).map(|card| card.mode) {
            Some(Mode::Isolated) if !config.publish.is_empty() => plan.remarks.push(format!(
                "the ports of guest '{}' are not published: its network is isolated",
                config.name
            )),
            Some(_) => {
                let published = config.publish.iter().map(|port| (first, *port));
                plan.published.extend(published);
            }
            None => {}
        }
    }
    if moved && config.mode.is_some() {
        plan.remarks.push(
            "on an ordinary Linux its network cards are left alone: guests are on a nat network"
                .to_owned(),
        );
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;

    fn machine(rest: &str) -> Machine {
        let guest = |name: &str| {
            format!(
                "[[guest]]\nname = \"{name}\"\nmemory = 64\nkernel = \"k\"\nready = {{ boot-timer = true }}\n"
            )
        };
        let text = format!("{}{}{rest}", guest("a"), guest("b"));
        Machine::parse("m", &text, Limits::default()).unwrap()
    }

    fn planned(machine: &Machine, place: Place) -> Plan {
        plan(machine, machine.network.as_ref().unwrap(), place, "board")
    }

    #[test]
    fn guests_are_on_the_wire_in_the_rom_and_behind_nat_elsewhere() {
        let machine = machine("");
        let rom = planned(&machine, Place::Rom);
        assert_eq!(rom.cards.len(), 2);
        assert!(rom.cards.iter().all(|card| card.mode == Mode::Bridge));
        let linux = planned(&machine, Place::Linux);
        assert!(linux.cards.iter().all(|card| card.mode == Mode::Nat));
        assert!(linux.remarks.is_empty());
    }

    #[test]
    fn hardware_addresses_are_the_same_every_time_and_in_every_place() {
        let machine = machine("");
        let macs = |place| -> Vec<Mac> {
            let plan = planned(&machine, place);
            plan.cards.iter().map(|card| card.mac).collect()
        };
        assert_eq!(macs(Place::Rom), macs(Place::Linux));
        assert_ne!(macs(Place::Rom)[0], macs(Place::Rom)[1]);
    }

    #[test]
    fn an_address_in_the_file_beats_a_derived_one_that_is_equal() {
        let derived = planned(&machine(""), Place::Rom).cards[0].mac;
        let machine = machine(&format!("[[guest.net]]\nmac = \"{derived}\"\n"));
        let plan = planned(&machine, Place::Rom);
        assert_eq!(plan.cards[1].mac, derived);
        assert_ne!(plan.cards[0].mac, derived);
    }

    #[test]
    fn ports_lead_to_the_first_card() {
        let machine = machine(
            "[[guest.net]]\nmode = \"nat\"\n[[guest.net]]\n[[guest.publish]]\nport = 8080\nto = 80\n",
        );
        let plan = planned(&machine, Place::Rom);
        assert_eq!(plan.cards.len(), 3);
        assert_eq!((plan.published[0].0, plan.published[0].1.to), (1, 80));
    }
}
