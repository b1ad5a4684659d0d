//! What outlives the supervisor: guests' VMMs and the store's service are processes of their own. A supervisor that falls
//! hands over how they are to be reached ([`crate::handover`]), and the next one goes on with them.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::Supervisor;
use super::guest::{Guest, Phase};
use super::launch::Launched;
use super::lifecycle::State;
use crate::address::Mac;
use crate::snapshots::Process;
use crate::{clock, handover};

/// What a supervisor leaves.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Ledger {
    guests: Vec<Running>,
    down: Vec<Resting>,
    pub(super) store: Option<StoreLeft>,
    /// Hardware addresses of the guests' cards, each with its tap.
    taps: Vec<(String, String)>,
}

/// A guest whose VMM runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) name: String,
    /// The guest that it is a fork of.
    fork_of: Option<String>,
    pid: i32,
    /// Standard input, output and error of the VMM, and its control socket.
    fds: [RawFd; 4],
    ready: bool,
    restored: Option<(u64, bool)>,
    agent: bool,
}

/// A guest that does not run.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Resting {
    name: String,
    failed: bool,
    detail: String,
}

/// The store's service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StoreLeft {
    pub(super) pid: i32,
    /// The way to it, its log, and the socket where live channels begin.
    pub(super) fds: [RawFd; 3],
    pub(super) folder: PathBuf,
    pub(super) in_memory: bool,
}

impl Ledger {
    /// Reads what a supervisor of the same program has left; nothing, if that cannot be understood.
    #[must_use]
    pub fn read(text: &[u8]) -> Self {
        let ledger: Self = serde_json::from_slice(text).unwrap_or_default();
        handover::inherit(ledger.fds());
        ledger
    }

    /// Whether nothing was left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.guests.is_empty() && self.store.is_none()
    }

    /// The processes that live on. Each leads a session.
    #[must_use]
    pub fn processes(&self) -> Vec<Pid> {
        let store = self.store.iter().map(|store| store.pid);
        let guests = self.guests.iter().map(|guest| guest.pid);
        guests.chain(store).map(Pid::from_raw).collect()
    }

    fn fds(&self) -> impl Iterator<Item = RawFd> {
        let store = self.store.iter().flat_map(|store| store.fds);
        store.chain(self.guests.iter().flat_map(|guest| guest.fds))
    }

    /// The taps that guests have open.
    pub(super) fn taps(&self) -> HashMap<Mac, String> {
        let taps = self.taps.iter();
        taps.filter_map(|(mac, tap)| Some((mac.parse().ok()?, tap.clone())))
            .collect()
    }

    fn runs(&self, name: &str) -> bool {
        self.guests.iter().any(|guest| guest.name == name)
    }

    fn take(&mut self, name: &str) -> Option<Running> {
        let index = self.guests.iter().position(|guest| guest.name == name)?;
        Some(self.guests.swap_remove(index))
    }
}

impl Running {
    /// As it is to be handed over; `None` if it does not run.
    fn of(guest: &Guest) -> Option<Self> {
        let Phase::Up(vm) = &guest.phase else {
            return None;
        };
        let ends = vm.ends();
        Some(Self {
            name: guest.name.clone(),
            fork_of: guest.fork_of.clone(),
            pid: ends.pid.as_raw(),
            fds: [
                ends.stdin.as_raw_fd(),
                ends.stdout.as_raw_fd(),
                ends.stderr.as_raw_fd(),
                ends.control.as_raw_fd(),
            ],
            ready: guest.state == State::Ready,
            restored: guest.restored,
            agent: guest.agent.is_heard() || guest.agent.expected,
        })
    }

    /// Our ends of its VMM, if that lives.
    fn ends(&self) -> io::Result<Launched> {
        let pid = Pid::from_raw(self.pid);
        kill(pid, None)?;
        let [stdin, stdout, stderr, control] = self.fds.map(handover::take);
        Ok(Launched {
            pid,
            stdin: stdin?,
            stdout: stdout?,
            stderr: stderr?,
            control: UnixStream::from(control?),
        })
    }

    fn end(&self) {
        // One that is gone is as good.
        let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
    }
}

impl StoreLeft {
    /// The service, and the socket where live channels begin.
    pub(super) fn adopt(&self) -> io::Result<(Process, UnixListener)> {
        let pid = Pid::from_raw(self.pid);
        kill(pid, None)?;
        let [stream, log, channels] = self.fds.map(handover::take);
        // Answers that are still under way are for nobody: their numbers are lower.
        let next = u64::try_from(clock::now().as_nanos()).unwrap_or_default();
        let process = Process::adopt(pid, UnixStream::from(stream?), log?, next);
        Ok((process, UnixListener::from(channels?)))
    }

    pub(super) fn of(
        process: &Process,
        channels: Option<&UnixListener>,
        folder: PathBuf,
        in_memory: bool,
    ) -> Option<Self> {
        let [stream, log] = process.fds();
        Some(Self {
            pid: process.pid().as_raw(),
            fds: [stream, log, channels?.as_raw_fd()],
            folder,
            in_memory,
        })
    }
}

