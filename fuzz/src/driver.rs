//! A driver that does anything: it follows a fuzzer's input through the queues, registers and memory of one device.
//!
//! There is no transport and no thread: steps go straight to the state machine, so that an execution takes microseconds.
//! What must hold whatever the driver does is checked on the way: a device that was given up, or never started, gives no
//! buffers back; it comes to rest by itself; and after a reset it can be started again.

#![expect(
    unsafe_code,
    reason = "poll of descriptors that the device names by number"
)]

use std::cell::RefCell;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use devices::memory::{self, GuestMemory};
use devices::virtio::device::{Progress, VirtioDevice};
use devices::virtio::interrupt::VirtioInterrupt;
use devices::virtio::state::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET, Register, VirtioState,
};
use devices::virtio::testing::InterruptCounter;
use libfuzzer_sys::Corpus;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{Bytes, GuestAddress};

/// Bytes of memory from address 0. Behind them there is a hole.
pub const LOW_LEN: u64 = 0x1_0000;
/// Where memory goes on.
pub const HIGH_BASE: u64 = 0x1_8000;
/// Bytes of it there.
pub const HIGH_LEN: u64 = 0x4000;

/// Rings of queue `n` lie at `n` times this.
const RING_STRIDE: u64 = 0x400;
/// Where buffers are; below are the rings of 16 queues.
const BUFFERS: u64 = 0x4000;
/// Descriptors of each queue, unless the input says otherwise.
const SIZE: u16 = 16;
/// Most steps of one execution.
const MAX_STEPS: usize = 200;
/// So often a device may ask to be called again with nothing new to do.
const MAX_TURNS: usize = 5_000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Memory for a guest: made once, empty at each start.
fn guest_memory() -> Arc<GuestMemory> {
    thread_local! {
        static MEMORY: RefCell<Option<Arc<GuestMemory>>> = const { RefCell::new(None) };
    }
    let make = || {
        let len = |len: u64| usize::try_from(len).expect("64-bit host");
        let ranges = [
            (GuestAddress(0), len(LOW_LEN)),
            (GuestAddress(HIGH_BASE), len(HIGH_LEN)),
        ];
        Arc::new(memory::anonymous(&ranges).expect("a few KiB"))
    };
    let memory = MEMORY.with_borrow_mut(|memory| memory.get_or_insert_with(make).clone());
    clear(&memory);
    memory
}

fn clear(memory: &GuestMemory) {
    static ZEROES: [u8; LOW_LEN as usize] = [0; LOW_LEN as usize];
    for (base, len) in [(0, LOW_LEN), (HIGH_BASE, HIGH_LEN)] {
        memory
            .write_slice(&ZEROES[..len as usize], GuestAddress(base))
            .expect("all of it is there");
    }
}

/// What belongs to one device alone.
pub trait World {
    /// The beginning of a request for queue `index` that the device will look into; the input goes on from there.
    fn request(&mut self, index: u16, input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
        let _ = (index, input);
        Ok(Vec::new())
    }

    /// Something happens outside of the guest.
    fn happen(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let _ = input;
        Ok(())
    }
}

/// Nothing but the device.
pub struct Nothing;

impl World for Nothing {}

/// The driver of one device.
pub struct Driver<'w> {
    state: VirtioState,
    memory: Arc<GuestMemory>,
    world: &'w mut dyn World,
    rings: Vec<Ring>,
    sources: Vec<RawFd>,
    next_buffer: u64,
}

/// Where the driver stands with a queue.
#[derive(Clone, Copy)]
struct Ring {
    base: u64,
    size: u16,
    next_descriptor: u16,
    next_available: u16,
}

impl Ring {
    fn new(index: usize) -> Self {
        Self {
            base: RING_STRIDE * index as u64,
            size: SIZE,
            next_descriptor: 0,
            next_available: 0,
        }
    }

