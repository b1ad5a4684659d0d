//! The driver's side of a split queue.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestMemory;
use crate::virtio::queue::QueueRegisters;

/// Where buffers of queue 0 are allocated from; those of queue `n` lie `n` times [`BUFFER_STRIDE`] above.
pub const BUFFERS: u64 = 0x2_0000;
/// Bytes between the buffers of two queues.
pub const BUFFER_STRIDE: u64 = 0x1_0000;
/// Where the ring of queue 0 lies; that of queue `n` is `n` times [`RING_STRIDE`] above.
pub const RINGS: u64 = 0x8000;
/// Bytes set aside for one queue's rings.
pub const RING_STRIDE: u64 = 0x4000;

/// Descriptor flag: another one follows.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes.
pub const WRITE: u16 = 2;
/// Descriptor flag: a table of descriptors.
pub const INDIRECT: u16 = 4;

/// One buffer of a request.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Where it lies.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

/// The driver's side of a split queue.
pub struct GuestRing {
    /// The memory everything lies in.
    pub memory: Arc<GuestMemory>,
    /// Number of descriptors.
    pub size: u16,
    base: u64,
    next_descriptor: u16,
    next_available: u16,
    last_used: u16,
    next_buffer: u64,
}

impl GuestRing {
    /// The ring of queue `index` with `size` descriptors, in cleared memory.
    pub fn new(memory: Arc<GuestMemory>, index: u16, size: u16) -> Self {
        let base = RINGS + u64::from(index) * RING_STRIDE;
        let next_buffer = BUFFERS + u64::from(index) * BUFFER_STRIDE;
        let ring = Self {
            memory,
            size,
            base,
            next_descriptor: 0,
            next_available: 0,
            last_used: 0,
            next_buffer,
        };
        let len = usize::try_from(RING_STRIDE).expect("64-bit host");
        ring.memory
            .write_slice(&vec![0; len], GuestAddress(base))
            .expect("rings in memory");
        ring
    }

    /// What a driver writes to the queue's registers.
    pub fn registers(&self) -> QueueRegisters {
        let size = u64::from(self.size);
        // Each area on the next multiple of 16 bytes.
        let available = self.base + 16 * size;
        let used = (available + 6 + 2 * size).next_multiple_of(16);
        QueueRegisters {
            size: self.size.into(),
            ready: true,
            descriptors: self.base,
            available,
            used,
        }
    }

    /// Goes on at `index` of both rings, as after 2¹⁶ − x requests.
    pub fn start_at(&mut self, index: u16) {
        (self.next_available, self.last_used) = (index, index);
        self.set_available_index(index);
        self.store(self.registers().used + 2, index);
    }

    fn store(&self, address: u64, value: u16) {
        self.memory
            .store(value.to_le(), GuestAddress(address), Ordering::Release)
            .expect("ring");
    }

    fn load(&self, address: u64) -> u16 {
        u16::from_le(
            self.memory
                .load(GuestAddress(address), Ordering::Acquire)
                .expect("ring"),
        )
    }

