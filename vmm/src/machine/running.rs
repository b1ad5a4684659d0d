//! A guest that runs: stopping it for a while, and for good.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use devices::legacy::watchdog::{Watchdog, WatchdogState};

use crate::controller::{Opener, Targets};
use crate::device_thread::{self, RunningThread};
use crate::latch::ExitLatch;
use crate::output::Output;
use crate::snapshot::Subject;
use crate::vcpu::{Gate, VcpuThread};
use crate::vm::Vm;

/// How long the vCPUs have to end after the run has: far more than a device's register access takes.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// How long they have to park.
const PAUSE_PATIENCE: Duration = Duration::from_secs(2);
/// How long a reader of the guest's console may take for some of its last words.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait before a vCPU is kicked again; doubled each time, up to the second.
const KICKS: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(20));

/// Why a guest does not stand still.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// A vCPU waits for something outside of the guest.
    #[error(
        "{running} of {all} vCPUs did not stop within {seconds} s, the guest goes on",
        seconds = PAUSE_PATIENCE.as_secs()
    )]
    Busy {
        /// How many did not stop.
        running: usize,
        /// How many there are.
        all: usize,
    },
}

/// A guest and its threads.
pub struct Running {
    pub(super) _vm: Arc<Vm>,
    pub(super) latch: Arc<ExitLatch>,
    pub(super) gate: Arc<Gate>,
    pub(super) threads: Vec<VcpuThread>,
    pub(super) devices: Vec<RunningThread>,
    pub(super) outputs: [Output; 2],
    pub(super) watchdog: Arc<Mutex<Watchdog>>,
    /// While the guest is paused: what its watchdog had left.
    pub(super) paused: Option<WatchdogState>,
    /// What a snapshot is taken of.
    pub(super) subject: Arc<Subject>,
    /// Opens files for who asks for changes.
    pub opener: Opener,
    /// What can be done with its devices.
    pub targets: Targets,
}

impl Running {
    /// Whether the guest stands still.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// Stops all vCPUs, between two instructions of theirs, and the guest's watchdog. Devices end what they were asked to
    /// do, and wait. A guest that is paused stays so.
    pub fn pause(&mut self) -> Result<(), PauseError> {
        if self.is_paused() {
            return Ok(());
        }
        self.gate.close();
        let all = self.threads.len();
        let (mut pause, longest) = KICKS;
        let mut waited = Duration::ZERO;
        loop {
            // A kick may come while the vCPU's thread is just starting, and be lost.
            for thread in &self.threads {
                thread.kick();
            }
            if self.gate.wait_for(all, pause) {
                break;
            }
            waited += pause;
            if waited >= PAUSE_PATIENCE || self.latch.is_set() {
                let running = all - self.gate.parked().min(all);
                self.gate.open();
                return Err(PauseError::Busy { running, all });
            }
            pause = (pause * 2).min(longest);
        }
        // A guest that cannot run cannot ring either.
        let mut watchdog = self.lock_watchdog();
        let state = watchdog.state();
        watchdog.restore(WatchdogState {
            left: None,
            ..state
        });
        drop(watchdog);
        self.paused = Some(state);
        log::info!("The guest is paused");
        Ok(())
    }

    /// Lets a paused guest go on exactly where it was.
    pub fn resume(&mut self) {
        if let Some(state) = self.paused.take() {
            self.lock_watchdog().restore(state);
            self.gate.open();
            log::info!("The guest goes on");
        }
    }

    /// What a snapshot is taken of, and what the watchdog has left: of a guest that stands still.
    pub fn subject(&self) -> Option<(Arc<Subject>, WatchdogState)> {
        self.paused.map(|watchdog| (self.subject.clone(), watchdog))
    }

    fn lock_watchdog(&self) -> std::sync::MutexGuard<'_, Watchdog> {
        self.watchdog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the threads of a run that has ended.
    pub fn end(mut self) {
        self.gate.wake();
        end(&self.threads);
        if let Some(hotplug) = &self.targets.hotplug {
            self.devices.extend(hotplug.end());
        }
        device_thread::join(self.devices);
        for output in &self.outputs {
            output.finish(OUTPUT_PATIENCE);
        }
    }
}

/// Gets all vCPUs out of the guest and waits for their threads.
pub(super) fn end(threads: &[VcpuThread]) {
    let (mut pause, longest) = KICKS;
    let mut waited = Duration::ZERO;
    loop {
        let running: Vec<_> = threads
            .iter()
            .filter(|thread| !thread.is_finished())
            .collect();
        if running.is_empty() {
            return;
        }
        if waited >= END_PATIENCE {
            // One that waits for somebody to read the guest's output, for example. The process ends without it.
            let ids: Vec<_> = running.iter().map(|thread| thread.id()).collect();
            log::warn!("vCPUs {ids:?} do not end, they are abandoned");
            return;
        }
        for thread in running {
            thread.kick();
        }
        thread::sleep(pause);
        waited += pause;
        pause = (pause * 2).min(longest);
    }
}
