//! What the VMM tells its parent on the control socket: JSON lines.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use api::model::BalloonStatistics;
use devices::throttle::Throttle;
use devices::virtio::balloon::{Statistics, TAGS};
use serde::Serialize;

use crate::clock::StartTime;
use crate::exit::ExitReason;
use crate::hotplug::{DeviceId, HotplugError};
use crate::logger::chain;
use crate::metrics::Snapshot;
use crate::stats::Counters;

/// One line to the parent.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event<'a> {
    Running {
        us: u64,
    },
    BootTimer {
        us: u64,
    },
    /// The guest is as it was in its snapshot; its memory may come later.
    Restored {
        us: u64,
    },
    Panicked,
    CrashLoaded,
    Stats {
        vcpus: Vec<Counters>,
    },
    Metrics {
        metrics: serde_json::Value,
    },
    BalloonStatistics(Balloon),
    /// A device was plugged in, at a device number of the PCI bus.
    Attached {
        kind: &'a str,
        id: &'a str,
        slot: usize,
    },
    AttachFailed {
        kind: &'a str,
        id: &'a str,
        message: String,
    },
    /// The guest has let go of a device; `requested` says whether the host had asked for it.
    Detached {
        kind: &'a str,
        id: &'a str,
        requested: bool,
    },
    DetachFailed {
        kind: &'a str,
        id: &'a str,
        message: String,
    },
    Exit {
        reason: &'a str,
        message: String,
    },
}

impl Event<'_> {
    /// As its line has it.
    fn name(&self) -> &'static str {
        match self {
            Self::Running { .. } => "running",
            Self::BootTimer { .. } => "boot-timer",
            Self::Restored { .. } => "restored",
            Self::Panicked => "panicked",
            Self::CrashLoaded => "crash-loaded",
            Self::Stats { .. } => "stats",
            Self::Metrics { .. } => "metrics",
            Self::BalloonStatistics(_) => "balloon-statistics",
            Self::Attached { .. } => "attached",
            Self::AttachFailed { .. } => "attach-failed",
            Self::Detached { .. } => "detached",
            Self::DetachFailed { .. } => "detach-failed",
            Self::Exit { .. } => "exit",
        }
    }
}

/// A balloon, and the guest's memory as the guest sees it.
#[derive(Debug, Serialize)]
struct Balloon {
    #[serde(flatten)]
    statistics: BalloonStatistics,
    /// Ours: pages that went back to the host, and those that the guest had no right to give.
    discarded_pages: u64,
    refused_pages: u64,
}

impl From<&Statistics> for Balloon {
    fn from(statistics: &Statistics) -> Self {
        Self {
            statistics: by_firecrackers_names(statistics),
            discarded_pages: statistics.discarded_pages,
            refused_pages: statistics.refused_pages,
        }
    }
}

/// What the API and the control socket both say of a balloon: in bytes where nothing else is said.
pub fn by_firecrackers_names(statistics: &Statistics) -> BalloonStatistics {
    const PAGES_PER_MIB: u32 = 256;
    let values = TAGS.into_iter().zip(statistics.guest);
    BalloonStatistics {
        target_pages: statistics.target_pages,
        actual_pages: statistics.actual_pages,
        target_mib: statistics.target_pages / PAGES_PER_MIB,
        actual_mib: statistics.actual_pages / PAGES_PER_MIB,
        guest: values
            .filter_map(|(name, value)| Some((name, value?)))
            .collect(),
    }
}

/// Tells the parent what happens. Without a socket it does nothing.
#[derive(Debug)]
pub struct Events {
    socket: Option<Mutex<Outlet>>,
    start: Mutex<StartTime>,
}

impl Events {
    /// Events go to `socket`; times are counted from `start`.
    pub fn new(socket: Option<UnixStream>, start: StartTime) -> Self {
        Self {
            socket: socket.map(|socket| {
                Mutex::new(Outlet {
                    socket,
                    rest: Vec::new(),
                    lost: Throttle::default(),
                })
            }),
            start: Mutex::new(start),
        }
    }

    /// The boot vCPU is about to enter the guest for the first time.
    pub fn running(&self) {
        self.send(&Event::Running {
            us: self.start().elapsed_us(),
        });
    }

    /// The guest wrote to the boot timer.
    pub fn boot_timer(&self) -> u64 {
        let us = self.start().elapsed_us();
        self.send(&Event::BootTimer { us });
        us
    }

    /// The guest is as it was in its snapshot, and about to go on, or paused.
    pub fn restored(&self) {
        self.send(&Event::Restored {
            us: self.start().elapsed_us(),
        });
    }

    /// The guest's kernel has panicked.
    pub fn panicked(&self) {
        self.send(&Event::Panicked);
    }

    /// The guest's kernel has panicked and starts its crash kernel.
    pub fn crash_loaded(&self) {
        self.send(&Event::CrashLoaded);
    }

    /// KVM's counters of each vCPU.
    pub fn stats(&self, vcpus: Vec<Counters>) {
        self.send(&Event::Stats { vcpus });
    }

    /// Everything that is counted.
    pub fn metrics(&self, snapshot: &Snapshot) {
        self.send(&Event::Metrics {
            metrics: snapshot.to_json(),
        });
    }

    /// What the guest says of its memory.
    pub fn balloon_statistics(&self, statistics: &Statistics) {
        self.send(&Event::BalloonStatistics(statistics.into()));
    }

    /// A device was plugged in at the device number `slot`.
    pub fn attached(&self, id: &DeviceId, slot: usize) {
        log::info!("Plugged in {id} as PCI device {slot}");
        let (kind, id) = (id.kind(), id.name());
        self.send(&Event::Attached { kind, id, slot });
    }

