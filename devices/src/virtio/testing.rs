//! The guest's side of a virtio device, for tests: a driver that keeps the rules, and lets a test
//! break each of them.
//!
//! Everything is real: rings and buffers lie in guest memory, registers are accessed as a vCPU would,
//! and the device's work is done by its worker in an event manager.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use event_manager::{EventManager, SubscriberOps};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::VirtioDevice;
use super::interrupt::VirtioInterrupt;
use super::mmio::MmioTransport;
use super::queue::QueueRegisters;
use super::state::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use super::worker::VirtioWorker;
use crate::bus::BusDevice;
use crate::memory::{self, GuestMemory};

/// Bytes of the test guest's memory below the hole: rings at the start, buffers from [`BUFFERS`] on.
pub const LOW_LEN: u64 = 0x8_0000;
/// Where the memory above the hole starts.
pub const HIGH_BASE: u64 = 0x10_0000;
/// Bytes of the memory above the hole.
pub const HIGH_LEN: u64 = 0x1_0000;
/// Where buffers are allocated from.
pub const BUFFERS: u64 = 0x2_0000;
/// Where the ring of queue 0 lies; that of queue `n` is `n` times [`RING_STRIDE`] above.
pub const RINGS: u64 = 0x1_0000;
/// Bytes set aside for one queue's rings.
pub const RING_STRIDE: u64 = 0x4000;

/// Descriptor flag: another one follows.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes.
pub const WRITE: u16 = 2;
/// Descriptor flag: a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Memory of two regions with a hole between them.
pub fn guest_memory() -> Arc<GuestMemory> {
    let low = (
        GuestAddress(0),
        usize::try_from(LOW_LEN).expect("64-bit host"),
    );
    let high = (
        GuestAddress(HIGH_BASE),
        usize::try_from(HIGH_LEN).expect("64-bit host"),
    );
    Arc::new(memory::anonymous(&[low, high]).expect("a few MiB of memory"))
}

/// Counts the interrupts of a device that has no transport.
#[derive(Debug, Default)]
pub struct InterruptCounter {
    queue: AtomicU32,
    config: AtomicU32,
}

impl InterruptCounter {
    /// Interrupts of queues so far.
    pub fn queue(&self) -> u32 {
        self.queue.load(Ordering::SeqCst)
    }

    /// Configuration interrupts so far.
    pub fn config(&self) -> u32 {
        self.config.load(Ordering::SeqCst)
    }
}

impl VirtioInterrupt for InterruptCounter {
    fn signal_queue(&self, _index: u16) {
        self.queue.fetch_add(1, Ordering::SeqCst);
    }

    fn signal_config(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }
}

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
        let next_buffer = BUFFERS;
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

/// By which registers a guest reaches its device: what holds for a device holds on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// virtio 1.2 §4.2.
    Mmio,
}

impl Transport {
    /// Every transport there is.
    pub const ALL: &'static [Self] = &[Self::Mmio];
}

/// A guest with one virtio device.
pub struct TestGuest {
    /// The device's registers.
    pub transport: MmioTransport,
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    line: EventFd,
    thread: EventManager<VirtioWorker>,
}

impl TestGuest {
    /// A guest that has not yet looked at `device`.
    pub fn new(on: Transport, device: impl VirtioDevice + 'static) -> Self {
        Self::with_memory(on, device, guest_memory())
    }

    /// As [`new`](Self::new), with the given memory.
    pub fn with_memory(
        on: Transport,
        device: impl VirtioDevice + 'static,
        memory: Arc<GuestMemory>,
    ) -> Self {
        let Transport::Mmio = on;
        let line = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let other_end = Arc::new(line.try_clone().expect("an eventfd"));
        let transport = MmioTransport::new(Box::new(device), memory.clone(), other_end)
            .expect("eventfds for doorbells");
        let mut thread = EventManager::new().expect("an epoll");
        thread.add_subscriber(transport.worker().expect("an eventfd"));
        Self {
            transport,
            memory,
            line,
            thread,
        }
    }

    /// Reads a register.
    pub fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// The device status.
    pub fn status(&mut self) -> u32 {
        self.read(0x070)
    }

    /// Sets `bits` of the device status and says whether the device granted them.
    pub fn add_status(&mut self, bits: u32) -> bool {
        let status = self.status() | bits;
        self.write(0x070, status);
        self.status() == status
    }

    /// The features the device offers.
    pub fn offered(&mut self) -> u64 {
        self.write(0x014, 1);
        let high = self.read(0x010);
        self.write(0x014, 0);
        u64::from(high) << 32 | u64::from(self.read(0x010))
    }

    /// Resets the device and takes `features`, up to FEATURES_OK. Says whether it was granted.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.write(0x070, 0);
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
        self.write(0x024, 0);
        self.write(0x020, u32::from_le_bytes([a, b, c, d]));
        self.write(0x024, 1);
        self.write(0x020, u32::from_le_bytes([e, f, g, h]));
        self.add_status(FEATURES_OK)
    }

    /// Writes the registers of queue `index`.
    pub fn set_queue(&mut self, index: u16, registers: &QueueRegisters) {
        self.write(0x030, index.into());
        self.write(0x038, registers.size);
        for (offset, value) in [
            (0x080, registers.descriptors),
            (0x090, registers.available),
            (0x0a0, registers.used),
        ] {
            let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
            self.write(offset, u32::from_le_bytes([a, b, c, d]));
            self.write(offset + 4, u32::from_le_bytes([e, f, g, h]));
        }
        self.write(0x044, registers.ready.into());
    }

    /// Brings the device up with `features` and rings of `size` for its one queue.
    pub fn start(&mut self, features: u64, size: u16) -> GuestRing {
        assert!(self.negotiate(features), "features {features:#x} refused");
        let ring = GuestRing::new(self.memory.clone(), 0, size);
        self.set_queue(0, &ring.registers());
        assert!(self.add_status(DRIVER_OK), "status {:#x}", self.status());
        ring
    }

    /// As [`start`](Self::start), with all features and the largest queue.
    pub fn start_all(&mut self) -> GuestRing {
        let features = self.offered();
        self.write(0x030, 0);
        let size = self.read(0x034);
        self.start(
            features,
            u16::try_from(size).expect("queue sizes are 16 bits"),
        )
    }

    /// Notifies queue `index`, and lets the device thread work until it has nothing left to do.
    pub fn notify(&mut self, index: u16) {
        self.write(0x050, index.into());
        self.run();
    }

    /// Lets the device thread work until it has nothing left to do; returns how often it woke.
    pub fn run(&mut self) -> u32 {
        let mut wakes = 0;
        while self.thread.run_with_timeout(0).expect("epoll works") > 0 {
            wakes += 1;
            assert!(wakes < 100_000, "the device never comes to rest");
        }
        wakes
    }

    /// Interrupts since the last call.
    pub fn interrupts(&mut self) -> u64 {
        self.line.read().unwrap_or(0)
    }

    /// Does what an interrupt handler does: takes and acknowledges the reasons.
    pub fn acknowledge(&mut self) -> u32 {
        let reasons = self.read(0x060);
        self.write(0x064, reasons);
        reasons
    }

    /// Takes the guest apart: registers, interrupt line, and the device thread's event manager, to be
    /// run on a thread of its own.
    pub fn into_parts(self) -> (MmioTransport, EventFd, EventManager<VirtioWorker>) {
        (self.transport, self.line, self.thread)
    }
}
