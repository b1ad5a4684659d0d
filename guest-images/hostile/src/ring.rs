//! A split virtqueue in guest memory, and hands on everything in it.

use crate::hw::memory;

/// The descriptor goes on in another one.
pub const NEXT: u16 = 1;
/// The device writes the buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Bytes that one queue takes: rings, tables, and buffers.
pub const SPAN: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const TABLE: u64 = 0x5000;
const BUFFERS: u64 = 0x8000;

/// One queue.
#[derive(Clone, Copy)]
pub struct Ring {
    at: u64,
    size: u16,
    available: u16,
    used: u16,
}

impl Ring {
    /// An empty queue of `size` descriptors, a power of two up to 256, at `at`.
    pub fn new(at: u64, size: u16) -> Self {
        memory::clear(at, 16 * u64::from(size));
        memory::clear(at + AVAILABLE, 8 + 2 * u64::from(size).next_multiple_of(4));
        memory::clear(at + USED, 8 + 8 * u64::from(size));
        Self {
            at,
            size,
            available: 0,
            used: 0,
        }
    }

    /// Descriptor table, available ring, used ring.
    pub fn addresses(&self) -> [u64; 3] {
        [self.at, self.at + AVAILABLE, self.at + USED]
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Guest address of 32 KiB for buffers.
    pub fn buffers(&self) -> u64 {
        self.at + BUFFERS
    }

    /// Guest address of room for an indirect table.
    pub fn table(&self) -> u64 {
        self.at + TABLE
    }

    /// Sets a descriptor of the queue's own table.
    pub fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        describe(self.at, index, address, len, flags, next);
    }

    /// Sets a descriptor of the indirect table.
    pub fn describe_indirect(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        describe(self.table(), index, address, len, flags, next);
    }

    /// Puts `head` into the available ring.
    pub fn offer(&mut self, head: u16) {
        let place = self.at + AVAILABLE + 4 + 2 * u64::from(self.available % self.size);
        memory::write16(place, head);
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    /// Sets the available ring's index, whatever is behind it.
    pub fn set_available_index(&self, index: u16) {
        memory::write16(self.at + AVAILABLE + 2, index);
    }

    /// Sets the used ring's index, which is the device's.
    pub fn set_used_index(&self, index: u16) {
        memory::write16(self.at + USED + 2, index);
    }

    /// The used ring's index.
    pub fn used_index(&self) -> u16 {
        memory::read16(self.at + USED + 2)
    }

    /// Whether the device has used something since the last call of [`take`](Self::take).
    pub fn has_used(&self) -> bool {
        self.used_index() != self.used
    }

    /// Whether nothing was ever offered.
    pub fn is_unused(&self) -> bool {
        self.available == 0
    }

    /// Takes one used buffer, if there is one: its length.
    pub fn take(&mut self) -> Option<u32> {
        if !self.has_used() {
            return None;
        }
        let entry = self.at + USED + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        Some(memory::read32(entry + 4))
    }
}

fn describe(table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
    let at = table + 16 * u64::from(index);
    memory::write64(at, address);
    let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    memory::write64(at + 8, rest);
}
