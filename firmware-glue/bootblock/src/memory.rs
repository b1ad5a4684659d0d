//! Access to physical memory, and places handed out from it.

use core::ops::Range;

/// The upper and the lower 32 bits, as registers that come in pairs take them.
pub fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    [
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]),
    ]
}

/// Physical memory that tables are written to.
pub trait Memory {
    /// The `len` bytes at physical address `address`, or `None` if they are not memory that may be written.
    fn bytes(&mut self, address: u64, len: usize) -> Option<&mut [u8]>;
}

/// A range of memory from which places are handed out, from its end downward. Nothing is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    free: Range<u64>,
}

impl Zone {
    /// A zone of which all is free.
    pub fn new(range: Range<u64>) -> Self {
        Self { free: range }
    }

    /// The highest free place of `len` bytes at a multiple of `align`; `None` if there is none or `align` is no power of two.
    pub fn allocate(&mut self, len: u64, align: u64) -> Option<u64> {
        if !align.is_power_of_two() {
            return None;
        }
        let at = self.free.end.checked_sub(len)? & !(align - 1);
        if at < self.free.start {
            return None;
        }
        self.free.end = at;
        Some(at)
    }

    /// Where the part that was handed out begins.
    pub fn used_from(&self) -> u64 {
        self.free.end
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Memory from `base` on.
    pub(crate) struct TestMemory {
        pub(crate) base: u64,
        pub(crate) bytes: Vec<u8>,
    }

    impl Memory for TestMemory {
        fn bytes(&mut self, address: u64, len: usize) -> Option<&mut [u8]> {
            let start = usize::try_from(address.checked_sub(self.base)?).ok()?;
            self.bytes.get_mut(start..start.checked_add(len)?)
        }
    }

    #[test]
    fn halves_are_upper_then_lower() {
        assert_eq!(halves(0x1234_5678_9abc_def0), [0x1234_5678, 0x9abc_def0]);
    }

    #[test]
    fn places_are_aligned_and_never_overlap() {
        let mut zone = Zone::new(0x1000..0x2000);
        assert_eq!(zone.allocate(0x10, 0x100), Some(0x1f00));
        assert_eq!(zone.allocate(0x101, 1), Some(0x1dff));
        assert_eq!(zone.allocate(0xe00, 1), None);
        assert_eq!(zone.allocate(1, 3), None);
        assert_eq!(zone.allocate(u64::MAX, 1), None);
        assert_eq!(zone.used_from(), 0x1dff);
    }
}