    fn available(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used(&self) -> u64 {
        (self.available() + 6 + 2 * u64::from(self.size)).next_multiple_of(16)
    }
}

/// Drives `device` as `data` says. Memory that the world needs as well comes from `memory`.
pub fn drive(device: Box<dyn VirtioDevice>, world: &mut dyn World, data: &[u8]) -> Corpus {
    drive_in(guest_memory(), device, world, data)
}

/// As [`drive`], with memory of the caller's, laid out alike.
pub fn drive_in(
    memory: Arc<GuestMemory>,
    device: Box<dyn VirtioDevice>,
    world: &mut dyn World,
    data: &[u8],
) -> Corpus {
    let mut input = Unstructured::new(data);
    let interrupt: Arc<dyn VirtioInterrupt> = Arc::<InterruptCounter>::default();
    let state = VirtioState::new(device, memory.clone(), interrupt).expect("eventfds");
    let queues = state.traits().queue_sizes.len().min(16);
    let mut driver = Driver {
        sources: state.sources().iter().map(|source| source.fd).collect(),
        state,
        memory,
        world,
        rings: (0..queues).map(Ring::new).collect(),
        next_buffer: BUFFERS,
    };
    driver.start(u64::MAX);
    for _ in 0..MAX_STEPS {
        if input.is_empty() || driver.step(&mut input).is_err() {
            break;
        }
    }
    driver.end();
    Corpus::Keep
}

impl Driver<'_> {
    /// Resets the device and brings it up with `features` of those it offers.
    fn start(&mut self, features: u64) {
        self.state.write(Register::Status, 0);
        assert_eq!(self.state.read(Register::Status), 0, "a reset resets");
        let features = features & self.state.offered_features() | 1 << 32;
        let half = |value: u64| u32::try_from(value & 0xffff_ffff).expect("32 bits");
        self.state.write(Register::Status, ACKNOWLEDGE);
        self.state.write(Register::Status, ACKNOWLEDGE | DRIVER);
        self.state.write(Register::DriverFeatures, half(features));
        self.state.write(Register::DriverFeaturesSelect, 1);
        self.state
            .write(Register::DriverFeatures, half(features >> 32));
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        self.state.write(Register::Status, status);
        assert_eq!(self.state.read(Register::Status), status, "features");
        for index in 0..self.rings.len() {
            self.rings[index] = Ring::new(index);
            let ring = self.rings[index];
            let zeroes = [0; RING_STRIDE as usize];
            self.put(ring.base, &zeroes);
            self.state
                .write(Register::QueueSelect, u32::try_from(index).unwrap_or(0));
            self.state.write(Register::QueueSize, ring.size.into());
            self.state
                .write(Register::QueueDescriptorsLow, half(ring.base));
            self.state
                .write(Register::QueueAvailableLow, half(ring.available()));
            self.state.write(Register::QueueUsedLow, half(ring.used()));
            self.state.write(Register::QueueReady, 1);
        }
        self.state.write(Register::Status, status | DRIVER_OK);
        let status = self.state.read(Register::Status);
        assert_eq!(
            status & (DRIVER_OK | NEEDS_RESET),
            DRIVER_OK,
            "queues that keep the rules run"
        );
        self.next_buffer = BUFFERS;
    }

    /// Whatever was before: the device comes to rest, and starts anew for a driver that keeps the rules.
    fn end(&mut self) {
        self.settle();
        self.start(u64::MAX);
        self.settle();
        let status = self.state.read(Register::Status);
        assert_eq!(status & NEEDS_RESET, 0, "empty queues break no rule");
        self.state.shut_down();
    }

    fn put(&self, address: u64, data: &[u8]) {
        // What is in the hole goes nowhere.
        let _ = self.memory.write_slice(data, GuestAddress(address));
    }

    fn put_u16(&self, address: u64, value: u16) {
        self.put(address, &value.to_le_bytes());
    }

