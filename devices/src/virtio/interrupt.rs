//! How the state machine and the devices interrupt the driver, whatever the transport.

use std::sync::Arc;

/// The interrupts of one virtio device, implemented by its transport.
///
/// Called from device threads and vCPU threads alike, without any lock of the device held by contract:
/// an implementation must not lock the device's state.
pub trait VirtioInterrupt: Send + Sync {
    /// Used buffers of queue `index` wait for the driver (virtio 1.2 §2.9).
    fn signal_queue(&self, index: u16);

    /// The device's configuration, or its status, has changed.
    fn signal_config(&self);
}

/// The interrupt of one queue.
#[derive(Clone)]
pub struct QueueInterrupt {
    interrupt: Arc<dyn VirtioInterrupt>,
    index: u16,
}

impl QueueInterrupt {
    /// The interrupt of queue `index`.
    pub fn new(interrupt: Arc<dyn VirtioInterrupt>, index: u16) -> Self {
        Self { interrupt, index }
    }

    /// Tells the driver that used buffers wait for it.
    pub fn signal(&self) {
        self.interrupt.signal_queue(self.index);
    }
}
