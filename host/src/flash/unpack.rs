//! The ELF kernel inside a bzImage.
//!
//! A kernel that was unpacked once by the host need not unpack itself in every guest. The layout is that of Linux'
//! `scripts/Makefile.lib` (`size_append`): a zstd frame, then the unpacked size in four little-endian bytes.

use firmware_glue::linux::{Kernel, KernelError, SETUP_HEADER};
use firmware_glue::payload::Payload as SelfPayload;
use thiserror::Error;

/// Two sectors, the least that a bzImage has before its code.
const SETUP_SIZE: usize = 1024;
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528u32.to_le_bytes();
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

/// Why a kernel is left as it is.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// No bzImage; an ELF, perhaps.
    #[error(transparent)]
    Header(#[from] KernelError),
    /// Not compressed by zstd, or too short for it.
    #[error("The kernel's payload is not compressed by zstd")]
    NotZstd,
    /// The size after unpacking contradicts the header.
    #[error(
        "The kernel says that it unpacks to {size} bytes, more than its init_size of {init_size}"
    )]
    Size {
        /// Size at the end of the payload.
        size: usize,
        /// Bytes the kernel says it needs in all.
        init_size: u32,
    },
    /// The frame is damaged.
    #[error("Cannot unpack the kernel")]
    Zstd(#[source] std::io::Error),
    /// What came out is something else.
    #[error("The unpacked kernel has {found} of {expected} bytes, or is no ELF file")]
    NotElf {
        /// Bytes that came out.
        found: usize,
        /// Bytes expected.
        expected: usize,
    },
}

/// The bzImage in a payload of coreboot's, as far as a loader needs it: without its code for the BIOS.
pub fn kernel_of_payload(payload: &[u8]) -> Option<Vec<u8>> {
    let (header, code) = SelfPayload::parse(payload).ok()?.linux()?;
    let mut image = vec![0; SETUP_SIZE];
    image
        .get_mut(SETUP_HEADER..SETUP_HEADER + header.len())?
        .copy_from_slice(header);
    // The first field: sectors of setup after the first.
    image[SETUP_HEADER] = 1;
    image.extend_from_slice(code);
    Some(image)
}

/// A compressed ELF kernel, with the size it unpacks to.
#[derive(Debug)]
pub struct Payload<'a> {
    frame: &'a [u8],
    /// Bytes of the ELF, at most `init_size`.
    pub size: usize,
}

impl<'a> Payload<'a> {
    /// Finds the payload of a bzImage.
    pub fn find(image: &'a [u8]) -> Result<Self, UnpackError> {
        let kernel = Kernel::parse(image)?;
        // `Kernel::parse` checked that the payload lies inside the code.
        let start = kernel.payload_offset as usize;
        let payload = kernel
            .code()
            .get(start..)
            .and_then(|rest| rest.get(..kernel.payload_length as usize))
            .ok_or(UnpackError::NotZstd)?;
        let (frame, size) = payload
            .split_last_chunk::<4>()
            .ok_or(UnpackError::NotZstd)?;
        if !frame.starts_with(&ZSTD_MAGIC) {
            return Err(UnpackError::NotZstd);
        }
        let size = u32::from_le_bytes(*size) as usize;
        if size == 0 || size > kernel.init_size as usize {
            return Err(UnpackError::Size {
                size,
                init_size: kernel.init_size,
            });
        }
        Ok(Self { frame, size })
    }

    /// Unpacks into `out`, which has [`Payload::size`] bytes.
    pub fn unpack(&self, out: &mut [u8]) -> Result<(), UnpackError> {
        let found = zstd::bulk::decompress_to_buffer(self.frame, out).map_err(UnpackError::Zstd)?;
        if found != self.size || !out.starts_with(&ELF_MAGIC) {
            return Err(UnpackError::NotElf {
                found,
                expected: self.size,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A bzImage whose payload is `elf`, compressed; by its header a sound one, but it could not run.
    pub(crate) fn bzimage(elf: &[u8], claimed_size: u32) -> Vec<u8> {
        let mut payload = zstd::bulk::compress(elf, 3).unwrap();
        payload.extend_from_slice(&claimed_size.to_le_bytes());
        let code = payload.len().next_multiple_of(16);
        let mut image = vec![0; 1024 + code];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1f4, &u32::try_from(code / 16).unwrap().to_le_bytes());
        put(0x1fe, &[0x55, 0xaa]);
        put(0x202, b"HdrS\x0f\x02");
        put(0x211, &[1]);
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x230, &0x20_0000u32.to_le_bytes());
        put(0x234, &[1]);
        put(0x258, &0x10_0000u64.to_le_bytes());
        put(0x24c, &u32::try_from(payload.len()).unwrap().to_le_bytes());
        put(0x260, &0x10_0000u32.to_le_bytes());
        put(1024, &payload);
        image
    }

    pub(crate) fn elf() -> Vec<u8> {
        let mut elf = b"\x7fELF".to_vec();
        elf.extend((0..50_000u32).flat_map(|n| (n % 251).to_le_bytes()));
        elf
    }

    fn unpack(image: &[u8]) -> Result<Vec<u8>, UnpackError> {
        let payload = Payload::find(image)?;
        let mut out = vec![0; payload.size];
        payload.unpack(&mut out)?;
        Ok(out)
    }

    #[test]
    fn elf_comes_out_as_it_went_in() {
        let elf = elf();
        let size = u32::try_from(elf.len()).unwrap();
        assert_eq!(unpack(&bzimage(&elf, size)).unwrap(), elf);
    }

    #[test]
    fn size_beyond_init_size_is_refused_before_memory_is_taken() {
        let image = bzimage(&elf(), 0x10_0001);
        assert!(matches!(
            Payload::find(&image),
            Err(UnpackError::Size {
                size: 0x10_0001,
                ..
            })
        ));
    }

    #[test]
    fn wrong_size_and_wrong_contents_are_refused() {
        let elf = elf();
        let size = u32::try_from(elf.len()).unwrap();
        assert!(matches!(
            unpack(&bzimage(&elf, size - 1)),
            Err(UnpackError::Zstd(_))
        ));
        assert!(matches!(
            unpack(&bzimage(&elf, size + 1)),
            Err(UnpackError::NotElf { .. })
        ));
        assert!(matches!(
            unpack(&bzimage(b"text", 4)),
            Err(UnpackError::NotElf { .. })
        ));
        assert!(matches!(unpack(b"\x7fELF"), Err(UnpackError::Header(_))));
    }

    proptest! {
        #[test]
        fn damage_never_panics(changes in prop::collection::vec((0usize..4096, any::<u8>()), 1..8)) {
            let elf = elf();
            let mut image = bzimage(&elf, u32::try_from(elf.len()).unwrap());
            let length = image.len();
            for (at, value) in changes {
                image[at % length] = value;
            }
            let _ = unpack(&image);
        }
    }
}
