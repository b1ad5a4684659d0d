//! bzImage kernels, started at their 64-bit entry (Linux x86 boot protocol 2.12 or newer).

use std::fs::File;
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{KernelLoader, bzimage::BzImage};
use vm_memory::{ByteValued, GuestAddress};

use super::zero_page::SETUP_MAGIC;
use super::{BootError, Entry, LoadedKernel};
use crate::config::BootProtocol;
use crate::memory::{self, GuestMemory};

/// Where the setup header starts in the file.
const HEADER_START: usize = 0x1f1;
/// Where it ends at the latest.
pub const HEADER_END: usize = HEADER_START + size_of::<setup_header>();
/// Where the header's magic number is.
const MAGIC_AT: usize = 0x202;
/// Protocol 2.12 introduced `xloadflags`.
const VERSION_XLOADFLAGS: u16 = 0x020c;
/// `xloadflags`: the kernel has a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// Distance of the 64-bit entry from the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;
/// A sector, the unit of `setup_sects`.
const SECTOR: u64 = 512;
/// `setup_sects` of a header that says 0.
const DEFAULT_SETUP_SECTORS: u8 = 4;

/// Whether a file that starts with `head` has a Linux setup header.
pub fn is_bzimage(head: &[u8]) -> bool {
    head.get(MAGIC_AT..MAGIC_AT + 4) == Some(SETUP_MAGIC.to_le_bytes().as_slice())
}

/// Loads a bzImage of `size` bytes whose first bytes are `head`.
pub fn load(
    memory: &GuestMemory,
    path: &Path,
    file: &mut File,
    size: u64,
    head: &[u8],
    protocol: BootProtocol,
) -> Result<LoadedKernel, BootError> {
    if protocol == BootProtocol::Pvh {
        return Err(BootError::NoPvhEntry { path: path.into() });
    }
    let (header, place) = check(path, size, head, memory::low_ram(memory))?;
    // The loader reads exactly what is left of the file after the setup sectors, which was checked to fit.
    BzImage::load(memory, Some(GuestAddress(place.start)), file, None).map_err(|source| {
        BootError::Loader {
            path: path.into(),
            source,
        }
    })?;
    Ok(LoadedKernel {
        entry: Entry::Linux64 {
            rip: place.start + ENTRY_64,
        },
        end: place.end,
        initrd_limit: u64::from(header.initrd_addr_max).saturating_add(1),
        setup_header: Some(header),
    })
}

