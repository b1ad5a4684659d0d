//! Snapshots of guests that run, and guests that go on from one: what somebody asks for, and what is due.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::Supervisor;
use super::guest::Phase;
use super::inquiry::Asker;
use super::keeping::Asked;
use super::lifecycle::State;
use crate::clock;
use crate::remote::Answer;
use crate::snapshots::{Begin, CHECKPOINT, Found, NOTE, Origin, READY, StoreCommand, What};

/// After a checkpoint a guest has none for so many times as long as that took: a machine that can hardly keep up is not to be
/// busy with checkpoints alone.
const REST: u32 = 3;

/// Labels of a snapshot.
pub(super) fn labels<const N: usize>(names: [&str; N]) -> BTreeMap<String, String> {
    names.map(|it| (it.to_owned(), "yes".to_owned())).into()
}

impl Supervisor {
    /// Takes a snapshot of a guest that runs.
    pub(super) fn take_snapshot(
        &mut self,
        asker: Asker,
        index: usize,
        note: Option<String>,
    ) -> Result<(), String> {
        let guest = &mut self.guests[index];
        if guest.vm().is_none() {
            return Err(format!("guest '{}' does not run", guest.name));
        }
        let mut labels = BTreeMap::new();
        labels.extend(note.map(|note| (NOTE.to_owned(), note)));
        let ready = guest.state == State::Ready;
        if ready {
            labels.insert(READY.to_owned(), "yes".to_owned());
        }
        guest.label_agent(&mut labels);
        let what = What::Take {
            guest: guest.name.clone(),
            labels,
            thinning: None,
        };
        let about = Asked::Taken {
            asker,
            guest: index,
            begun: clock::now(),
            ready,
        };
        self.keeping.ask(what, about)
    }

    /// Takes the snapshot of a guest that is due.
    pub(super) fn checkpoint(&mut self, index: usize, now: Duration) {
        let guest = &mut self.guests[index];
        guest.next_checkpoint = None;
        let rule = guest.config.as_ref().and_then(|config| config.checkpoints);
        let Some(rule) = rule.filter(|_| guest.state == State::Ready) else {
            return;
        };
        let mut labels = labels([CHECKPOINT, READY]);
        guest.label_agent(&mut labels);
        let what = What::Take {
            guest: guest.name.clone(),
            labels,
            thinning: Some(rule.thinning),
        };
        let about = Asked::Checkpoint {
            guest: index,
            begun: now,
        };
        if let Err(reason) = self.keeping.ask(what, about) {
            self.checkpoint_done(index, now, Err(reason));
        }
    }

    /// It was taken, or not; the next is due an interval after it began.
    pub(super) fn checkpoint_done(
        &mut self,
        index: usize,
        begun: Duration,
        how: Result<u64, String>,
    ) {
        let guest = &mut self.guests[index];
        let rule = guest.config.as_ref().and_then(|config| config.checkpoints);
        if guest.state == State::Ready {
            let now = clock::now();
            let rest = REST * now.saturating_sub(begun);
            guest.next_checkpoint = rule.map(|rule| (begun + rule.every).max(now + rest));
        }
        // One that ended meanwhile has other troubles.
        if guest.vm().is_none() {
            return;
        }
        if let Ok(id) = how {
            let ready = guest.state == State::Ready;
            guest.healing.taken_if(ready, id, begun);
            guest.history.taken(id);
        }
        // Said once: an interval may be a second.
        let failed = how.is_err();
        let news = std::mem::replace(&mut guest.checkpoint_failed, failed) != failed;
        let name = &guest.name;
        let line = match how {
            Err(reason) => format!("host: {name}: no checkpoint: {reason}"),
            Ok(_) => format!("host: {name}: there are checkpoints again"),
        };
        if news {
            self.console.say(&line);
        }
    }

    /// Has a guest go on from a snapshot, the newest without one. It is looked at before the guest is touched.
    pub(super) fn restore(
        &mut self,
        asker: Asker,
        index: usize,
        snapshot: Option<u64>,
    ) -> Result<(), String> {
        let guest = self.guests[index].name.clone();
        let what = What::Find { guest, snapshot };
        self.keeping.ask(
            what,
            Asked::Find {
                asker,
                guest: index,
            },
        )
    }

    pub(super) fn restore_found(&mut self, asker: Asker, index: usize, found: &Found) {
        let now = clock::now();
        for remark in &found.remarks {
            let line = format!("host: {}: {remark}", self.guests[index].name);
            self.console.say(&line);
        }
        let guest = &mut self.guests[index];
        guest.begin = Some(Begin::From(Origin {
            snapshot: found.snapshot,
            fork_of: None,
        }));
        self.restored(index, Err("another restore was asked for".to_owned()));
        let guest = &mut self.guests[index];
        guest.restore_asker = Some(asker);
        self.forgive(index);
        let guest = &mut self.guests[index];
        match &mut guest.phase {
            Phase::Up(vm) => {
                guest.start_when_down = true;
                vm.kill(now);
            }
            Phase::Preparing | Phase::Waiting(_) | Phase::Down => self.start(&[index], ""),
        }
    }

    /// Whoever asked for a restore is told how it went.
    pub(super) fn restored(&mut self, index: usize, how: Result<u64, String>) {
        let guest = &mut self.guests[index];
        let Some(asker) = guest.restore_asker.take() else {
            return;
        };
        let answer = match how {
            Ok(snapshot) => Answer::Ok(json!({ "guest": guest.name, "snapshot": snapshot })),
            Err(reason) => Answer::Error(reason),
        };
        self.answer(asker, &answer);
    }

    /// A command that only concerns what is stored.
    pub(super) fn store_command(
        &mut self,
        asker: Asker,
        command: StoreCommand,
    ) -> Result<(), String> {
        let what = What::Stored { command };
        self.keeping.ask(what, Asked::Command(asker))
    }
}