    fn descriptor(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    /// Somewhere: mostly in memory, sometimes at its edges, sometimes anywhere.
    fn address(&self, input: &mut Unstructured<'_>) -> Result<u64> {
        let edges = [
            0,
            LOW_LEN - 1,
            LOW_LEN - 16,
            LOW_LEN,
            HIGH_BASE - 8,
            HIGH_BASE,
            HIGH_BASE + HIGH_LEN - 16,
            HIGH_BASE + HIGH_LEN,
            u64::MAX - 15,
        ];
        Ok(match input.int_in_range(0..=7)? {
            0 => *input.choose(&edges)?,
            1 => input.arbitrary()?,
            2 => HIGH_BASE + u64::from(input.arbitrary::<u16>()?) % HIGH_LEN,
            _ => input.arbitrary::<u16>()?.into(),
        })
    }

    fn len(input: &mut Unstructured<'_>) -> Result<u32> {
        Ok(match input.int_in_range(0..=7)? {
            0 => input.arbitrary()?,
            1 => input.arbitrary::<u16>()?.into(),
            2 => *input.choose(&[0, 1, 12, 16, 512, 4096, 0x1_0000, u32::MAX])?,
            _ => input.arbitrary::<u8>()?.into(),
        })
    }

    fn queue(&self, input: &mut Unstructured<'_>) -> Result<u16> {
        let last = u16::try_from(self.rings.len()).unwrap_or(1) - 1;
        input.int_in_range(0..=last)
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        match input.int_in_range(0..=19)? {
            0..=6 => self.request(input)?,
            7 => {
                let ring = self.rings[usize::from(self.queue(input)?)];
                let (address, len) = (self.address(input)?, Self::len(input)?);
                let flags = input.arbitrary::<u8>()? & 7;
                let (index, next) = (
                    u16::from(input.arbitrary::<u8>()?) % 20,
                    u16::from(input.arbitrary::<u8>()?) % 20,
                );
                self.descriptor(ring.base, index, address, len, flags.into(), next);
            }
            8 => {
                let address = self.address(input)?;
                let len = usize::from(input.arbitrary::<u8>()?);
                let data = input.bytes(len.min(input.len()))?;
                self.put(address, data);
            }
            9 => {
                let index = self.queue(input)?;
                let head = u16::from(input.arbitrary::<u8>()?) % 20;
                self.offer(index, head);
            }
            10 => {
                let ring = self.rings[usize::from(self.queue(input)?)];
                let value = input.arbitrary()?;
                // Flags, index, an entry, `used_event`; or the device's own index.
                let places = [
                    ring.available(),
                    ring.available() + 2,
                    ring.available() + 4,
                    ring.available() + 4 + 2 * u64::from(ring.size),
                    ring.used() + 2,
                ];
                self.put_u16(*input.choose(&places)?, value);
            }
            11 | 12 => {
                let queue = self.queue(input)?;
                self.process(queue);
            }
            13 => {
                let source = input.arbitrary::<u8>()?;
                self.wake(source.into());
            }
            14 => {
                let offset = u64::from(input.arbitrary::<u8>()?);
                let len = usize::from(input.arbitrary::<u8>()? % 9);
                let data = input.bytes(len.min(input.len()))?;
                self.state.write_config(offset, data);
                let mut read = [0; 16];
                self.state.read_config(offset, &mut read[..len]);
            }
            15 => self.register(input)?,
            16 => {
                let features = input.arbitrary()?;
                self.settle();
                self.start(features);
            }
            _ => {
                self.world.happen(input)?;
                for source in 0..self.sources.len() {
                    self.wake(source);
                }
            }
        }
        Ok(())
    }

    /// A chain of buffers as drivers make them, its contents the device's kind of request.
    fn request(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let index = self.queue(input)?;
        let mut contents = self.world.request(index, input)?;
        let more = usize::from(input.arbitrary::<u8>()? % 64);
        contents.extend(input.bytes(more.min(input.len()))?);
        let shape: u8 = input.arbitrary()?;
        let mut buffers = Vec::with_capacity(8);
        // The readable part in one piece, or cut in two.
        let at = self.place(contents.len() as u64);
        self.put(at, &contents);
        let len = u32::try_from(contents.len()).unwrap_or(0);
        if len > 0 {
            let cut = if shape & 1 == 0 { len } else { len / 2 };
            buffers.push((at, cut, 0));
            buffers.push((at + u64::from(cut), len - cut, 0));
        }
        for _ in 0..shape >> 1 & 3 {
            let len = match input.int_in_range(0..=5)? {
                0 => 1,
                1 => 512,
                2 => u32::from(input.arbitrary::<u16>()?) % 0x2000,
                _ => input.arbitrary::<u8>()?.into(),
            };
            buffers.push((self.place(len.into()), len, WRITE));
        }
        buffers.retain(|(_, len, _)| *len > 0);
        if buffers.is_empty() {
            return Ok(());
        }
        let ring = &mut self.rings[usize::from(index)];
        let count = u16::try_from(buffers.len()).unwrap_or(1);
        let indirect = shape & 0x10 != 0;
        let (table, first) = if indirect {
            (0x3c00, 0)
        } else {
            (ring.base, ring.next_descriptor)
        };
        let (base, size, head) = (ring.base, ring.size, ring.next_descriptor);
        let taken = if indirect { 1 } else { count };
        ring.next_descriptor = (head + taken) % size;
        let wrap = if indirect { count } else { size };
        for ((address, len, flags), at) in buffers.into_iter().zip(0..) {
            let last = at + 1 == count;
            let flags = flags | if last { 0 } else { NEXT };
            let next = (first + at + 1) % wrap;
            self.descriptor(table, (first + at) % wrap, address, len, flags, next);
        }
        if indirect {
            self.descriptor(base, head, table, 16 * u32::from(count), INDIRECT, 0);
        }
        self.offer(index, head);
        if shape & 0x20 == 0 {
            self.process(index);
        }
        Ok(())
    }

    /// Memory for a buffer; it is given out again and again.
    fn place(&mut self, len: u64) -> u64 {
        if self.next_buffer + len > LOW_LEN {
            self.next_buffer = BUFFERS;
        }
        let at = self.next_buffer;
        self.next_buffer += len.next_multiple_of(16);
        at
    }

    fn offer(&mut self, index: u16, head: u16) {
        let ring = &mut self.rings[usize::from(index)];
        let entry = ring.available() + 4 + 2 * u64::from(ring.next_available % ring.size);
        ring.next_available = ring.next_available.wrapping_add(1);
        let (available, next) = (ring.available() + 2, ring.next_available);
        self.put_u16(entry, head);
        self.put_u16(available, next);
    }

    fn register(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let registers = [
            Register::Status,
            Register::DriverFeatures,
            Register::DriverFeaturesSelect,
            Register::QueueSelect,
            Register::QueueSize,
            Register::QueueReady,
            Register::QueueDescriptorsLow,
            Register::QueueDescriptorsHigh,
            Register::QueueAvailableLow,
            Register::QueueUsedLow,
            Register::DeviceFeaturesSelect,
        ];
        let register = *input.choose(&registers)?;
        let value = match register {
            Register::Status => input.arbitrary::<u8>()?.into(),
            Register::QueueSelect => u32::from(input.arbitrary::<u8>()? % 20),
            _ => Self::len(input)?,
        };
        self.state.write(register, value);
        self.state.read(register);
        Ok(())
    }

    /// What the device gives back.
    fn used(&self) -> Vec<u16> {
        let index = |ring: &Ring| {
            let at = GuestAddress(ring.used() + 2);
            self.memory.read_obj(at).unwrap_or(0)
        };
        self.rings.iter().map(index).collect()
    }

    /// Lets the device do something, and sees that it keeps still where it must.
    fn device(&mut self, work: impl FnOnce(&mut VirtioState)) {
        let status = self.state.read(Register::Status);
        if status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK {
            return work(&mut self.state);
        }
        let before = self.used();
        work(&mut self.state);
        assert_eq!(before, self.used(), "in status {status:#x}");
    }

    fn process(&mut self, queue: u16) {
        self.device(|state| state.process_queue(queue));
    }

    /// Wakes the device for `source`, if it is ready: as an epoll would, one of levels, which is more often than one of
    /// edges. Says whether there is more to do.
    fn wake(&mut self, source: usize) -> bool {
        let mut more = false;
        if self.sources.get(source).is_some_and(|fd| is_ready(*fd)) {
            self.device(|state| more = state.wake(source) == Progress::More);
        }
        more
    }

    /// Does all there is to do, as the device's thread does.
    fn settle(&mut self) {
        let doorbells = self.state.doorbells();
        for (queue, doorbell) in (0..).zip(doorbells.iter()) {
            let mut turns = 0;
            self.process(queue);
            while doorbell.read().is_ok() {
                self.process(queue);
                turns += 1;
                assert!(turns < MAX_TURNS, "queue {queue} never comes to rest");
            }
        }
        for source in 0..self.sources.len() {
            let mut turns = 0;
            while self.wake(source) {
                turns += 1;
                assert!(turns < MAX_TURNS, "source {source} never comes to rest");
            }
        }
    }
}

/// Whether `fd` has anything to say, as far as an epoll would report it.
fn is_ready(fd: RawFd) -> bool {
    // SAFETY: sources stay open for the device's life, which is longer than this call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let events = PollFlags::POLLIN | PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
    let mut fds = [PollFd::new(fd, events)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
