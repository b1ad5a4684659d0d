//! PCI: configuration space, one bus, interrupt messages.
//!
//! There is one bus without bridges: up to 32 functions, one for each device number, with at most one memory region
//! each. What a virtio function is made of:
//!
//! ```text
//!   config access (ECAM or ports)          memory access (a BAR)
//!        │                                      │
//!        ▼                                      ▼
//!    bus::PciBus ───────► PciFunction: virtio::pci::VirtioPci
//!                              │              │
//!                       ConfigSpace         Msix ──► MsiSink (the VMM: an irqfd for each vector)
//! ```

pub mod bus;
pub mod config_space;
pub mod host_bridge;
pub mod hotplug;
pub mod msix;

pub use bus::{PciBus, SLOTS, SlotError};
pub use config_space::{Bar, ConfigSpace, Identity};
pub use host_bridge::HostBridge;
pub use hotplug::HotplugRegisters;
pub use msix::{MsiMessage, MsiSink, Msix};

use crate::virtio::pci::VirtioPci;

/// One function on the bus. Several vCPUs may call at once.
pub trait PciFunction: Send + Sync {
    /// The function as what it is, if it is a virtio device's: the one kind that has a state to be saved.
    fn as_virtio(&self) -> Option<&VirtioPci> {
        None
    }

    /// Fills `data` from configuration space at `register`. The access does not leave the function's 4 KiB.
    fn read_config(&self, register: u16, data: &mut [u8]);

    /// Takes a write to configuration space, bounded as for [`read_config`](Self::read_config).
    fn write_config(&self, register: u16, data: &[u8]);

    /// The memory the function answers for now, if it has a region and memory decoding is on.
    fn memory(&self) -> Option<Bar>;

    /// Fills `data` from `offset` of the function's memory. The access does not leave the region.
    fn read_memory(&self, offset: u64, data: &mut [u8]);

    /// Takes a write to the function's memory, bounded as for [`read_memory`](Self::read_memory).
    fn write_memory(&self, offset: u64, data: &[u8]);
}
