//! Bounds-checked reads of integers from a byte slice: `None` where the slice is too short.

/// `N` bytes at `at`.
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    let end = at.checked_add(N)?;
    bytes.get(at..end)?.try_into().ok()
}

/// Big-endian `u32` at `at`.
pub fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// Little-endian `u16` at `at`.
pub fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// Little-endian `u32` at `at`.
pub fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// Little-endian `u64` at `at`.
pub fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// The next multiple of `to` (a power of two) at or above `value`.
pub fn align_up(value: usize, to: usize) -> Option<usize> {
    debug_assert!(to.is_power_of_two());
    Some(value.checked_add(to - 1)? & !(to - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_past_the_end_are_none() {
        let bytes = [1, 2, 3, 4, 5];
        assert_eq!(be32(&bytes, 1), Some(0x0203_0405));
        assert_eq!(be32(&bytes, 2), None);
        assert_eq!(le32(&bytes, usize::MAX), None);
        assert_eq!(le16(&bytes, 3), Some(0x0504));
        assert_eq!(le64(&bytes, 0), None);
    }

    #[test]
    fn alignment_does_not_wrap() {
        assert_eq!(align_up(65, 64), Some(128));
        assert_eq!(align_up(64, 64), Some(64));
        assert_eq!(align_up(usize::MAX, 64), None);
    }
}
