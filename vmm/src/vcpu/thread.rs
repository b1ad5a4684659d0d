//! The thread of one vCPU.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use kvm_ioctls::VcpuFd;

use super::VcpuError;
use super::exits::{self, Next};
use super::gate::Gate;
use super::kick::{self, Registration};
use crate::exit::ExitReason;
use crate::jail::seccomp::{Seccomp, ThreadKind};
use crate::latch::ExitLatch;
use crate::logger::chain;

pub use super::exits::Buses;

/// Bytes of stack of a vCPU thread: its deepest use is a device's register access.
const STACK_BYTES: usize = 256 << 10;

/// A running vCPU.
#[derive(Debug)]
pub struct VcpuThread {
    id: u8,
    handle: JoinHandle<()>,
}

impl VcpuThread {
    /// Its number.
    pub fn id(&self) -> u8 {
        self.id
    }

    /// Gets it out of the guest, so that it sees that the run has ended.
    pub fn kick(&self) {
        kick::kick(&self.handle);
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

/// What all vCPUs of a guest have in common.
#[derive(Clone)]
pub struct Setting {
    /// Where the guest's accesses go.
    pub buses: Arc<Buses>,
    /// The end of the run.
    pub latch: Arc<ExitLatch>,
    /// Where they stand while the guest is paused.
    pub gate: Arc<Gate>,
    /// The filters of system calls.
    pub seccomp: Seccomp,
}

/// Starts a vCPU. `before` runs on its thread just before it first enters the guest.
pub fn spawn(
    id: u8,
    vcpu: VcpuFd,
    setting: Setting,
    before: impl FnOnce() + Send + 'static,
) -> Result<VcpuThread, VcpuError> {
    let handle = thread::Builder::new()
        .name(format!("vcpu{id}"))
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let mut guard = EndGuard {
                id,
                setting: &setting,
                ended: false,
            };
            match setting.seccomp.enter(ThreadKind::Vcpu) {
                Ok(()) => guard.run(vcpu, before),
                Err(error) => setting.latch.set(ExitReason::Error(chain(&error))),
            }
            guard.ended = true;
        })
        .map_err(|source| VcpuError::Spawn { id, source })?;
    Ok(VcpuThread { id, handle })
}

/// Reports a thread that ends in any other way than by its loop, so that nobody waits for it for ever.
struct EndGuard<'a> {
    id: u8,
    setting: &'a Setting,
    ended: bool,
}

impl EndGuard<'_> {
    fn run(&self, mut vcpu: VcpuFd, before: impl FnOnce()) {
        let Setting {
            buses, latch, gate, ..
        } = self.setting;
        let mut vcpu = Registration::new(&mut vcpu);
        let park = |vcpu: &VcpuFd| gate.park(latch, |errand| errand(self.id, vcpu));
        // A guest that goes on from a snapshot begins paused.
        if gate.is_closed() {
            park(vcpu.vcpu());
            if latch.is_set() {
                return;
            }
        }
        before();
        loop {
            match exits::run(vcpu.vcpu(), buses) {
                Next::Run => {}
                Next::Check | Next::Kicked if latch.is_set() => return,
                // Only here: after a kick, KVM has ended what an exit had left open.
                Next::Kicked if gate.is_closed() => {
                    tell_of_pause(vcpu.vcpu(), self.id);
                    park(vcpu.vcpu());
                }
                Next::Check | Next::Kicked => {}
                Next::TripleFault => return latch.set(ExitReason::TripleFault),
                Next::Failed(message) => {
                    return latch.set(ExitReason::Error(format!("vCPU {}: {message}", self.id)));
                }
            }
        }
    }
}

/// Lets the guest know by its clock that it was stopped: its watchdogs then do not take the time for a hang.
fn tell_of_pause(vcpu: &VcpuFd, id: u8) {
    if let Err(error) = vcpu.kvmclock_ctrl() {
        // A guest without KVM's clock cannot be told.
        log::debug!("vCPU {id} is not told that it is paused: {error}");
    }
}

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.setting.latch.set(ExitReason::Error(format!(
                "The thread of vCPU {} panicked",
                self.id
            )));
        }
    }
}
