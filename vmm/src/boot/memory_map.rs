//! What the firmware of a PC would say about memory (e820).

use devices::pci::bus::ECAM_LEN;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout::{ACPI, ACPI_END, GENERATION_ID, HIGH_RAM, LOW_RAM_END, PCI_ECAM};
use crate::memory::GuestMemory;

/// What a range of addresses is for; the numbers are those of e820 and of PVH's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// RAM, free for the guest.
    Ram = 1,
    /// Not RAM, whatever is there.
    Reserved = 2,
    /// ACPI tables: RAM once they are read.
    Acpi = 3,
}

/// One range of guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Use.
    pub kind: Kind,
}

/// The memory map of a guest, by rising address. Linux uses PCI configuration space as memory only where that is
/// reserved; without PCI the range is a hole like the rest, and it does no harm that nobody uses it.
pub fn memory_map(memory: &GuestMemory) -> Vec<MemoryRange> {
    let mut map = vec![
        MemoryRange {
            start: 0,
            size: LOW_RAM_END,
            kind: Kind::Ram,
        },
        MemoryRange {
            start: ACPI,
            size: ACPI_END - ACPI,
            kind: Kind::Acpi,
        },
        MemoryRange {
            start: GENERATION_ID,
            size: HIGH_RAM - GENERATION_ID,
            kind: Kind::Reserved,
        },
    ];
    for region in memory.iter() {
        let start = region.start_addr().raw_value().max(HIGH_RAM);
        let end = region.start_addr().raw_value().saturating_add(region.len());
        if start < end {
            map.push(MemoryRange {
                start,
                size: end - start,
                kind: Kind::Ram,
            });
        }
    }
    map.push(MemoryRange {
        start: PCI_ECAM,
        size: ECAM_LEN,
        kind: Kind::Reserved,
    });
    map.sort_unstable_by_key(|range| range.start);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MIB;
    use vm_memory::GuestAddress;

    #[test]
    fn ranges_rise_and_do_not_overlap() {
        let memory = devices::memory::anonymous(&[
            (GuestAddress(0), 16 << 20),
            (GuestAddress(1 << 32), 4 << 20),
        ])
        .unwrap();
        let map = memory_map(&memory);
        for pair in map.windows(2) {
            assert!(pair[0].start + pair[0].size <= pair[1].start, "{pair:x?}");
        }
        let ram = map[3..].iter().filter(|range| range.kind == Kind::Ram);
        let high: u64 = ram.map(|range| range.size).sum();
        assert_eq!(high, 19 * MIB, "all RAM above 1 MiB is in the map");
    }
}
