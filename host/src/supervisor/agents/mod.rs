//! Health from inside: what a guest's agent tells the host by vsock, and what the host asks of it.
//!
//! The guest's socket device is there for every guest. A guest whose agent never calls is watched from outside only.

mod beat;
mod port;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use beat::{Beat, Lines};
use port::Port;
pub(super) use port::Sign;

use super::Supervisor;
use super::guest::Guest;
use crate::clock;
use crate::config::{Health, Ready};
use crate::snapshots::AGENT;

/// The port that an agent calls.
const AGENT_PORT: u32 = 1024;
/// What the VMM takes as the path of a socket device, without its ports.
const MAX_PATH: usize = 96;
/// The first address that a guest may have.
const FIRST_CID: u32 = 3;
/// A guest has fallen when its agent has found that so many times in a row.
const BAD_IN_A_ROW: u32 = 2;

/// The socket device of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sockets {
    /// The guest's address.
    pub cid: u32,
    /// Path of the device's socket; a port's is this with `_` and its number.
    pub path: PathBuf,
}

/// Which port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Agent,
    Ready,
}

/// What an agent has said last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Report {
    well: bool,
    /// Processes that want to run.
    load: f64,
    available_kib: u64,
}

/// What a guest says by vsock.
#[derive(Debug, Default)]
pub(super) struct Agent {
    port: Option<Port>,
    /// The port by which it says that it is ready, if that is another one.
    ready: Option<Port>,
    lines: Lines,
    report: Option<Report>,
    /// Times in a row that it was not well.
    bad: u32,
    /// It goes on from a snapshot in which there was an agent.
    pub(super) expected: bool,
}

impl Agent {
    /// Listens to guest number `index`, whose files are in `folder`, before it runs.
    pub(super) fn open(
        &mut self,
        index: usize,
        folder: &Path,
        ready: Option<u32>,
    ) -> io::Result<Sockets> {
        // Nothing else is in it: this much of the host's files is there for the VMM in its jail.
        let folder = folder.join("vsock");
        fs::create_dir_all(&folder)?;
        let path = folder.join("v");
        if path.as_os_str().len() > MAX_PATH {
            let error = format!("{} is longer than {MAX_PATH} bytes", path.display());
            return Err(io::Error::other(error));
        }
        // What a VMM that was killed has left.
        let _ = fs::remove_file(&path);
        self.listen(&folder, ready)?;
        let cid = u32::try_from(index).unwrap_or_default();
        Ok(Sockets {
            cid: FIRST_CID.saturating_add(cid),
            path,
        })
    }

    /// Listens to a guest whose socket device is in `folder`.
    fn listen(&mut self, folder: &Path, ready: Option<u32>) -> io::Result<()> {
        *self = Self::default();
        let open = |port: u32| Port::open(&folder.join(format!("v_{port}")));
        self.port = Some(open(AGENT_PORT)?);
        self.ready = ready.filter(|it| *it != AGENT_PORT).map(open).transpose()?;
        Ok(())
    }

    /// The run is over.
    pub(super) fn close(&mut self) {
        *self = Self::default();
    }

    fn ports(&self) -> impl Iterator<Item = (Which, &Port)> {
        let agent = self.port.iter().map(|port| (Which::Agent, port));
        let ready = self.ready.iter().map(|port| (Which::Ready, port));
        agent.chain(ready)
    }

    /// Descriptors to wait for.
    pub(super) fn waits(
        &self,
        now: Duration,
    ) -> impl Iterator<Item = (Which, Sign, BorrowedFd<'_>)> {
        let ports = self.ports();
        ports
            .flat_map(move |(which, port)| port.waits(now).map(move |(sign, fd)| (which, sign, fd)))
    }

    /// When it is listened to again.
    pub(super) fn due(&self) -> Option<Duration> {
        let now = clock::now();
        // One that is over is nothing to wake up for: who has been quiet since may be for ever.
        let due = self.ports().filter_map(|(_, port)| port.due());
        due.filter(|due| *due > now).min()
    }

