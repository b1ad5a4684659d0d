//! Changing a disk while a guest has it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::Backend;

/// Why a disk cannot be changed.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The guest was told once and for all whether it may write.
    #[error("A {now} disk cannot be replaced by a {new} one while the guest has it")]
    Access {
        /// What it is.
        now: &'static str,
        /// What it would be.
        new: &'static str,
    },
    /// The device thread cannot be woken.
    #[error("Cannot wake the device")]
    Wake(#[source] io::Error),
}

/// What to do next. Both, if both were asked for: the length is looked at last.
#[derive(Default)]
pub(super) struct Orders {
    /// Put another disk in the place of the first.
    pub(super) replace: Option<Box<dyn Backend>>,
    /// The disk's length may have changed.
    pub(super) refresh: bool,
}

#[derive(Clone)]
pub(super) struct Mailbox {
    orders: Arc<Mutex<Orders>>,
    event: Arc<EventFd>,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            orders: Arc::default(),
            event: Arc::new(EventFd::new(EFD_NONBLOCK)?),
        })
    }

    /// Ready when there are orders. An edge.
    pub(super) fn descriptor(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    pub(super) fn take(&self) -> Orders {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Changes a disk from any thread. The device does it as soon as it gets to it, and tells its driver; of two
/// replacements that come in before that, the later one counts.
#[derive(Clone)]
pub struct BlockControl {
    pub(super) mailbox: Mailbox,
    pub(super) read_only: bool,
}

impl BlockControl {
    /// Puts `disk` in the place of the present one, which is closed. Requests in flight end on the old one.
    pub fn replace(&self, disk: Box<dyn Backend>) -> Result<(), ControlError> {
        if disk.read_only() != self.read_only {
            let name = |read_only| if read_only { "read-only" } else { "writable" };
            return Err(ControlError::Access {
                now: name(self.read_only),
                new: name(disk.read_only()),
            });
        }
        self.mailbox.lock().replace = Some(disk);
        self.send()
    }

    /// Looks again how long the disk is, and tells the guest.
    pub fn refresh(&self) -> Result<(), ControlError> {
        self.mailbox.lock().refresh = true;
        self.send()
    }

    fn send(&self) -> Result<(), ControlError> {
        self.mailbox.event.write(1).map_err(ControlError::Wake)
    }
}
