//! The setup header of a bzImage: what a boot loader must know of a kernel.
//!
//! Linux, Documentation/arch/x86/boot.rst ("the x86 boot protocol"). Version 2.10 (Linux 2.6.31) or newer is needed, the
//! first that says how much memory the kernel needs to unpack itself.

use thiserror::Error;

use crate::bytes::{array, le16, le32, le64};

/// Oldest boot protocol accepted: the first with `pref_address` and `init_size`.
pub const MIN_PROTOCOL: u16 = 0x020a;
/// Offset of the setup header in the bzImage and in the zero page.
pub const SETUP_HEADER: usize = 0x1f1;
/// `xloadflags`: the kernel has a 64-bit entry point at 0x200 from its start.
pub const XLF_KERNEL_64: u16 = 1;
/// `xloadflags`: kernel, boot parameters, command line and initramfs may lie above 4 GiB.
pub const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 2;

const SECTOR: usize = 512;

/// Why a file is no bzImage that can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KernelError {
    /// Not even the first two sectors.
    #[error("The kernel is {len} bytes long, too short for a bzImage")]
    TooShort {
        /// Bytes in the file.
        len: usize,
    },
    /// A signature is missing.
    #[error("The kernel is no bzImage: {what} is missing at offset {at:#x}")]
    NotBzImage {
        /// The signature.
        what: &'static str,
        /// Its offset.
        at: usize,
    },
    /// The protocol is too old.
    #[error("The kernel speaks boot protocol {}.{:02}, at least 2.10 is needed", .version >> 8, .version & 0xff)]
    Protocol {
        /// Version found.
        version: u16,
    },
    /// Not a bzImage but the old zImage, loaded below 1 MiB.
    #[error("The kernel is a zImage, to be loaded below 1 MiB; a bzImage is needed")]
    LoadedLow,
    /// The file is shorter than the header says.
    #[error("The kernel is cut off: its header says {needed} bytes, the file has {len}")]
    Truncated {
        /// Bytes that must be there.
        needed: u64,
        /// Bytes in the file.
        len: usize,
    },
    /// The compressed kernel proper lies outside the file.
    #[error(
        "The kernel's payload ({length:#x} bytes at {offset:#x}) lies outside its {available:#x} bytes of protected-mode code"
    )]
    Payload {
        /// Offset from the start of the protected-mode code.
        offset: u32,
        /// Length in bytes.
        length: u32,
        /// Bytes of protected-mode code.
        available: usize,
    },
    /// The alignment is no power of two, or zero.
    #[error("The kernel asks for an alignment of {alignment:#x}, which is no power of two")]
    Alignment {
        /// Alignment found.
        alignment: u32,
    },
    /// The kernel says that it needs less memory than its own code takes.
    #[error(
        "The kernel says it needs {init_size:#x} bytes of memory, less than its own {code:#x} bytes"
    )]
    InitSize {
        /// Size found.
        init_size: u32,
        /// Bytes of protected-mode code.
        code: usize,
    },
}

/// A bzImage whose header was checked.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<'a> {
    image: &'a [u8],
    code_at: usize,
    /// Boot protocol version, `0x020f` for 2.15.
    pub version: u16,
    /// Whether the kernel runs wherever it is loaded (aligned to `alignment`).
    pub relocatable: bool,
    /// Alignment in bytes, a power of two.
    pub alignment: u32,
    /// `XLF_…` bits; 0 before protocol 2.12.
    pub xloadflags: u16,
    /// Longest command line in bytes, without the NUL.
    pub cmdline_size: u32,
    /// Highest address that a byte of the initramfs may have.
    pub initrd_addr_max: u32,
    /// Where the kernel prefers to be.
    pub pref_address: u64,
    /// Bytes of memory that the kernel needs from its start until it can see the memory map.
    pub init_size: u32,
    /// Offset of the compressed kernel proper from the start of the protected-mode code, in bytes.
    pub payload_offset: u32,
    /// Length of the compressed kernel proper in bytes.
    pub payload_length: u32,
}

impl<'a> Kernel<'a> {
    /// Reads and checks the header of `image`, a whole bzImage.
    pub fn parse(image: &'a [u8]) -> Result<Self, KernelError> {
        let too_short = KernelError::TooShort { len: image.len() };
        let header = image.get(..2 * SECTOR).ok_or(too_short)?;
        // All offsets below lie in these 1,024 bytes, so `None` cannot come.
        let byte = |at: usize| header.get(at).copied().unwrap_or_default();
        let word = |at| le16(header, at).unwrap_or_default();
        let long = |at| le32(header, at).unwrap_or_default();
        let missing = |what, at| KernelError::NotBzImage { what, at };
        if word(0x1fe) != 0xaa55 {
            return Err(missing("the boot flag 0xAA55", 0x1fe));
        }
        if array(header, 0x202) != Some(*b"HdrS") {
            return Err(missing("the magic \"HdrS\"", 0x202));
        }
        let version = word(0x206);
        if version < MIN_PROTOCOL {
            return Err(KernelError::Protocol { version });
        }
        if byte(0x211) & 1 == 0 {
            return Err(KernelError::LoadedLow);
        }
        // boot.rst: zero stands for 4.
        let setup_sectors = match byte(0x1f1) {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let code_at = (setup_sectors + 1) * SECTOR;
        let code_size = u64::from(long(0x1f4)) * 16;
        let needed = code_at as u64 + code_size;
        if needed > image.len() as u64 || code_size == 0 {
            return Err(KernelError::Truncated {
                needed,
                len: image.len(),
            });
        }
        let code = image.len() - code_at;
        let alignment = long(0x230);
        if !alignment.is_power_of_two() {
            return Err(KernelError::Alignment { alignment });
        }
        let (payload_offset, payload_length) = (long(0x248), long(0x24c));
        if payload_offset
            .checked_add(payload_length)
            .is_none_or(|end| end as usize > code)
        {
            return Err(KernelError::Payload {
                offset: payload_offset,
                length: payload_length,
                available: code,
            });
        }
        let init_size = long(0x260);
        if (init_size as usize) < code {
            return Err(KernelError::InitSize { init_size, code });
        }
        Ok(Self {
            image,
            code_at,
            version,
            relocatable: byte(0x234) != 0,
            alignment,
            xloadflags: if version >= 0x020c { word(0x236) } else { 0 },
            cmdline_size: long(0x238),
            initrd_addr_max: long(0x22c),
            pref_address: le64(header, 0x258).unwrap_or_default(),
            init_size,
            payload_offset,
            payload_length,
        })
    }

    /// The setup header, which goes to the same offset ([`SETUP_HEADER`]) of the zero page.
    pub fn setup_header(&self) -> &'a [u8] {
        // boot.rst, "details of header fields": it ends at 0x202 plus the byte at 0x201. No version of the protocol has
        // more than 0x290, where the e820 table of the zero page would be near.
        let end = (0x202 + usize::from(self.image[0x201])).clamp(0x264, 0x290);
        &self.image[SETUP_HEADER..end]
    }