    /// Asks the guest to shut down, if there is somebody to ask.
    pub(super) fn power_off(&mut self) {
        if let Some(port) = &mut self.port {
            port.say("{\"do\":\"poweroff\"}\n");
        }
    }

    /// Whether it has said something.
    pub(super) fn is_heard(&self) -> bool {
        self.report.is_some()
    }

    /// How the guest is, as far as is known from inside.
    pub(super) fn words(&self) -> String {
        match self.report {
            None => "watched from outside only".to_owned(),
            Some(Report {
                well,
                load,
                available_kib,
            }) => format!(
                "{}, load {load:.2}, {} MiB available",
                if well { "well" } else { "not well" },
                available_kib / 1024
            ),
        }
    }

    /// Notes what the agent has said; why the guest has fallen, if it has.
    fn hear(&mut self, beat: &Beat) -> Option<String> {
        let well = match (beat.well, self.report) {
            (Some(well), _) => well,
            (None, report) => report.is_none_or(|report| report.well),
        };
        self.report = Some(Report {
            well,
            load: beat.load.clamp(0.0, 1e6),
            available_kib: beat.available_kib,
        });
        match beat.well {
            Some(true) => self.bad = 0,
            Some(false) => self.bad = self.bad.saturating_add(1),
            None => {}
        }
        let fallen = beat.well == Some(false) && self.bad >= BAD_IN_A_ROW;
        fallen.then(|| format!("its agent says: {}", beat.why()))
    }
}

/// How often an agent is to give a sign of life, in words for it.
fn order(rules: &Health) -> String {
    let every = (rules.heartbeat / 2).as_millis();
    format!("{{\"every_ms\":{every}}}\n")
}

impl Guest {
    /// Says in a snapshot's labels that there is an agent.
    pub(super) fn label_agent(&self, labels: &mut BTreeMap<String, String>) {
        // One that goes on from a snapshot takes a moment to call again.
        if self.agent.report.is_some() || self.agent.expected {
            labels.insert(AGENT.to_owned(), "yes".to_owned());
        }
    }

    /// The port by which it says that it is ready.
    fn ready_port(&self) -> Option<u32> {
        match self.config.as_ref()?.ready {
            Ready::Vsock(port) => Some(port),
            Ready::Console(_) | Ready::BootTimer => None,
        }
    }
}

impl Supervisor {
    /// Listens to a guest that is about to run. One that says there that it is ready cannot run without.
    pub(super) fn open_sockets(&mut self, index: usize) -> Result<Option<Sockets>, String> {
        let guest = &mut self.guests[index];
        let folder = self.settings.run_folder.join(&guest.name);
        let ready = guest.ready_port();
        match guest.agent.open(index, &folder, ready) {
            Ok(sockets) => Ok(Some(sockets)),
            Err(error) if ready.is_some() => Err(format!("cannot listen to it: {error}")),
            Err(error) => {
                guest.log(format!("no vsock, cannot listen to it: {error}"));
                Ok(None)
            }
        }
    }

    /// Listens to a guest that runs, and was listened to by another supervisor.
    pub(super) fn listen_again(&mut self, index: usize) {
        let guest = &mut self.guests[index];
        let folder = self.settings.run_folder.join(&guest.name).join("vsock");
        let ready = guest.ready_port();
        if let Err(error) = guest.agent.listen(&folder, ready) {
            guest.log(format!("cannot listen to it again: {error}"));
        }
    }

    /// A guest that had an agent in the snapshot that it goes on from is to be heard of soon.
    pub(super) fn expect_agent(&mut self, index: usize) {
        let guest = &mut self.guests[index];
        let heartbeat = guest.rules().map(|rules| rules.heartbeat);
        if let Some(heartbeat) = heartbeat.filter(|_| guest.agent.expected) {
            guest.healing.expect(clock::now() + heartbeat);
        }
    }

