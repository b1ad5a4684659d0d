//! The thread of one vCPU.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use kvm_ioctls::VcpuFd;

use super::VcpuError;
use super::exits::{self, Next};
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

/// What a vCPU's thread shares with the others.
pub struct Setting {
    /// Where the guest's accesses go.
    pub buses: Arc<Buses>,
    /// The end of the run.
    pub latch: Arc<ExitLatch>,
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
            let Setting {
                buses,
                latch,
                seccomp,
            } = setting;
            let mut guard = EndGuard {
                id,
                latch: &latch,
                ended: false,
            };
            match seccomp.enter(ThreadKind::Vcpu) {
                Ok(()) => {
                    before();
                    guard.run(vcpu, &buses);
                }
                Err(error) => latch.set(ExitReason::Error(chain(&error))),
            }
            guard.ended = true;
        })
        .map_err(|source| VcpuError::Spawn { id, source })?;
    Ok(VcpuThread { id, handle })
}

/// Reports a thread that ends in any other way than by its loop, so that nobody waits for it for ever.
struct EndGuard<'a> {
    id: u8,
    latch: &'a ExitLatch,
    ended: bool,
}

impl EndGuard<'_> {
    fn run(&self, mut vcpu: VcpuFd, buses: &Buses) {
        let mut vcpu = Registration::new(&mut vcpu);
        loop {
            match exits::run(vcpu.vcpu(), buses) {
                Next::Run => {}
                Next::Check if self.latch.is_set() => return,
                Next::Check => {}
                Next::TripleFault => return self.latch.set(ExitReason::TripleFault),
                Next::Failed(message) => {
                    return self
                        .latch
                        .set(ExitReason::Error(format!("vCPU {}: {message}", self.id)));
                }
            }
        }
    }
}

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.latch.set(ExitReason::Error(format!(
                "The thread of vCPU {} panicked",
                self.id
            )));
        }
    }
}