/// Checks the header and says which memory the kernel needs while it unpacks itself.
fn check(
    path: &Path,
    size: u64,
    head: &[u8],
    ram: u64,
) -> Result<(setup_header, std::ops::Range<u64>), BootError> {
    let truncated = |what, needed| BootError::Truncated {
        path: path.into(),
        what,
        needed,
        size,
    };
    let raw = head
        .get(HEADER_START..HEADER_END)
        .ok_or_else(|| truncated("the setup header", HEADER_END as u64))?;
    let mut header = setup_header::default();
    header.as_mut_slice().copy_from_slice(raw);
    let (version, xloadflags) = (header.version, header.xloadflags);
    if version < VERSION_XLOADFLAGS || xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry { path: path.into() });
    }
    let sectors = match header.setup_sects {
        0 => DEFAULT_SETUP_SECTORS,
        sectors => sectors,
    };
    let setup_bytes = (u64::from(sectors) + 1) * SECTOR;
    // `syssize` counts the protected-mode code in 16-byte units. `payload_offset` and `payload_length` say the same
    // from the other side, with less rounding.
    let code_bytes = u64::from(header.syssize) * 16;
    let payload_bytes = u64::from(header.payload_offset) + u64::from(header.payload_length);
    let needed = setup_bytes + payload_bytes.max(code_bytes.saturating_sub(15));
    if size < needed {
        return Err(truncated("the compressed kernel", needed));
    }
    // Linux takes what its loader chose, but never unpacks itself below its preferred address.
    let start = header.pref_address;
    let in_file = size - setup_bytes;
    let needed = u64::from(header.init_size).max(in_file);
    let end = start.saturating_add(needed);
    Ok((header, super::kernel_place(path, start..end, ram)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::ram;
    use proptest::prelude::*;
    use std::io::Write;
    use vm_memory::Bytes;

    const PREFERRED: u64 = 0x20_0000;

    /// A bzImage of 5 setup sectors and `code` bytes of protected-mode code.
    fn image(code: u32, change: impl FnOnce(&mut setup_header)) -> Vec<u8> {
        let mut header = setup_header {
            setup_sects: 4,
            header: SETUP_MAGIC,
            version: 0x020f,
            loadflags: 1,
            xloadflags: XLF_KERNEL_64,
            code32_start: 0x10_0000,
            syssize: code / 16,
            init_size: 0x1_0000,
            pref_address: PREFERRED,
            initrd_addr_max: 0x7fff_ffff,
            ..Default::default()
        };
        change(&mut header);
        let mut bytes = vec![0u8; 5 * 512];
        bytes[HEADER_START..HEADER_END].copy_from_slice(header.as_slice());
        bytes.resize(bytes.len() + code as usize, 0x90);
        bytes
    }

    fn try_load(memory: &GuestMemory, bytes: &[u8]) -> Result<LoadedKernel, BootError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let mut opened = file.reopen().unwrap();
        let head = &bytes[..bytes.len().min(HEADER_END)];
        load(
            memory,
            file.path(),
            &mut opened,
            bytes.len() as u64,
            head,
            BootProtocol::Auto,
        )
    }

    #[test]
    fn a_good_image_starts_at_its_64_bit_entry() {
        let memory = ram(4);
        let kernel = try_load(&memory, &image(1024, |_| ())).unwrap();
        assert_eq!(
            kernel.entry,
            Entry::Linux64 {
                rip: PREFERRED + 0x200
            }
        );
        assert_eq!(
            kernel.end,
            PREFERRED + 0x1_0000,
            "the room to unpack is reserved"
        );
        assert_eq!(kernel.initrd_limit, 0x8000_0000);
        assert_eq!(
            memory
                .read_obj::<u8>(GuestAddress(PREFERRED + 1023))
                .unwrap(),
            0x90
        );
    }

    #[test]
    fn a_truncated_image_is_refused_with_the_sizes() {
        let bytes = image(1024, |_| ());
        let text = try_load(&ram(4), &bytes[..3000]).unwrap_err().to_string();
        assert!(
            text.contains("ends at byte 3569, the file has 3000"),
            "{text}"
        );
        let text = try_load(&ram(4), &bytes[..0x210]).unwrap_err().to_string();
        assert!(text.contains("the setup header ends at byte"), "{text}");
    }

    #[test]
    fn a_kernel_without_a_64_bit_entry_is_refused() {
        let error = try_load(&ram(4), &image(1024, |header| header.xloadflags = 0)).unwrap_err();
        assert!(matches!(error, BootError::No64BitEntry { .. }));
    }

    #[test]
    fn a_kernel_that_cannot_unpack_in_memory_is_refused_with_the_sizes() {
        let bytes = image(1024, |header| header.init_size = 0x30_0000);
        let error = try_load(&ram(4), &bytes).unwrap_err();
        assert!(
            matches!(
                error,
                BootError::KernelOutsideMemory {
                    end: 0x50_0000,
                    ram: 0x40_0000,
                    ..
                }
            ),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn hostile_headers_terminate(
            flips in prop::collection::vec((HEADER_START..HEADER_END, any::<u8>()), 1..12),
        ) {
            let memory = ram(4);
            let mut bytes = image(1024, |_| ());
            for (at, value) in flips {
                bytes[at] = value;
            }
            drop(try_load(&memory, &bytes));
            let mut low = vec![0; 1 << 20];
            memory.read_slice(&mut low, GuestAddress(0)).unwrap();
            prop_assert!(low.iter().all(|byte| *byte == 0));
        }
    }
}
