//! Virtio 1.2 devices: one state machine, several transports, one queue implementation.
//!
//! A device is added by implementing [`device::VirtioDevice`] (the smallest one is [`rng`]) and
//! handing it to a transport; the transport's [`worker`](mmio::MmioTransport::worker) goes to the
//! event loop of a device thread.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
pub mod device;
#[cfg(test)]
mod driver_tests;
pub mod fs;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod pmem;
pub mod queue;
pub mod rng;
pub mod saved;
#[cfg(test)]
mod snapshot_tests;
pub mod state;
#[cfg(test)]
mod sweep;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
pub mod vectors;
pub mod vhost_user;
pub mod vsock;
pub mod worker;
