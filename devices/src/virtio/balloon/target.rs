//! How large the host wants the balloon to be.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use event_manager::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::interrupt::Interrupt;
use crate::virtio::device::Source;

/// Sets how many pages the balloon shall have, from any thread.
#[derive(Clone, Debug)]
pub struct Target(Arc<(AtomicU32, EventFd)>);

impl Target {
    pub(super) fn new(pages: u32) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self(Arc::new((AtomicU32::new(pages), event))))
    }

    /// The balloon shall have this many pages of 4096 bytes.
    pub fn set(&self, pages: u32) -> io::Result<()> {
        self.0.0.store(pages, Ordering::Release);
        self.0.1.trigger()
    }

    /// How many it shall have.
    pub fn pages(&self) -> u32 {
        self.0.0.load(Ordering::Acquire)
    }

    pub(super) fn source(&self) -> Source {
        Source {
            fd: self.0.1.as_raw_fd(),
            events: EventSet::IN,
        }
    }

    pub(super) fn take(&self) -> u32 {
        // Only the ring matters; the counter does not.
        let _ = self.0.1.read();
        self.pages()
    }
}
