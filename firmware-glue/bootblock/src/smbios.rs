//! SMBIOS: the entry point names the address of the tables, and carries checksums over itself.
//!
//! DMTF DSP0134 3.x, §5.2.1 (32-bit entry point `_SM_`) and §5.2.2 (64-bit entry point `_SM3_`).

/// Writes the address of the tables into an entry point and makes its checksums right. Returns whether `anchor` is an entry
/// point at all, of a form that can hold the address.
pub fn set_tables(anchor: &mut [u8], tables: u64) -> bool {
    if anchor.starts_with(b"_SM3_") && anchor.len() >= 0x18 {
        anchor[0x10..0x18].copy_from_slice(&tables.to_le_bytes());
        let len = usize::from(anchor[0x06]);
        return set_checksum(anchor, 0..len, 0x05);
    }
    if anchor.starts_with(b"_SM_") && anchor.len() >= 0x1f {
        let Ok(tables) = u32::try_from(tables) else {
            return false;
        };
        anchor[0x18..0x1c].copy_from_slice(&tables.to_le_bytes());
        // The intermediate entry point `_DMI_` first: its checksum is part of the outer sum.
        let len = usize::from(anchor[0x05]);
        return set_checksum(anchor, 0x10..0x1f, 0x15) && set_checksum(anchor, 0..len, 0x04);
    }
    false
}

/// Makes all bytes of `range` add up to 0 by the one at `place`.
fn set_checksum(bytes: &mut [u8], range: core::ops::Range<usize>, place: usize) -> bool {
    let Some(part) = bytes.get(range) else {
        return false;
    };
    let sum = part.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[place] = bytes[place].wrapping_sub(sum);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn both_checksums_of_the_32_bit_entry_point_hold() {
        let mut anchor =
            *b"_SM_\x77\x1f\x02\x08\0\0\0\0\0\0\0\0_DMI_\x55\x00\x01\0\0\0\0\x09\0\x28";
        assert!(set_tables(&mut anchor, 0x7fff_0000));
        assert_eq!(anchor[0x18..0x1c], [0, 0, 0xff, 0x7f]);
        assert_eq!(sum(&anchor), 0);
        assert_eq!(sum(&anchor[0x10..]), 0);
        assert!(!set_tables(&mut anchor, 1 << 32));
    }

    #[test]
    fn the_checksum_of_the_64_bit_entry_point_holds() {
        let mut anchor = *b"_SM3_\x77\x18\x03\x00\0\x01\0\0\x10\0\0\0\0\0\0\0\0\0\0";
        assert!(set_tables(&mut anchor, 0x1_2345_6789));
        assert_eq!(anchor[0x10..0x18], 0x1_2345_6789u64.to_le_bytes());
        assert_eq!(sum(&anchor), 0);
    }

    #[test]
    fn anything_else_is_refused() {
        assert!(!set_tables(&mut [0; 32], 0));
        assert!(!set_tables(&mut b"_SM_\0".to_owned(), 0));
        let mut wrong_length = *b"_SM3_\x77\xff\x03\x00\0\x01\0\0\x10\0\0\0\0\0\0\0\0\0\0";
        assert!(!set_tables(&mut wrong_length, 0));
    }
}
