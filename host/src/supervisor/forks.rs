//! Forks: guests that go on from a snapshot of another one, beside it, with its memory in common and cards of their own.

use serde_json::{Value, json};

use super::guest::Guest;
use super::inquiry::Asker;
use super::keeping::Asked;
use super::{State, Supervisor};
use crate::remote::Answer;
use crate::snapshots::{Begin, NOTE, Origin, READY, What};

/// Most forks that are made at once.
const MAX_FORKS: u32 = 100;
/// Most guests that a machine has: each is a process, and a view of the console.
const MAX_GUESTS: usize = 256;

/// Forks that wait for their snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forks {
    pub(super) asker: Asker,
    pub(super) guest: usize,
    pub(super) count: u32,
}

impl Supervisor {
    /// Makes forks of a guest: from a snapshot, or from now if it runs, or else from its newest snapshot.
    pub(super) fn fork(&mut self, forks: Forks, snapshot: Option<u64>) -> Result<(), String> {
        let count = forks.count;
        let guest = &mut self.guests[forks.guest];
        if !(1..=MAX_FORKS).contains(&count) {
            return Err(format!("one makes 1 to {MAX_FORKS} forks, not {count}"));
        }
        if guest.config.is_none() {
            let (name, why) = (&guest.name, &guest.detail);
            return Err(format!("guest '{name}' cannot run: {why}"));
        }
        let runs = guest.vm().is_some();
        let (is_ready, guest) = (guest.state == State::Ready, guest.name.clone());
        let what = if runs && snapshot.is_none() {
            let note = (NOTE.to_owned(), "to fork from".to_owned());
            let ready = is_ready.then(|| (READY.to_owned(), "yes".to_owned()));
            What::Take {
                guest,
                labels: std::iter::once(note).chain(ready).collect(),
                thinning: None,
            }
        } else {
            What::Find { guest, snapshot }
        };
        self.keeping.ask(what, Asked::Fork(forks))
    }

    /// The snapshot is known that they go on from: one that was taken says its id, one that was found is one.
    pub(super) fn fork_from(&mut self, forks: Forks, snapshot: Result<Value, String>) {
        let made = snapshot.and_then(|value| {
            let id = value.get("id").or_else(|| value.get("snapshot"));
            let id = id.and_then(Value::as_u64);
            let id = id.ok_or("the store's service named no snapshot")?;
            let names = (0..forks.count).map(|_| self.make_fork(forks.guest, id));
            let names = names.collect::<Result<Vec<_>, _>>()?;
            Ok(json!({ "forks": names, "snapshot": id }))
        });
        let answer = made.map_or_else(Answer::Error, Answer::Ok);
        self.answer(forks.asker, &answer);
    }

    fn make_fork(&mut self, origin: usize, snapshot: u64) -> Result<String, String> {
        if self.going_down.is_some() {
            return Err("the machine goes down".to_owned());
        }
        if self.guests.len() >= MAX_GUESTS {
            return Err(format!("a machine has at most {MAX_GUESTS} guests"));
        }
        let origin_name = self.guests[origin].name.clone();
        let taken = |name: &String| self.guests.iter().any(|guest| guest.name == *name);
        let mut names = (1..).map(|number: u32| format!("{origin_name}-{number}"));
        let name = names.find(|name| !taken(name)).unwrap_or_default();
        let index = self.add_fork(origin, name.clone())?;
        self.guests[index].begin = Some(Begin::From(Origin {
            snapshot,
            fork_of: Some(origin_name),
        }));
        self.start(&[index], "");
        Ok(name)
    }

    /// Adds a guest like another one.
    pub(super) fn add_fork(&mut self, origin: usize, name: String) -> Result<usize, String> {
        let guest = &self.guests[origin];
        let mut config = guest.config.clone().ok_or("it cannot run")?;
        let origin_name = guest.name.clone();
        config.name.clone_from(&name);
        config.autostart = false;
        // Each would be a full one of its own: what forks have in common is their worth.
        config.checkpoints = None;
        // A port of the host's leads to one guest.
        config.publish.clear();
        for nic in &mut config.nics {
            nic.mac = None;
        }
        let index = self.guests.len();
        (self.networks.add(index, &name, origin))
            .map_err(|error| format!("fork '{name}' gets no network card: {error}"))?;
        let channel = self.console.add_channel(&name);
        let mut fork = Guest::new(name, Some(config), channel);
        fork.fork_of = Some(origin_name);
        self.guests.push(fork);
        Ok(index)
    }
}
