//! Questions to VMMs: asked of several at once, answered when all have answered or their time is up.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Supervisor;
use super::forks::Forks;
use super::guest::Guest;
use super::sampling::Counted;
use crate::clock;
use crate::console::BELL;
use crate::remote::{Answer, CallerId, Command};
use crate::snapshots::text::{amount, as_text};

/// How long VMMs have for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Who wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// A user at this head of the console.
    Head(usize),
    /// Another process.
    Caller(CallerId),
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// What VMMs have counted; one that does not say spoils the answer.
    Metrics,
    /// What the guests are at; VMMs that do not say are left out.
    Sample,
}

/// A question that is not answered yet.
#[derive(Debug)]
pub(super) struct Inquiry {
    pub(super) asker: Asker,
    pub(super) question: Question,
    /// Guests whose answers are missing.
    pub(super) missing: Vec<usize>,
    /// By guest.
    pub(super) answers: Map<String, Value>,
    pub(super) until: Duration,
}

impl Inquiry {
    pub(super) fn until(&self) -> Duration {
        self.until
    }
}

impl Supervisor {
    /// Carries out a command of another process.
    pub(super) fn remote(&mut self, caller: CallerId, command: Result<Command, String>) {
        let asker = Asker::Caller(caller);
        let done = command.and_then(|command| match command {
            Command::Metrics { guest } => self.ask_metrics(asker, guest.as_deref()),
            Command::Snapshot { guest, note } => {
                let index = self.find(&guest)?;
                self.take_snapshot(asker, index, note)
            }
            Command::Restore { guest, snapshot } => {
                let index = self.find(&guest)?;
                self.restore(asker, index, snapshot)
            }
            Command::Fork {
                guest,
                snapshot,
                count,
            } => {
                let guest = self.find(&guest)?;
                let forks = Forks {
                    asker,
                    guest,
                    count,
                };
                self.fork(forks, snapshot)
            }
            Command::Guests { guest } => {
                let guests = self.described(guest.as_deref())?;
                self.answer(asker, &Answer::Ok(guests));
                Ok(())
            }
            Command::Console { guest } => self.attach(caller, &guest),
            Command::Sample => {
                self.ask_sample(asker);
                Ok(())
            }
            Command::Act { guest, act } => self.act_for(asker, &guest, act),
            Command::Log { guest } => {
                let log = self.log_of(guest.as_deref())?;
                self.answer(asker, &Answer::Ok(log));
                Ok(())
            }
            Command::Store { what } => self.store_command(asker, what),
        });
        if let Err(reason) = done {
            self.answer(asker, &Answer::Error(reason));
        }
    }

    /// Makes another process the console of a guest, beside this host's.
    fn attach(&mut self, caller: CallerId, guest: &str) -> Result<(), String> {
        let guest = &self.guests[self.find(guest)?];
        let answer = json!({ "guest": guest.name, "number": guest.channel });
        let backlog = self.console.backlog(guest.channel);
        if let Some(server) = &mut self.server {
            server.attach(caller, guest.channel)?;
            server.answer(caller, &Answer::Ok(answer));
            server.show(caller, &backlog);
        }
        Ok(())
    }

    /// Keys of such a process.
    pub(super) fn remote_keys(&mut self, caller: CallerId, channel: usize, bytes: &[u8]) {
        let mut guests = self.guests.iter_mut();
        let guest = guests.find(|guest| guest.channel == channel);
        let vm = guest.and_then(Guest::vm);
        let taken = vm.is_some_and(|vm| vm.type_in(bytes));
        if let (false, Some(server)) = (taken, &mut self.server) {
            server.show(caller, BELL);
        }
    }

    /// Asks the VMM of `guest`, or of all guests that run, what it has counted.
    pub(super) fn ask_metrics(&mut self, asker: Asker, guest: Option<&str>) -> Result<(), String> {
        let wanted = match guest {
            Some(name) => {
                let index = self.find(name)?;
                if self.guests[index].vm().is_none() {
                    let name = &self.guests[index].name;
                    return Err(format!("guest '{name}' does not run"));
                }
                vec![index]
            }
            None => (0..self.guests.len()).collect(),
        };
        let mut missing = Vec::new();
        for index in wanted {
            if let Some(vm) = self.guests[index].vm() {
                vm.ask_metrics();
                missing.push(index);
            }
        }
        self.inquiries.push(Inquiry {
            asker,
            question: Question::Metrics,
            missing,
            answers: Map::new(),
            until: clock::now() + PATIENCE,
        });
        self.settle_inquiries();
        Ok(())
    }

    /// A VMM has said what it has counted.
    pub(super) fn counted(&mut self, index: usize, metrics: &Value) {
        let guest = &mut self.guests[index];
        guest.healing.vmm_answers();
        guest.counted = Some(Counted::read(metrics, clock::now()));
        if let Some(vm) = guest.vm() {
            vm.answered();
        }
        let name = &self.guests[index].name;
        for inquiry in &mut self.inquiries {
            if let Some(place) = inquiry.missing.iter().position(|other| *other == index) {
                inquiry.missing.swap_remove(place);
                if inquiry.question == Question::Metrics {
                    inquiry.answers.insert(name.clone(), metrics.clone());
                }
            }
        }
        self.settle_inquiries();
    }

    /// Answers what can be answered, or has waited long enough.
    pub(super) fn settle_inquiries(&mut self) {
        let now = clock::now();
        let guests = &mut self.guests;
        for inquiry in &mut self.inquiries {
            // The VMM may have ended meanwhile.
            inquiry
                .missing
                .retain(|index| guests.get_mut(*index).and_then(Guest::vm).is_some());
        }
        let over = |inquiry: &mut Inquiry| inquiry.missing.is_empty() || inquiry.until <= now;
        let settled: Vec<_> = self.inquiries.extract_if(.., over).collect();
        for inquiry in settled {
            let silent: Vec<_> = inquiry
                .missing
                .iter()
                .map(|index| self.guests[*index].name.as_str())
                .collect();
            let answer = if inquiry.question == Question::Sample {
                Answer::Ok(self.sample())
            } else if silent.is_empty() {
                Answer::Ok(inquiry.answers.into())
            } else {
                let names = silent.join(", ");
                Answer::Error(format!("no answer from the VMM of {names}"))
            };
            self.answer(inquiry.asker, &answer);
        }
    }

    pub(super) fn answer(&mut self, asker: Asker, answer: &Answer) {
        match asker {
            Asker::Head(head) => {
                let text = match answer {
                    Answer::Ok(value) => as_text(value),
                    Answer::Error(reason) => reason.clone(),
                    Answer::Progress { what, done, total } => amount(what, *done, *total),
                };
                self.console.reply(head, &text);
            }
            Asker::Caller(caller) => {
                if let Some(server) = &mut self.server {
                    server.answer(caller, answer);
                }
            }
        }
    }
}
