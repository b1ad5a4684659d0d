//! The host bridge: what a driver finds at 00:00.0. It has nothing to set.

use super::PciFunction;
use super::config_space::{Bar, ConfigSpace, Identity};

/// Red Hat's vendor number, from the part it gave to virtual machines.
const VENDOR: u16 = 0x1b36;
/// QEMU's generic PCI Express host bridge, which needs no driver.
const DEVICE: u16 = 0x0008;
/// A bridge to the host.
const CLASS: [u8; 3] = [6, 0, 0];

/// Function 00:00.0.
pub struct HostBridge(ConfigSpace);

impl HostBridge {
    /// The bridge.
    pub fn new() -> Self {
        Self(ConfigSpace::new(&Identity {
            vendor: VENDOR,
            device: DEVICE,
            revision: 0,
            class: CLASS,
            subsystem: (0, 0),
        }))
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, register: u16, data: &mut [u8]) {
        self.0.read(register, data);
    }

    fn write_config(&self, _register: u16, _data: &[u8]) {}

    fn memory(&self) -> Option<Bar> {
        None
    }

    fn read_memory(&self, _offset: u64, _data: &mut [u8]) {}

    fn write_memory(&self, _offset: u64, _data: &[u8]) {}
}