    /// Something happens at a port of a guest's.
    pub(super) fn agent_sign(&mut self, index: usize, which: Which, sign: Sign) {
        let now = clock::now();
        let guest = &mut self.guests[index];
        let Some(order) = guest.rules().map(order) else {
            return;
        };
        let by_agent_port = guest.ready_port() == Some(AGENT_PORT);
        let agent = &mut guest.agent;
        let port = match which {
            Which::Agent => &mut agent.port,
            Which::Ready => &mut agent.ready,
        };
        let Some(port) = port else { return };
        let bytes = match (sign, which) {
            (Sign::Call, Which::Agent) => {
                if port.answer(now) {
                    port.say(&order);
                    agent.lines = Lines::default();
                }
                return;
            }
            (Sign::Call, Which::Ready) => {
                port.answer(now);
                return;
            }
            (Sign::Words, _) => port.read(now),
        };
        if which == Which::Ready && !bytes.is_empty() {
            agent.ready = None;
            return self.became_ready(index);
        }
        let Ok(beats) = agent.lines.feed(&bytes) else {
            port.hang_up();
            return;
        };
        if by_agent_port && !bytes.is_empty() {
            self.became_ready(index);
        }
        for beat in beats {
            self.beat(index, &beat, now);
        }
    }

    fn beat(&mut self, index: usize, beat: &Beat, now: Duration) {
        let guest = &mut self.guests[index];
        if beat.bye {
            // It shuts down, which may take as long as it likes.
            guest.agent.report = None;
            guest.agent.expected = false;
            guest.healing.says_goodbye();
            return;
        }
        self.changed |= !guest.agent.is_heard();
        match beat.well {
            Some(true) => guest.healing.heard(now),
            Some(false) | None => guest.healing.lives(now),
        }
        if let Some(reason) = guest.agent.hear(beat) {
            self.fell(index, &reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(agent: &mut Agent, line: &str) -> Option<String> {
        let beats = Lines::default().feed(format!("{line}\n").as_bytes());
        agent.hear(&beats.unwrap()[0])
    }

    #[test]
    fn once_not_well_is_no_fall_and_twice_in_a_row_is_one() {
        let mut agent = Agent::default();
        assert_eq!(agent.words(), "watched from outside only");
        let (good, bad) = (
            r#"{"beat":1,"well":true,"load":0.5,"available_kib":2048}"#,
            r#"{"beat":2,"well":false,"why":"cannot start a program"}"#,
        );
        assert_eq!(said(&mut agent, good), None);
        assert_eq!(agent.words(), "well, load 0.50, 2 MiB available");
        assert_eq!(said(&mut agent, bad), None);
        assert_eq!(said(&mut agent, good), None);
        assert_eq!(said(&mut agent, bad), None);
        // A sign of life between two checks is no verdict.
        assert_eq!(said(&mut agent, r#"{"beat":3}"#), None);
        assert!(agent.words().starts_with("not well"));
        let fallen = said(&mut agent, bad);
        assert_eq!(
            fallen.as_deref(),
            Some("its agent says: cannot start a program")
        );
    }

    #[test]
    fn an_agent_is_told_to_beat_twice_in_an_interval() {
        let rules = Health {
            heartbeat: Duration::from_secs(3),
            ..Health::default()
        };
        assert_eq!(order(&rules), "{\"every_ms\":1500}\n");
    }

    #[test]
    fn each_guest_has_an_address_and_a_folder_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut agent = Agent::default();
        let sockets = agent.open(4, folder.path(), Some(52)).unwrap();
        assert_eq!(sockets.cid, 7);
        let signs: Vec<_> = agent.waits(Duration::ZERO).map(|it| it.0).collect();
        assert_eq!(signs, [Which::Agent, Which::Ready]);
        let in_folder = |name: &str| folder.path().join("vsock").join(name).exists();
        assert!(in_folder("v_1024") && in_folder("v_52") && !in_folder("v"));
        agent.close();
        assert!(!in_folder("v_1024") && !in_folder("v_52"));
        // The agent's own port serves for both.
        agent.open(4, folder.path(), Some(AGENT_PORT)).unwrap();
        assert_eq!(agent.waits(Duration::ZERO).count(), 1);
        let long = folder.path().join("x".repeat(90));
        assert!(agent.open(4, &long, None).is_err());
    }
}
