//! Descriptor chains: what a driver says its buffers are, checked before anything touches them.
//!
//! A [`Chain`] that loaded without an error is finite, in the order the specification demands, and
//! each byte of it is in guest memory. The driver may still change the *contents* of its buffers at
//! any time, so a device copies what it decides by, once.

use std::ops::Range;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use virtio_queue::desc::split::Descriptor;

use super::queue::QueueError;
use crate::memory::{self, GuestMemory, GuestSlice};

/// The longest indirect table taken, in descriptors: Linux's largest and the limit of one vectored
/// system call.
pub const MAX_INDIRECT: u32 = 1024;

/// Bytes of one descriptor (virtio 1.2 §2.7.5).
const DESCRIPTOR_LEN: u32 = 16;

/// A run of buffers of one direction, consumed from the front.
#[derive(Debug, Default)]
pub struct Buffers {
    ranges: Vec<(GuestAddress, u32)>,
    /// Ranges before this one are consumed.
    first: usize,
    len: u32,
}

impl Buffers {
    /// Bytes left.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// No byte is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many separate ranges are left.
    pub fn segments(&self) -> usize {
        self.ranges.len() - self.first
    }

    /// What is left, range by range.
    pub fn ranges(&self) -> &[(GuestAddress, u32)] {
        &self.ranges[self.first..]
    }

    fn clear(&mut self) {
        self.ranges.clear();
        self.first = 0;
        self.len = 0;
    }

    fn push(&mut self, address: GuestAddress, len: u32) -> Option<()> {
        self.len = self.len.checked_add(len)?;
        self.ranges.push((address, len));
        Some(())
    }

    /// Takes up to `want` bytes off the front, as far as they are contiguous.
    fn take_front(&mut self, want: u32) -> Option<(GuestAddress, u32)> {
        let range = self.ranges.get_mut(self.first)?;
        let (address, len) = *range;
        let taken = len.min(want);
        if taken == len {
            self.first += 1;
        } else {
            *range = (address.unchecked_add(taken.into()), len - taken);
        }
        self.len -= taken;
        Some((address, taken))
    }

    /// Copies `data.len()` bytes from the front of the buffers and consumes them. `false`, with
    /// nothing consumed, where that many are not left.
    pub fn read(&mut self, memory: &GuestMemory, data: &mut [u8]) -> Result<bool, QueueError> {
        self.consume(data.len(), |address, part| {
            match memory::contiguous(memory, address, part.len()) {
                Some(slice) => {
                    slice.copy_to(&mut data[part]);
                    Ok(())
                }
                None => memory.read_slice(&mut data[part], address),
            }
        })
    }

    /// Copies `data` to the front of the buffers and consumes that much of them. `false`, with nothing
    /// written, where they are too small.
    pub fn write(&mut self, memory: &GuestMemory, data: &[u8]) -> Result<bool, QueueError> {
        self.consume(data.len(), |address, part| {
            memory.write_slice(&data[part], address)
        })
    }

    /// Consumes `len` bytes from the front, one contiguous piece of guest memory after the other; `copy` gets each
    /// piece's address and which of the `len` bytes it is. `false`, with nothing consumed, where that many are not left.
    fn consume(
        &mut self,
        len: usize,
        mut copy: impl FnMut(GuestAddress, Range<usize>) -> Result<(), GuestMemoryError>,
    ) -> Result<bool, QueueError> {
        if !self.holds(len) {
            return Ok(false);
        }
        let mut done = 0;
        while let Ok(want @ 1..) = u32::try_from(len - done) {
            let Some((address, taken)) = self.take_front(want) else {
                break;
            };
            let end = done + taken as usize;
            copy(address, done..end).map_err(QueueError::Memory)?;
            done = end;
        }
        Ok(true)
    }

    fn holds(&self, len: usize) -> bool {
        u32::try_from(len).is_ok_and(|len| len <= self.len)
    }

    /// Consumes the first `len` bytes unseen, or as many as there are.
    pub fn skip(&mut self, len: u32) {
        let end = self.len.saturating_sub(len);
        while self.len > end && self.take_front(self.len - end).is_some() {}
    }

    /// Drops all but the first `len` bytes.
    pub fn truncate(&mut self, len: u32) {
        while self.len > len
            && let Some((_, last)) = self.ranges.get_mut(self.first..).and_then(<[_]>::last_mut)
        {
            let cut = (self.len - len).min(*last);
            *last -= cut;
            self.len -= cut;
            if *last == 0 {
                self.ranges.pop();
            }
        }
    }

