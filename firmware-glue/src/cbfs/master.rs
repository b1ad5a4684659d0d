//! The master header: how CBFS was found before there was FMAP. New images may carry one for old payloads, as a file.

use core::ops::Range;

use crate::bytes::{array, be32};

/// First bytes: "ORBC".
const MAGIC: u32 = 0x4f52_4243;
const VERSION_1: u32 = 0x3131_3131;
/// "1112".
const VERSION_2: u32 = 0x3131_3132;
const SIZE: usize = 32;
/// Bytes at the end of the image, or of the region, that say where the header is.
pub(super) const POINTER_SIZE: usize = 4;
/// What coreboot calls x86.
const ARCHITECTURE_X86: u32 = 1;
const ARCHITECTURE_UNKNOWN: u32 = 0xffff_ffff;

/// A master header, checked against its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MasterHeader {
    /// Offset of the header in the image.
    pub at: usize,
    /// Bytes of flash.
    pub rom_size: u32,
    /// Bytes at the end of flash that belong to the boot block and not to CBFS.
    pub bootblock_size: u32,
    /// Offset of the first file.
    pub offset: u32,
    /// coreboot's number of the processor's architecture.
    pub architecture: u32,
}

impl MasterHeader {
    /// The header that the last four bytes of `image` lead to: their offset from its end, negative, little-endian.
    pub fn find(image: &[u8]) -> Option<Self> {
        let pointer_at = image.len().checked_sub(POINTER_SIZE)?;
        let back = i32::from_le_bytes(array(image, pointer_at)?);
        if back >= 0 {
            return None;
        }
        let at = image.len().checked_sub(back.unsigned_abs() as usize)?;
        Self::parse(image, at)
    }

    /// The header at offset `at` of `image`.
    pub fn parse(image: &[u8], at: usize) -> Option<Self> {
        let bytes = image.get(at..at.checked_add(SIZE)?)?;
        let version = be32(bytes, 4)?;
        if be32(bytes, 0)? != MAGIC || !matches!(version, VERSION_1 | VERSION_2) {
            return None;
        }
        Some(Self {
            at,
            rom_size: be32(bytes, 8)?,
            bootblock_size: be32(bytes, 12)?,
            offset: be32(bytes, 20)?,
            architecture: if version == VERSION_2 {
                be32(bytes, 24)?
            } else {
                ARCHITECTURE_UNKNOWN
            },
        })
    }

    /// Where CBFS lies in an image of `len` bytes that has no flash map; `None` if what the header says cannot be.
    pub fn range(&self, len: usize) -> Option<Range<usize>> {
        let end = (self.rom_size as usize).checked_sub(self.bootblock_size as usize)?;
        let start = self.offset as usize;
        (self.rom_size as usize == len && start < end).then_some(start..end)
    }

    /// Whether the image is for another processor than ours.
    pub fn is_foreign(&self) -> bool {
        !matches!(self.architecture, ARCHITECTURE_X86 | ARCHITECTURE_UNKNOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(fields: [u32; 8], back: i32) -> Vec<u8> {
        let mut image = vec![0xff; 0x1000];
        for (index, field) in fields.iter().enumerate() {
            let at = 0xf00 + index * 4;
            image[at..at + 4].copy_from_slice(&field.to_be_bytes());
        }
        image[0xffc..].copy_from_slice(&back.to_le_bytes());
        image
    }

    const GOOD: [u32; 8] = [MAGIC, VERSION_2, 0x1000, 0x40, 64, 0x100, 1, 0];

    #[test]
    fn a_header_is_found_from_the_end() {
        let header = MasterHeader::find(&image(GOOD, -0x100)).unwrap();
        assert_eq!(header.at, 0xf00);
        assert_eq!(header.range(0x1000), Some(0x100..0xfc0));
        assert!(!header.is_foreign());
    }

    #[test]
    fn a_header_that_leads_nowhere_is_none() {
        for back in [0, 1, -0xff, -4, -0x1000, -0x1001, i32::MIN, i32::MAX] {
            assert_eq!(MasterHeader::find(&image(GOOD, back)), None, "{back}");
        }
        let mut little = GOOD;
        little[0] = MAGIC.swap_bytes();
        assert_eq!(MasterHeader::find(&image(little, -0x100)), None);
        assert_eq!(MasterHeader::find(&[]), None);
    }

    #[test]
    fn sizes_that_cannot_be_have_no_range() {
        for (field, value) in [
            (2, 0x2000),
            (2, 0),
            (3, 0x1001),
            (3, u32::MAX),
            (5, u32::MAX),
            (5, 0xfc0),
        ] {
            let mut fields = GOOD;
            fields[field] = value;
            let header = MasterHeader::find(&image(fields, -0x100)).unwrap();
            assert_eq!(header.range(0x1000), None, "{field} = {value:#x}");
        }
    }

    #[test]
    fn another_architecture_is_seen() {
        let mut arm = GOOD;
        arm[6] = 2;
        assert!(
            MasterHeader::find(&image(arm, -0x100))
                .unwrap()
                .is_foreign()
        );
    }
}
