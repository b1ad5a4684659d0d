//! Page tables for the 64-bit entry: the first GiB, mapped to itself with 2 MiB pages.

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::layout::{PAGE_DIRECTORY, PDPT, PML4};
use crate::memory::GuestMemory;

/// Present and writable.
const TABLE: u64 = 0b11;
/// Present, writable, a 2 MiB page.
const LARGE_PAGE: u64 = 0b1000_0011;

/// Writes the tables. The x86 boot protocol asks for a mapping of the kernel, the zero page and the command line, which
/// all are in the first GiB; a kernel maps the rest itself.
pub fn write(memory: &GuestMemory) -> Result<(), BootError> {
    let put = |what, address, bytes: &[u8]| {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|source| BootError::WriteMemory {
                what,
                address,
                source,
            })
    };
    put(
        "the boot page table's root",
        PML4,
        &(PDPT | TABLE).to_le_bytes(),
    )?;
    put(
        "the boot page table's second level",
        PDPT,
        &(PAGE_DIRECTORY | TABLE).to_le_bytes(),
    )?;
    let directory: Vec<u8> = (0..512u64)
        .flat_map(|index| (index << 21 | LARGE_PAGE).to_le_bytes())
        .collect();
    put("the boot page directory", PAGE_DIRECTORY, &directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::ram;

    #[test]
    fn every_address_of_the_first_gib_is_itself() {
        let memory = ram(1);
        write(&memory).unwrap();
        let entry = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        for address in [0u64, 0x7000, 0x10_0000, 0x3fff_ffff] {
            let pdpt = entry(PML4 + (address >> 39 & 511) * 8) & !0xfff;
            let directory = entry(pdpt + (address >> 30 & 511) * 8) & !0xfff;
            let page = entry(directory + (address >> 21 & 511) * 8);
            assert_eq!(page & 0x83, LARGE_PAGE);
            assert_eq!((page & !0x1f_ffff) + (address & 0x1f_ffff), address);
        }
    }
}