    /// Takes the last byte off the buffers and says where it is.
    pub fn take_last_byte(&mut self) -> Option<GuestAddress> {
        let (address, len) = self.ranges.get_mut(self.first..)?.last_mut()?;
        *len -= 1;
        let last = address.unchecked_add(u64::from(*len));
        if *len == 0 {
            self.ranges.pop();
        }
        self.len -= 1;
        Some(last)
    }

    /// What is left, as slices of guest memory for vectored I/O.
    pub fn slices<'a>(&self, memory: &'a GuestMemory) -> Result<Vec<GuestSlice<'a>>, QueueError> {
        let mut slices = Vec::with_capacity(self.segments());
        for &(address, len) in &self.ranges[self.first..] {
            for slice in GuestMemoryBackend::get_slices(memory, address, len as usize) {
                slices.push(slice.map_err(QueueError::Memory)?);
            }
        }
        Ok(slices)
    }
}

/// One request: the buffers the device may read, then those it may write.
///
/// Meant to be used again and again, so that a request costs no allocation.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    /// What the driver gives to the device.
    pub readable: Buffers,
    /// What the device fills for the driver.
    pub writable: Buffers,
}

/// A table of descriptors: the queue's own, or an indirect one.
struct Table {
    address: GuestAddress,
    entries: u32,
    indirect: bool,
}

impl Chain {
    /// An empty chain, to be filled by [`Virtqueue::pop`](super::queue::Virtqueue::pop).
    pub fn new() -> Self {
        Self::default()
    }

    /// Index of the chain's first descriptor, by which the driver knows the request.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Reads and checks the chain that starts at descriptor `head` of the table of `size` descriptors
    /// at `table` (virtio 1.2 §2.7.5). `indirect` says whether the driver negotiated indirect tables.
    pub(super) fn load(
        &mut self,
        memory: &GuestMemory,
        table: GuestAddress,
        size: u16,
        head: u16,
        indirect: bool,
    ) -> Result<(), QueueError> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();

        let mut table = Table {
            address: table,
            entries: size.into(),
            indirect: false,
        };
        let mut index = u32::from(head);
        let mut left = table.entries;
        loop {
            let descriptor = table.read(memory, index, head)?;
            // A chain that uses more descriptors than its table has uses one of them twice: a loop.
            left = left.checked_sub(1).ok_or(QueueError::ChainLoops { head })?;
            if descriptor.refers_to_indirect_table() {
                if !indirect || table.indirect || descriptor.has_next() {
                    return Err(QueueError::UnexpectedIndirect { head });
                }
                table = Table::indirect(memory, &descriptor, head)?;
                (index, left) = (0, table.entries);
                continue;
            }
            self.push(memory, &descriptor)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next().into();
        }
    }

    fn push(&mut self, memory: &GuestMemory, descriptor: &Descriptor) -> Result<(), QueueError> {
        let (address, len) = (descriptor.addr(), descriptor.len());
        let head = self.head;
        if len == 0 {
            return Err(QueueError::EmptyBuffer { head });
        }
        if !memory::holds(memory, address, len as usize) {
            return Err(QueueError::BufferOutsideMemory {
                head,
                address: address.0,
                len,
            });
        }
        let buffers = match (descriptor.is_write_only(), self.writable.is_empty()) {
            (true, _) => &mut self.writable,
            (false, true) => &mut self.readable,
            (false, false) => return Err(QueueError::ReadableAfterWritable { head }),
        };
        buffers
            .push(address, len)
            .ok_or(QueueError::ChainTooLarge { head })
    }
}

impl Table {
    fn indirect(
        memory: &GuestMemory,
        descriptor: &Descriptor,
        head: u16,
    ) -> Result<Self, QueueError> {
        let (address, len) = (descriptor.addr(), descriptor.len());
        let entries = len / DESCRIPTOR_LEN;
        if entries == 0 || entries > MAX_INDIRECT || len % DESCRIPTOR_LEN != 0 {
            return Err(QueueError::IndirectTableLength {
                head,
                len,
                max: MAX_INDIRECT,
            });
        }
        if !memory::holds(memory, address, len as usize) {
            return Err(QueueError::BufferOutsideMemory {
                head,
                address: address.0,
                len,
            });
        }
        Ok(Self {
            address,
            entries,
            indirect: true,
        })
    }

    fn read(&self, memory: &GuestMemory, index: u32, head: u16) -> Result<Descriptor, QueueError> {
        if index >= self.entries {
            return Err(QueueError::NextOutsideTable {
                head,
                index,
                entries: self.entries,
            });
        }
        let offset = u64::from(index) * u64::from(DESCRIPTOR_LEN);
        // The table lies in guest memory, whose addresses do not wrap.
        memory::read(memory, self.address.unchecked_add(offset)).map_err(QueueError::Memory)
    }
}
