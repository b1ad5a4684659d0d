//! What a guest finds at its PVH entry (Xen's x86/HVM direct boot ABI, `hvm_start_info` version 1).

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::initrd::Initrd;
use super::{BootError, MemoryRange};
use crate::layout::{CMDLINE, PVH_MEMORY_MAP, PVH_MODULES, PVH_START_INFO};
use crate::memory::GuestMemory;

/// Version 1 has the memory map.
const VERSION: u32 = 1;

/// Writes start info, module list and memory map.
pub fn write(
    memory: &GuestMemory,
    map: &[MemoryRange],
    initrd: Option<Initrd>,
    rsdp: Option<u64>,
) -> Result<(), BootError> {
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.address,
            size: initrd.size,
            ..Default::default()
        };
        put(memory, "the PVH module list", PVH_MODULES, module)?;
    }
    let mut entries = 0u32;
    for (range, address) in map
        .iter()
        .zip((PVH_MEMORY_MAP..).step_by(size_of::<hvm_memmap_table_entry>()))
    {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            type_: range.kind as u32,
            reserved: 0,
        };
        put(memory, "the PVH memory map", address, entry)?;
        entries += 1;
    }
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { PVH_MODULES } else { 0 },
        cmdline_paddr: CMDLINE,
        rsdp_paddr: rsdp.unwrap_or(0),
        memmap_paddr: PVH_MEMORY_MAP,
        memmap_entries: entries,
        ..Default::default()
    };
    put(memory, "the PVH start info", PVH_START_INFO, info)
}

fn put<T: ByteValued>(
    memory: &GuestMemory,
    what: &'static str,
    address: u64,
    value: T,
) -> Result<(), BootError> {
    memory
        .write_obj(value, GuestAddress(address))
        .map_err(|source| BootError::WriteMemory {
            what,
            address,
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::memory_map;
    use crate::memory::testing::ram;

    #[test]
    fn start_info_points_to_everything() {
        let memory = ram(4);
        let map = memory_map(&memory);
        write(
            &memory,
            &map,
            Some(Initrd {
                address: 0x30_0000,
                size: 5,
            }),
            Some(0xe_0000),
        )
        .unwrap();
        let info: hvm_start_info = memory.read_obj(GuestAddress(PVH_START_INFO)).unwrap();
        assert_eq!(info.magic, XEN_HVM_START_MAGIC_VALUE);
        assert_eq!((info.cmdline_paddr, info.rsdp_paddr), (CMDLINE, 0xe_0000));
        assert_eq!(info.memmap_entries as usize, map.len());
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x30_0000, 5));
    }

    #[test]
    fn without_an_initrd_there_is_no_module() {
        let memory = ram(4);
        write(&memory, &memory_map(&memory), None, None).unwrap();
        let info: hvm_start_info = memory.read_obj(GuestAddress(PVH_START_INFO)).unwrap();
        assert_eq!(
            (info.nr_modules, info.modlist_paddr, info.rsdp_paddr),
            (0, 0, 0)
        );
    }
}