    /// Writes one descriptor, whatever it says.
    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.table_entry(self.base, index, address, len, flags, next);
    }

    /// Writes one descriptor of the table at `table`.
    pub fn table_entry(
        &self,
        table: u64,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let descriptor = Descriptor::new(address, len, flags, next);
        let at = GuestAddress(table + 16 * u64::from(index));
        self.memory
            .write_obj(descriptor, at)
            .expect("descriptor table in memory");
    }

    /// Puts `head` into the next entry of the available ring, without telling the device.
    pub fn offer(&mut self, head: u16) {
        let entry = self.registers().available + 4 + 2 * u64::from(self.next_available % self.size);
        self.store(entry, head);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Shows the device everything offered so far.
    pub fn publish(&self) {
        self.set_available_index(self.next_available);
    }

    /// Writes the available index, whatever it says.
    pub fn set_available_index(&self, index: u16) {
        self.store(self.registers().available + 2, index);
    }

    /// Writes the available ring's flags.
    pub fn set_available_flags(&self, flags: u16) {
        self.store(self.registers().available, flags);
    }

    /// Asks for an interrupt once the used index has passed `index` (`used_event`).
    pub fn set_used_event(&self, index: u16) {
        self.store(
            self.registers().available + 4 + 2 * u64::from(self.size),
            index,
        );
    }

    /// The available index from which on the device wants to be notified (`avail_event`).
    pub fn available_event(&self) -> u16 {
        self.load(self.registers().used + 4 + 8 * u64::from(self.size))
    }

    /// A new buffer of `len` bytes, cleared.
    pub fn buffer(&mut self, len: u32, writable: bool) -> Buffer {
        let address = self.next_buffer;
        self.next_buffer += u64::from(len).next_multiple_of(16);
        Buffer {
            address,
            len,
            writable,
        }
    }

    /// Forgets all buffers: their memory is given out again.
    pub fn reuse_buffers(&mut self) {
        let index = (self.base - RINGS) / RING_STRIDE;
        self.next_buffer = BUFFERS + index * BUFFER_STRIDE;
    }

    /// A new buffer of `data` for the device to read.
    pub fn data(&mut self, data: &[u8]) -> Buffer {
        let buffer = self.buffer(u32::try_from(data.len()).expect("short data"), false);
        self.memory
            .write_slice(data, GuestAddress(buffer.address))
            .expect("buffers in memory");
        buffer
    }

    /// What is in a buffer.
    pub fn contents(&self, buffer: Buffer) -> Vec<u8> {
        let mut data = vec![0; buffer.len as usize];
        self.memory
            .read_slice(&mut data, GuestAddress(buffer.address))
            .expect("buffers in memory");
        data
    }

    /// Takes the descriptors of the next request from `index` on.
    pub fn seek_descriptor(&mut self, index: u16) {
        self.next_descriptor = index;
    }

    /// Offers and publishes a request of `buffers` and returns its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        let mut rest = buffers.iter().peekable();
        while let Some(buffer) = rest.next() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let more = if rest.peek().is_some() { NEXT } else { 0 };
            let flags = more | if buffer.writable { WRITE } else { 0 };
            self.descriptor(
                index,
                buffer.address,
                buffer.len,
                flags,
                self.next_descriptor,
            );
        }
        self.offer(head);
        self.publish();
        head
    }

    /// As [`add`](Self::add), by an indirect table.
    pub fn add_indirect(&mut self, buffers: &[Buffer]) -> u16 {
        let len = u32::try_from(buffers.len() * 16).expect("short table");
        let table = self.buffer(len, false);
        for (index, buffer) in (0..).zip(buffers) {
            let more = if usize::from(index) + 1 < buffers.len() {
                NEXT
            } else {
                0
            };
            let flags = more | if buffer.writable { WRITE } else { 0 };
            self.table_entry(
                table.address,
                index,
                buffer.address,
                buffer.len,
                flags,
                index + 1,
            );
        }
        let head = self.next_descriptor;
        self.next_descriptor = (head + 1) % self.size;
        self.descriptor(head, table.address, table.len, INDIRECT, 0);
        self.offer(head);
        self.publish();
        head
    }

    /// How many requests the device has given back that were not looked at.
    pub fn pending(&self) -> u16 {
        self.load(self.registers().used + 2)
            .wrapping_sub(self.last_used)
    }

    /// The next request the device has given back: its head and the bytes written.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        let used = self.registers().used;
        if self.load(used + 2) == self.last_used {
            return None;
        }
        let entry = GuestAddress(used + 4 + 8 * u64::from(self.last_used % self.size));
        let [head, len]: [u32; 2] = self.memory.read_obj(entry).expect("used ring in memory");
        self.last_used = self.last_used.wrapping_add(1);
        Some((
            u16::try_from(u32::from_le(head)).expect("heads are 16 bits"),
            u32::from_le(len),
        ))
    }
}
