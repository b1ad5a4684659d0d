//! What is said of the guests to people and programs, and what either may have them do.

use serde_json::{Value, json};

use super::guest::{Guest, Phase};
use super::inquiry::Asker;
use super::lifecycle::State;
use super::{Supervisor, clock};
use crate::remote::text::{guests_as_text, log_as_text};
use crate::remote::{Act, Answer};
use crate::snapshots::Begin;

impl Supervisor {
    /// Does to a guest what somebody asks for. What it comes to is said on the console.
    pub(super) fn act(&mut self, index: usize, act: Act) -> Result<(), String> {
        let now = clock::now();
        let going_down = self.going_down.is_some();
        let guest = &mut self.guests[index];
        let name = guest.name.clone();
        let is_up = guest.vm().is_some();
        match act {
            Act::Kill => match guest.vm() {
                Some(vm) => vm.kill(now),
                None => self.stop(index, now),
            },
            Act::Stop => {
                guest.start_when_down = false;
                self.stop(index, now);
            }
            Act::Restart if is_up => {
                guest.start_when_down = true;
                self.stop(index, now);
            }
            _ if going_down => return Err("the machine goes down".to_owned()),
            _ if guest.config.is_none() => {
                return Err(format!("guest '{name}' cannot run: {}", guest.detail));
            }
            Act::FactoryReset => {
                if !self.keeping.has_disks() {
                    return Err("without [store] a guest's images are what it writes to".to_owned());
                }
                self.forgive(index);
                let guest = &mut self.guests[index];
                guest.begin = Some(Begin::Factory {
                    reason: "factory reset".to_owned(),
                });
                match &mut guest.phase {
                    Phase::Up(vm) => {
                        guest.start_when_down = true;
                        vm.kill(now);
                    }
                    Phase::Preparing | Phase::Waiting(_) | Phase::Down => self.start(&[index], ""),
                }
            }
            Act::Start if is_up => return Err(format!("guest '{name}' runs")),
            // A restart of a guest that is down is a start.
            Act::Start | Act::Restart => {
                if !matches!(guest.phase, Phase::Preparing) {
                    self.forgive(index);
                    self.start(&[index], "");
                }
            }
        }
        Ok(())
    }

    /// [`Self::act`], for another process.
    pub(super) fn act_for(&mut self, asker: Asker, guest: &str, act: Act) -> Result<(), String> {
        let index = self.find(guest)?;
        self.act(index, act)?;
        let done = json!({ "guest": self.guests[index].name, "asked": act });
        self.answer(asker, &Answer::Ok(done));
        Ok(())
    }

    /// All guests, or one of them.
    pub(super) fn described(&self, only: Option<&str>) -> Result<Value, String> {
        let only = only.map(|name| self.find(name)).transpose()?;
        let wanted = |index: &usize| only.is_none_or(|only| only == *index);
        let all = (0..self.guests.len()).filter(wanted);
        let all: Vec<_> = all.map(|index| self.describe(index)).collect();
        Ok(json!({ "guests": all, "in_full": only.is_some() }))
    }

    pub(super) fn describe(&self, index: usize) -> Value {
        let guest = &self.guests[index];
        let healing = &guest.healing;
        let config = guest.config.as_ref();
        let now = clock::now();
        let good = healing.last_good.map(|(snapshot, taken)| {
            let age = now.saturating_sub(taken).as_secs();
            json!({ "snapshot": snapshot, "age_s": age })
        });
        let address = guest.addresses.iter().map(|(_, address)| address).min();
        json!({
            "number": guest.channel,
            "name": guest.name,
            "state": guest.state.to_string(),
            "detail": guest.detail,
            "vcpus": config.map(|config| config.vcpus),
            "memory_mib": config.map(|config| config.memory_mib),
            "address": address.map(ToString::to_string),
            "health": health(guest),
            "last_good": good,
            "falls": healing.falls,
            "stands": healing.stands,
            "falls_in_a_row": healing.ladder.falls(),
            "heals": self.heals(index),
            "checkpoint_seconds": config
                .and_then(|config| config.checkpoints)
                .map(|checkpoints| checkpoints.every.as_secs()),
        })
    }

    /// What befell the guests, or what the VMM of one said.
    pub(super) fn log_of(&self, guest: Option<&str>) -> Result<Value, String> {
        let lines: Vec<_> = match guest {
            Some(name) => {
                let guest = &self.guests[self.find(name)?];
                guest
                    .log
                    .iter()
                    .map(|line| json!({ "text": line }))
                    .collect()
            }
            None => {
                let line = |(when, text): &(std::time::Duration, String)| {
                    let ms = u64::try_from(when.as_millis()).unwrap_or(u64::MAX);
                    json!({ "ms": ms, "text": text })
                };
                self.journal.iter().map(line).collect()
            }
        };
        Ok(json!({ "log": lines }))
    }

    /// The guests, as a table.
    pub(super) fn list(&self) -> String {
        let mut table = guests_as_text(&self.described(None).unwrap_or_default());
        if self.guests.iter().all(|guest| guest.state == State::Ready) && !self.guests.is_empty() {
            table.push_str("\nall guests are ready");
        }
        table
    }

    /// One guest, in full.
    pub(super) fn show(&self, name: &str) -> Result<String, String> {
        Ok(guests_as_text(&self.described(Some(name))?))
    }

    /// The log, in lines.
    pub(super) fn log_text(&self, guest: Option<&str>) -> Result<String, String> {
        Ok(log_as_text(&self.log_of(guest)?))
    }
}

/// How a guest is, as far as it is known.
fn health(guest: &Guest) -> String {
    let words = match (guest.state, guest.healing.is_heard()) {
        (State::Ready, true) if guest.agent.is_heard() => return guest.agent.words(),
        (State::Ready, true) => "gives signs of life",
        (State::Ready, false) => "watched from outside only",
        (State::Unhealthy, _) => "fallen",
        (State::Failed, _) => "fallen for good",
        (State::Starting | State::Restoring | State::Stopped, _) => "",
    };
    words.to_owned()
}
