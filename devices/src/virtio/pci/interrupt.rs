//! Which of the device's events is which interrupt vector (virtio 1.2 §4.1.5.1.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use crate::pci::{MsiSink, Msix};
use crate::virtio::interrupt::VirtioInterrupt;

/// The vector of an event that is not to interrupt.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// ISR status: used buffers wait (§4.1.4.5).
const QUEUE: u8 = 1 << 0;
/// ISR status: the configuration or the device's status has changed.
const CONFIG: u8 = 1 << 1;

/// The vectors a driver has given to the device's events, and ISR status. None of it needs the device's lock.
pub(super) struct PciInterrupt {
    msix: Msix,
    status: AtomicU8,
    config: AtomicU16,
    queues: Box<[AtomicU16]>,
}

impl PciInterrupt {
    pub(super) fn new(vectors: u16, queues: usize, sink: Arc<dyn MsiSink>) -> Self {
        Self {
            msix: Msix::new(vectors, sink),
            status: AtomicU8::new(0),
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        }
    }

    pub(super) fn msix(&self) -> &Msix {
        &self.msix
    }

    /// ISR status, which reading clears.
    pub(super) fn take_status(&self) -> u8 {
        self.status.swap(0, Ordering::SeqCst)
    }

    /// The vector of the configuration, or of queue `index`; none for a queue that does not exist.
    pub(super) fn vector(&self, of: Option<u32>) -> u16 {
        self.slot(of)
            .map_or(NO_VECTOR, |slot| slot.load(Ordering::SeqCst))
    }

    /// Gives the event a vector. One that does not exist reads back as none (§4.1.5.1.2.1).
    pub(super) fn set_vector(&self, of: Option<u32>, vector: u16) {
        if let Some(slot) = self.slot(of) {
            let exists = vector < self.msix.vectors();
            slot.store(if exists { vector } else { NO_VECTOR }, Ordering::SeqCst);
        }
    }

    /// A reset of the device takes all vectors away. The MSI-X table stays: it is PCI's.
    pub(super) fn reset(&self) {
        for slot in self.queues.iter().chain([&self.config]) {
            slot.store(NO_VECTOR, Ordering::SeqCst);
        }
        self.status.store(0, Ordering::SeqCst);
    }

    /// ISR status, which looking at does not clear.
    pub(super) fn status(&self) -> u8 {
        self.status.load(Ordering::SeqCst)
    }

    /// Sets ISR status as it was.
    pub(super) fn set_status(&self, status: u8) {
        self.status
            .store(status & (QUEUE | CONFIG), Ordering::SeqCst);
    }

    fn slot(&self, of: Option<u32>) -> Option<&AtomicU16> {
        match of {
            None => Some(&self.config),
            Some(index) => self.queues.get(index as usize),
        }
    }

    fn signal(&self, reason: u8, of: Option<u32>) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        let vector = self.vector(of);
        if vector != NO_VECTOR {
            self.msix.signal(vector);
        }
    }
}

impl VirtioInterrupt for PciInterrupt {
    fn signal_queue(&self, index: u16) {
        self.signal(QUEUE, Some(index.into()));
    }

    fn signal_config(&self) {
        self.signal(CONFIG, None);
    }
}
