//! Linux's `struct boot_params` ("zero page", x86 boot protocol).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress};

use super::initrd::Initrd;
use super::{BootError, MemoryRange};
use crate::layout::{CMDLINE, ZERO_PAGE};
use crate::memory::GuestMemory;

/// "HdrS".
pub const SETUP_MAGIC: u32 = 0x5372_6448;
/// `boot_flag` at the end of the first sector.
const BOOT_FLAG: u16 = 0xaa55;
/// `type_of_loader` of a loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// Smallest alignment of a kernel without a header of its own.
const KERNEL_ALIGNMENT: u32 = 0x0100_0000;

/// Writes the zero page. `header` is the setup header of a bzImage; an ELF image has none and gets a minimal one.
pub fn write(
    memory: &GuestMemory,
    map: &[MemoryRange],
    header: Option<setup_header>,
    initrd: Option<Initrd>,
    cmdline_length: usize,
    rsdp: Option<u64>,
) -> Result<(), BootError> {
    // The size is a page: on the heap, not on a thread's stack.
    let mut params = Box::<boot_params>::default();
    params.hdr = header.unwrap_or_else(|| setup_header {
        header: SETUP_MAGIC,
        boot_flag: BOOT_FLAG,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..Default::default()
    });
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = low(CMDLINE);
    params.hdr.cmdline_size = u32::try_from(cmdline_length).unwrap_or(u32::MAX);
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = low(initrd.address);
        params.hdr.ramdisk_size = low(initrd.size);
    }
    params.acpi_rsdp_addr = rsdp.unwrap_or(0);
    let mut entries = 0u8;
    for (entry, range) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.size,
            r#type: range.kind as u32,
        };
        entries += 1;
    }
    params.e820_entries = entries;
    memory
        .write_obj(*params, GuestAddress(ZERO_PAGE))
        .map_err(|source| BootError::WriteMemory {
            what: "the zero page",
            address: ZERO_PAGE,
            source,
        })
}

/// An address or size that is below 4 GiB because low RAM ends before.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::memory_map;
    use crate::memory::testing::ram;

    #[test]
    fn fields_are_where_the_boot_protocol_puts_them() {
        let memory = ram(4);
        let initrd = Initrd {
            address: 0x30_0000,
            size: 0x1234,
        };
        write(
            &memory,
            &memory_map(&memory),
            None,
            Some(initrd),
            11,
            Some(0xe_0000),
        )
        .unwrap();
        let word = |offset| {
            memory
                .read_obj::<u32>(GuestAddress(ZERO_PAGE + offset))
                .unwrap()
        };
        assert_eq!(word(0x202), SETUP_MAGIC);
        assert_eq!((word(0x218), word(0x21c)), (0x30_0000, 0x1234));
        assert_eq!(word(0x228), 0x2_0000);
        assert_eq!(word(0x70), 0xe_0000);
        assert_eq!(
            memory
                .read_obj::<u8>(GuestAddress(ZERO_PAGE + 0x1e8))
                .unwrap(),
            u8::try_from(memory_map(&memory).len()).unwrap()
        );
    }
}