    /// A device was not plugged in.
    pub fn attach_failed(&self, id: &DeviceId, error: &HotplugError) {
        let message = chain(error);
        log::warn!("{message}");
        let (kind, id) = (id.kind(), id.name());
        self.send(&Event::AttachFailed { kind, id, message });
    }

    /// A device is gone with all that it had; the host had `requested` that, or the guest did it by itself.
    pub fn detached(&self, id: &DeviceId, requested: bool) {
        let why = if requested { "" } else { " by itself" };
        log::info!("The guest has let go of {id}{why}");
        let (kind, id) = (id.kind(), id.name());
        self.send(&Event::Detached {
            kind,
            id,
            requested,
        });
    }

    /// A device stays.
    pub fn detach_failed(&self, id: &DeviceId, error: &HotplugError) {
        let message = chain(error);
        log::warn!("{message}");
        let (kind, id) = (id.kind(), id.name());
        self.send(&Event::DetachFailed { kind, id, message });
    }

    /// The guest's run has ended.
    pub fn exit(&self, reason: &ExitReason) {
        self.send(&Event::Exit {
            reason: reason.word(),
            message: reason.to_string(),
        });
    }

    /// As [`Self::exit`], but gives up if another thread is in the middle of a line: for a panic, which may have come
    /// from that very thread.
    pub fn exit_without_waiting(&self, reason: &ExitReason) {
        if let Some(Ok(mut socket)) = self.socket.as_ref().map(Mutex::try_lock) {
            let event = Event::Exit {
                reason: reason.word(),
                message: reason.to_string(),
            };
            // The log has the message already.
            let _ = socket.send(&event);
        }
    }

    /// When times are counted from.
    pub fn start(&self) -> StartTime {
        *self.start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts times from `start` on.
    pub fn restart(&self, start: StartTime) {
        *self.start.lock().unwrap_or_else(PoisonError::into_inner) = start;
    }

    fn send(&self, event: &Event<'_>) {
        let Some(socket) = &self.socket else { return };
        let mut socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = socket.send(event) {
            let name = event.name();
            socket.lost.warn(format_args!(
                "The parent does not get the event {name}: {error}"
            ));
        }
    }
}

/// The socket to the parent, which does not block: a parent that does not read loses events instead of stopping the guest.
#[derive(Debug)]
struct Outlet {
    socket: UnixStream,
    /// The rest of a line that there was no room for.
    rest: Vec<u8>,
    lost: Throttle,
}

impl Outlet {
    fn send(&mut self, event: &Event<'_>) -> io::Result<()> {
        // A line that was begun is ended first, or both are lost.
        self.send_rest()?;
        if !self.rest.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let length = line.len();
        self.rest = line;
        self.send_rest()?;
        if self.rest.len() == length {
            self.rest.clear();
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    /// Sends as much of the rest as there is room for.
    fn send_rest(&mut self) -> io::Result<()> {
        while !self.rest.is_empty() {
            match self.socket.write(&self.rest) {
                Ok(length) => drop(self.rest.drain(..length)),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return Ok(()),
                    _ => {
                        self.rest.clear();
                        return Err(error);
                    }
                },
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn pair() -> (Events, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Events::new(Some(ours), StartTime::new(None, None)), theirs)
    }

    #[test]
    fn events_are_the_lines_of_the_contract() {
        let (events, mut parent) = pair();
        events.running();
        events.boot_timer();
        events.exit(&ExitReason::PowerOff);
        drop(events);
        let mut text = String::new();
        parent.read_to_string(&mut text).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines[0]["event"], "running");
        assert!(lines[0]["us"].is_u64());
        assert_eq!(lines[1]["event"], "boot-timer");
        assert_eq!(lines[2]["event"], "exit");
        assert_eq!(lines[2]["reason"], "poweroff");
        assert_eq!(lines[2]["message"], "The guest powered off");
    }

    #[test]
    fn balloon_statistics_have_firecrackers_names() {
        let (events, mut parent) = pair();
        let mut statistics = Statistics {
            target_pages: 512,
            actual_pages: 300,
            discarded_pages: 1 << 40,
            ..Statistics::default()
        };
        statistics.guest[6] = Some(7);
        events.balloon_statistics(&statistics);
        drop(events);
        let mut text = String::new();
        parent.read_to_string(&mut text).unwrap();
        let expected = serde_json::json!({
            "event": "balloon-statistics",
            "target_pages": 512, "actual_pages": 300, "target_mib": 2, "actual_mib": 1,
            "discarded_pages": 1_u64 << 40, "refused_pages": 0,
            "available_memory": 7,
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line, expected);
    }

    #[test]
    fn a_parent_that_does_not_read_for_a_while_gets_whole_lines() {
        let (events, mut parent) = pair();
        let snapshot = crate::metrics::Telemetry::default().snapshot();
        for _ in 0..1000 {
            events.metrics(&snapshot);
        }
        parent.set_nonblocking(true).unwrap();
        let mut text = Vec::new();
        parent.read_to_end(&mut text).unwrap_err();
        events.exit(&ExitReason::PowerOff);
        parent.read_to_end(&mut text).unwrap_err();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(lines.len() > 2 && lines.len() < 1000, "{}", lines.len());
        assert_eq!(lines.last().unwrap()["event"], "exit");
    }

    #[test]
    fn a_parent_that_does_not_read_or_is_gone_stops_nothing() {
        let (events, parent) = pair();
        for _ in 0..100_000 {
            events.running();
        }
        drop(parent);
        events.exit(&ExitReason::Stopped);
    }
}
