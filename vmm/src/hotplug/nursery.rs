//! The thread on which devices are made and taken apart while the guest runs.
//!
//! Making a device opens what it is made of, may wait for an image's lock, and starts a thread, which inherits the system
//! call filter of its parent. Neither the event thread nor the API's shall do any of this. What the guest has is served
//! elsewhere: this thread sees no byte that a guest has written.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use devices::pci::PciFunction;

use super::{DeviceId, Hotplug, HotplugError, Reply, Successor};
use crate::config::{DriveConfig, NetConfig};
use crate::exit::ExitReason;
use crate::jail::seccomp::{Seccomp, ThreadKind};
use crate::logger::chain;

/// Bytes of stack: an image format's code goes a few dozen calls deep.
const STACK_BYTES: usize = 512 << 10;

/// A device to be plugged in.
pub(super) enum Attachment {
    Drive(Box<DriveConfig>),
    Net(Box<NetConfig>),
    /// At this device number, if it is still free.
    Successor(Box<Successor>, usize),
}

impl Attachment {
    pub(super) fn id(&self) -> DeviceId {
        match self {
            Self::Drive(drive) => DeviceId::Drive(drive.id.to_string()),
            Self::Net(net) => DeviceId::Net(net.id.clone()),
            Self::Successor(new, _) => DeviceId::Net(new.net.id.clone()),
        }
    }
}

/// What the thread is woken for.
pub(super) enum Job {
    /// Plug this in.
    Attach(Attachment, Reply),
    /// The guest has let go of what was at this device number.
    Ejected(usize, Arc<dyn PciFunction>),
    /// There is something to look after.
    Look,
    /// The run has ended.
    End,
}

/// Starts the thread for `hotplug`. It is not waited for: what it is at when the run ends goes with the process.
pub(super) fn start(
    hotplug: Arc<Hotplug>,
    jobs: Receiver<Job>,
    seccomp: Seccomp,
) -> io::Result<()> {
    thread::Builder::new()
        .name("hotplug".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            if let Err(error) = seccomp.enter(ThreadKind::Hotplug) {
                let latch = &hotplug.connections.latch;
                return latch.set(ExitReason::Error(chain(&error)));
            }
            serve(&hotplug, &jobs, &seccomp);
        })
        .map(drop)
}

fn serve(hotplug: &Hotplug, jobs: &Receiver<Job>, seccomp: &Seccomp) {
    let mut wait: Option<Duration> = None;
    loop {
        let job = match wait {
            Some(wait) => jobs.recv_timeout(wait),
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        wait = match job {
            Ok(Job::End) | Err(RecvTimeoutError::Disconnected) => break,
            Ok(job) => hotplug.step(Some(job), seccomp),
            Err(RecvTimeoutError::Timeout) => hotplug.step(None, seccomp),
        };
    }
    for job in jobs.try_iter() {
        if let Job::Attach(attachment, reply) = job {
            let id = attachment.id();
            reply(Err(HotplugError::Ended { id }));
        }
    }
}
