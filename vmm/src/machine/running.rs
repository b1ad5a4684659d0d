//! A guest that runs: stopping it for a while, and for good.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use devices::legacy::watchdog::WatchdogState;

use super::brake::{Brake, Holder, PauseError};
use crate::controller::{Opener, Targets};
use crate::device_thread::{self, RunningThread};
use crate::hotplug::{Reply, Successor};
use crate::output::Output;
use crate::snapshot::Subject;
use crate::vcpu::VcpuThread;
use crate::vm::Vm;

/// How long the vCPUs have to end after the run has: far more than a device's register access takes.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// How long a reader of the guest's console may take for some of its last words.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait before a vCPU is kicked again; doubled each time, up to the second.
pub(super) const KICKS: (Duration, Duration) =
    (Duration::from_micros(50), Duration::from_millis(20));

/// A guest and its threads.
pub struct Running {
    pub(super) _vm: Arc<Vm>,
    pub(super) brake: Arc<Brake>,
    pub(super) devices: Vec<RunningThread>,
    pub(super) outputs: [Output; 2],
    /// What a snapshot is taken of.
    pub(super) subject: Arc<Subject>,
    /// Opens files for who asks for changes.
    pub opener: Opener,
    /// What can be done with its devices.
    pub targets: Targets,
    /// Network interfaces that the guest is given as soon as it goes on, and who is told how that ended.
    pub(super) successors: Vec<(Successor, Reply)>,
}

impl Running {
    /// Whether a user has paused the guest.
    pub fn is_paused(&self) -> bool {
        self.brake.is_held_by(Holder::User)
    }

    /// Stops the guest. One that is paused stays so.
    pub fn pause(&mut self) -> Result<(), PauseError> {
        if !self.is_paused() {
            self.brake.hold(Holder::User)?;
            log::info!("The guest is paused");
        }
        Ok(())
    }

    /// Lets a paused guest go on exactly where it was.
    pub fn resume(&mut self) {
        if self.is_paused() {
            self.brake.release(Holder::User);
            log::info!("The guest goes on");
            // One that stands still would let the time pass that it has to let go of the old ones.
            let Some(hotplug) = &self.targets.hotplug else {
                return;
            };
            for (new, reply) in self.successors.drain(..) {
                hotplug.replace_net(new, reply);
            }
        }
    }

    /// Gives the guest the interface `new` in place of the one of its name, when it goes on.
    pub fn replace_net(&mut self, new: Successor, reply: Reply) {
        self.successors.push((new, reply));
    }

    /// What a snapshot is taken of, and what the watchdog has left: of a guest that stands still.
    pub fn subject(&self) -> Option<(Arc<Subject>, WatchdogState)> {
        let watchdog = self.is_paused().then(|| self.brake.watchdog());
        Some((self.subject.clone(), watchdog??))
    }

    /// What a snapshot is taken of and what stops it, for who takes some while it runs.
    pub fn live_subject(&self) -> (Arc<Subject>, Arc<Brake>) {
        (self.subject.clone(), self.brake.clone())
    }

    /// Ends the threads of a run that has ended.
    pub fn end(mut self) {
        self.brake.end();
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