impl Supervisor {
    /// Lays ready what the next supervisor is to go on with, if this one falls.
    pub(super) fn write_ledger(&mut self) {
        if !std::mem::take(&mut self.changed) || !self.settings.is_init {
            return;
        }
        let is_down = |guest: &&Guest| matches!(guest.phase, Phase::Down);
        let running = self.guests.iter().filter_map(Running::of);
        let down = self.guests.iter().filter(is_down).map(|guest| Resting {
            name: guest.name.clone(),
            failed: guest.state == State::Failed,
            detail: guest.detail.clone(),
        });
        // What is not gone on with yet is left to the next one as it was.
        let ledger = Ledger {
            guests: running.chain(self.left.guests.iter().cloned()).collect(),
            down: down.chain(self.left.down.iter().cloned()).collect(),
            store: self.keeping.left().or_else(|| self.left.store.clone()),
            taps: match self.networks.named() {
                none if none.is_empty() => self.left.taps.clone(),
                taps => taps,
            },
        };
        // Strings and numbers are always JSON.
        let text = serde_json::to_vec(&ledger).unwrap_or_default();
        if let Err(error) = handover::lay_ready(&text, ledger.fds()) {
            self.console.say(&format!(
                "host: a new supervisor will not know of the guests: {error}"
            ));
        }
    }

    /// Whether the guest is still to be gone on with.
    pub(super) fn is_left(&self, index: usize) -> bool {
        self.left.runs(&self.guests[index].name)
    }

    /// Of the guests that are in the machine file: those that are to be started, or gone on with. What was stopped or
    /// failed stays so.
    pub(super) fn wanted(&mut self) -> Vec<usize> {
        let down = std::mem::take(&mut self.left.down);
        for resting in &down {
            let mut guests = self.guests.iter_mut();
            if let Some(guest) = guests.find(|guest| guest.name == resting.name) {
                guest.state = match resting.failed {
                    true => State::Failed,
                    false => State::Stopped,
                };
                guest.detail.clone_from(&resting.detail);
            }
        }
        let left = &self.left;
        let wanted = |guest: &Guest| {
            let was_down = down.iter().any(|resting| resting.name == guest.name);
            guest
                .config
                .as_ref()
                .is_some_and(|config| config.autostart && !was_down || left.runs(&guest.name))
        };
        let guests = self.guests.iter().enumerate();
        guests
            .filter_map(|(index, guest)| wanted(guest).then_some(index))
            .collect()
    }

    /// Makes guests of the forks that run, and ends what belongs to nobody.
    pub(super) fn know_forks(&mut self) -> Vec<usize> {
        let mut known = Vec::new();
        let forks: Vec<_> = (self.left.guests.iter())
            .filter(|guest| self.guests.iter().all(|other| other.name != guest.name))
            .map(|guest| (guest.name.clone(), guest.fork_of.clone()))
            .collect();
        for (name, origin) in forks {
            let origin = self
                .guests
                .iter()
                .position(|guest| origin.as_ref() == Some(&guest.name));
            let made = origin.ok_or_else(|| "nobody knows it any more".to_owned());
            match made.and_then(|origin| self.add_fork(origin, name.clone())) {
                Ok(index) => known.push(index),
                Err(reason) => {
                    self.console.say(&format!("host: {name} ends: {reason}"));
                    if let Some(running) = self.left.take(&name) {
                        running.end();
                    }
                }
            }
        }
        known
    }

    /// Nothing that was left can be gone on with.
    pub(super) fn disown_all(&mut self) {
        for running in std::mem::take(&mut self.left.guests) {
            running.end();
        }
    }

    /// Its images are not to be had any more.
    pub(super) fn disown(&mut self, index: usize) {
        if let Some(running) = self.left.take(&self.guests[index].name) {
            running.end();
        }
    }

    /// Goes on with a guest whose VMM has outlived the supervisor before; false if it has not.
    pub(super) fn adopt(&mut self, index: usize) -> bool {
        let name = self.guests[index].name.clone();
        let Some(running) = self.left.take(&name) else {
            return false;
        };
        let ends = match running.ends() {
            Ok(ends) => ends,
            Err(error) => {
                let line = format!("host: {name}: its VMM has not lived on ({error})");
                self.console.say(&line);
                running.end();
                self.set_state(index, State::Starting, "again");
                return false;
            }
        };
        self.listen_again(index);
        let heals = self.heals(index);
        let guest = &mut self.guests[index];
        guest.begin = None;
        guest.agent.expected = running.agent;
        guest.restored = running.restored;
        guest.fork_of = running.fork_of;
        if let Some(rules) = guest.rules().cloned() {
            let restored = guest.restored.is_some();
            guest.healing.begun(clock::now(), &rules, restored, heals);
        }
        guest.up(ends);
        guest.state = State::Starting;
        self.changed = true;
        self.console.say(&format!("host: {name}: its VMM lives on"));
        if running.ready {
            self.became_ready(index);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_cannot_be_understood_is_nothing() {
        let guest = Running {
            name: "one".to_owned(),
            fork_of: None,
            pid: 17,
            // Nobody has handed these over.
            fds: [-1; 4],
            ready: true,
            restored: Some((3, true)),
            agent: false,
        };
        let ledger = Ledger {
            guests: vec![guest],
            down: Vec::new(),
            store: None,
            taps: vec![
                ("02:00:00:00:00:01".to_owned(), "dtap0".to_owned()),
                ("no address".to_owned(), "dtap1".to_owned()),
            ],
        };
        let text = serde_json::to_vec(&ledger).unwrap();
        let mut read = Ledger::read(&text);
        assert_eq!(read.processes(), [Pid::from_raw(17)]);
        assert_eq!(read.taps().len(), 1);
        assert!(read.runs("one") && !read.runs("two") && !read.is_empty());
        let one = read.take("one").unwrap();
        assert!(one.ready && one.ends().is_err() && read.take("one").is_none());
        for torn in [&text[..text.len() / 2], b"", b"[]"] {
            assert!(Ledger::read(torn).is_empty());
        }
    }
}