    /// The code that is copied to memory and entered.
    pub fn code(&self) -> &'a [u8] {
        &self.image[self.code_at..]
    }

    /// Whether there is a 64-bit entry point, 0x200 from the start of the code.
    pub fn has_64bit_entry(&self) -> bool {
        self.xloadflags & XLF_KERNEL_64 != 0
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The smallest file that is a sound bzImage by its header; it could not run.
    pub(crate) fn bzimage(code: usize) -> Vec<u8> {
        let code = code.next_multiple_of(16);
        let mut image = vec![0; 1024 + code];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1f4, &u32::try_from(code / 16).unwrap().to_le_bytes());
        put(0x1fe, &[0x55, 0xaa]);
        put(0x200, &[0xeb, 0x66]);
        put(0x202, b"HdrS\x0f\x02");
        put(0x211, &[1]);
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x230, &0x20_0000u32.to_le_bytes());
        put(0x234, &[1]);
        put(0x236, &XLF_KERNEL_64.to_le_bytes());
        put(0x238, &2047u32.to_le_bytes());
        put(0x24c, &16u32.to_le_bytes());
        put(0x258, &0x100_0000u64.to_le_bytes());
        put(0x260, &0x200_0000u32.to_le_bytes());
        image
    }

    #[test]
    fn a_sound_header_is_read() {
        let image = bzimage(4096);
        let kernel = Kernel::parse(&image).unwrap();
        assert_eq!(kernel.version, 0x020f);
        assert_eq!(kernel.code().len(), 4096);
        assert_eq!(kernel.pref_address, 0x100_0000);
        assert_eq!(kernel.init_size, 0x200_0000);
        assert!(kernel.relocatable && kernel.has_64bit_entry());
        assert_eq!(kernel.setup_header().len(), 0x268 - 0x1f1);
    }

    #[test]
    fn a_cut_kernel_is_refused_with_both_sizes() {
        let image = bzimage(4096);
        let error = Kernel::parse(&image[..3000]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "The kernel is cut off: its header says 5120 bytes, the file has 3000"
        );
        assert_eq!(
            Kernel::parse(&image[..600]).unwrap_err(),
            KernelError::TooShort { len: 600 }
        );
    }

    #[test]
    fn each_impossible_field_is_refused() {
        let check = |at: usize, bytes: &[u8]| {
            let mut image = bzimage(4096);
            image[at..at + bytes.len()].copy_from_slice(bytes);
            Kernel::parse(&image).unwrap_err()
        };
        assert!(matches!(
            check(0x1fe, &[0, 0]),
            KernelError::NotBzImage { at: 0x1fe, .. }
        ));
        assert!(matches!(
            check(0x202, b"hdrs"),
            KernelError::NotBzImage { at: 0x202, .. }
        ));
        assert_eq!(
            check(0x206, &[9, 2]).to_string(),
            "The kernel speaks boot protocol 2.09, at least 2.10 is needed"
        );
        assert_eq!(check(0x211, &[0]), KernelError::LoadedLow);
        assert!(matches!(
            check(0x230, &[0; 4]),
            KernelError::Alignment { alignment: 0 }
        ));
        assert!(matches!(
            check(0x230, &[3, 0, 0, 0]),
            KernelError::Alignment { .. }
        ));
        assert!(matches!(
            check(0x248, &[0xff; 4]),
            KernelError::Payload { .. }
        ));
        assert!(matches!(
            check(0x24c, &[0xff; 4]),
            KernelError::Payload { .. }
        ));
        assert!(matches!(
            check(0x260, &[0; 4]),
            KernelError::InitSize { init_size: 0, .. }
        ));
        assert!(matches!(
            check(0x1f4, &[0xff; 4]),
            KernelError::Truncated { .. }
        ));
    }

    proptest! {
        #[test]
        fn no_change_of_bytes_panics(changes in prop::collection::vec((0x1f0usize..0x270, any::<u8>()), 1..12)) {
            let mut image = bzimage(2048);
            for (at, value) in changes {
                image[at] = value;
            }
            if let Ok(kernel) = Kernel::parse(&image) {
                prop_assert!(kernel.setup_header().len() <= 0x290 - SETUP_HEADER);
                prop_assert!(kernel.code().len() <= kernel.init_size as usize);
            }
        }
    }
}
