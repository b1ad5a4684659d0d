//! Virtio 1.2 devices: one state machine, several transports, one queue implementation.

pub mod device;
pub mod interrupt;
pub mod mmio;
pub mod queue;
pub mod state;
