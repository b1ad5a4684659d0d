//! The guest's PCI bus: where it is, and what is at its root.

use std::sync::Arc;

use devices::bus::{Bus, BusError};
use devices::pci::bus::{CONFIG_PORTS, CONFIG_PORTS_LEN, ECAM_LEN};
use devices::pci::{HostBridge, PciBus, SLOTS, SlotError};

use crate::config::MemorySize;
use crate::layout::{GIB, PCI_ECAM, PCI_WINDOW, PCI_WINDOW_END, PCI_WINDOW_HIGH_LEN};
use crate::memory;

/// The device number of the host bridge.
pub const HOST_BRIDGE: usize = 0;

/// Slots that are empty when the guest starts. Linux looks at each slot while it boots, which takes it half a millisecond.
const EMPTY_SLOTS: usize = 8;

/// The device numbers that can be used on a bus with `present` functions: those that are taken, and the empty slots.
pub fn slot_limit(present: usize) -> usize {
    present.saturating_add(EMPTY_SLOTS).min(SLOTS)
}

/// Why there is no PCI bus.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// Something else is there.
    #[error("Cannot place the PCI bus")]
    Bus(#[from] BusError),
    /// It has no room.
    #[error("Cannot place the PCI host bridge")]
    Slot(#[from] SlotError),
}

/// What the guest is told of its PCI bus before it looks: where the functions' memory may be, as (first, last) address below
/// and above 4 GiB, and where functions come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciLayout {
    /// All regions are here when the guest starts.
    pub low: (u64, u64),
    /// For a guest that moves a region above its RAM.
    pub high: (u64, u64),
    /// Bitmap of the device numbers that are slots: empty ones, and those with a device that can be removed.
    pub pluggable: u32,
}

impl PciLayout {
    /// The bus of a guest with `ram`, on which device numbers below `limit` but those of the bitmap `fixed` are slots.
    pub fn new(ram: MemorySize, limit: usize, fixed: u32) -> Self {
        let end = memory::regions(ram.bytes())
            .last()
            .map_or(0, |(base, len)| base + len);
        let high = end.max(4 * GIB).next_multiple_of(GIB);
        Self {
            low: (PCI_WINDOW, PCI_WINDOW_END - 1),
            high: (high, high + PCI_WINDOW_HIGH_LEN - 1),
            pluggable: (0..limit.min(SLOTS)).fold(0, |slots, slot| slots | 1 << slot)
                & !(fixed | 1 << HOST_BRIDGE),
        }
    }
}

/// Puts a bus with nothing but its host bridge where the guest finds it.
pub fn build(layout: &PciLayout, ports: &mut Bus, mmio: &mut Bus) -> Result<Arc<PciBus>, PciError> {
    let bus = PciBus::new();
    bus.insert(HOST_BRIDGE, Arc::new(HostBridge::new()))?;
    ports.insert(CONFIG_PORTS, CONFIG_PORTS_LEN, bus.config_ports())?;
    mmio.insert(PCI_ECAM, ECAM_LEN, bus.ecam())?;
    for (first, last) in [layout.low, layout.high] {
        mmio.insert(first, last - first + 1, bus.window(first))?;
    }
    Ok(bus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_outside_of_ram_and_of_each_other() {
        for mib in [2, 128, 3328, 3329, 4096, 1 << 20] {
            let ram = MemorySize::from_mib("m", mib).unwrap();
            let windows = PciLayout::new(ram, SLOTS, 0);
            for (base, len) in memory::regions(ram.bytes()) {
                for (first, last) in [windows.low, windows.high] {
                    assert!(last < base || base + len <= first, "{mib} MiB");
                }
            }
            assert!(windows.low.1 < PCI_ECAM && windows.high.0 >= 4 * GIB);
            build(&windows, &mut Bus::new(), &mut Bus::new()).unwrap();
        }
    }

    #[test]
    fn host_bridge_is_found_by_both_ways() {
        let (mut ports, mut mmio) = (Bus::new(), Bus::new());
        let ram = MemorySize::from_mib("m", 128).unwrap();
        build(&PciLayout::new(ram, SLOTS, 0), &mut ports, &mut mmio).unwrap();
        let mut by_port = [0; 4];
        assert!(ports.write(CONFIG_PORTS, &0x8000_0000_u32.to_le_bytes()));
        assert!(ports.read(CONFIG_PORTS + 4, &mut by_port));
        let mut by_memory = [0; 4];
        assert!(mmio.read(PCI_ECAM, &mut by_memory));
        assert_eq!(by_port, by_memory);
        assert_ne!(by_port, [0xff; 4]);
        assert!(mmio.read(PCI_ECAM + (1 << 15), &mut by_memory));
        assert_eq!(by_memory, [0xff; 4], "nobody at 00:01.0");
    }
}
