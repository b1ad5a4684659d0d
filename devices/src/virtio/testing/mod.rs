//! The guest's side of a virtio device, for tests: a driver that keeps the rules, and lets a test
//! break each of them.
//!
//! Everything is real: rings and buffers lie in guest memory, registers are accessed as a vCPU would,
//! and the device's work is done by its worker in an event manager.

mod mmio;
pub(crate) mod pci;
mod ring;
#[cfg(test)]
pub(crate) mod snapshot;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use event_manager::{EventManager, SubscriberOps};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use ring::{
    BUFFER_STRIDE, BUFFERS, Buffer, GuestRing, INDIRECT, NEXT, RING_STRIDE, RINGS, WRITE,
};

use super::device::VirtioDevice;
use super::interrupt::VirtioInterrupt;
use super::queue::QueueRegisters;
use super::state::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, Register, SharedState, VirtioState,
};
use super::worker::VirtioWorker;
use crate::bus::BusDevice;
use crate::memory::{self, GuestMemory};

/// Bytes of the test guest's memory below the hole: rings at the start, buffers from [`BUFFERS`] on.
pub const LOW_LEN: u64 = 0x8_0000;
/// Where the memory above the hole starts.
pub const HIGH_BASE: u64 = 0x10_0000;
/// Bytes of the memory above the hole.
pub const HIGH_LEN: u64 = 0x1_0000;
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

/// By which registers a guest reaches its device: what holds for a device holds on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// virtio 1.2 §4.2.
    Mmio,
    /// virtio 1.2 §4.1.
    Pci,
}

impl Transport {
    /// Every transport there is.
    pub const ALL: &'static [Self] = &[Self::Mmio, Self::Pci];
}

/// What the registers of a transport are to a driver.
trait Registers {
    /// Reads what the driver can read; zero for a register that can only be written.
    fn read(&self, register: Register) -> u32;

    fn write(&self, register: Register, value: u32);

    fn read_config(&self, offset: u64, data: &mut [u8]);

    fn write_config(&self, offset: u64, data: &[u8]);

    /// Notifies queue `index`, as the kernel's ioeventfd does not.
    fn ring(&self, index: u16);

    /// Why the driver was interrupted, taken and acknowledged: bit 0 by a queue, bit 1 by the configuration.
    fn acknowledge(&self) -> u32;
}

/// A guest with one virtio device.
pub struct TestGuest {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    registers: Box<dyn Registers + Send>,
    bus_device: Arc<dyn BusDevice>,
    #[cfg(test)]
    transport: snapshot::AnyTransport,
    state: SharedState,
    doorbells: Arc<[EventFd]>,
    line: EventFd,
    thread: EventManager<VirtioWorker>,
    /// The features the driver has taken.
    features: u64,
    queues: BTreeMap<u16, Bell>,
}

/// What a driver remembers of a queue to know whether the device wants to be told.
struct Bell {
    registers: QueueRegisters,
    /// The available index when it was last thought about.
    considered: u16,
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
        let device = Box::new(device);
        let line = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let plugged = match on {
            Transport::Mmio => mmio::plug(device, memory.clone(), &line),
            Transport::Pci => pci::plug(device, memory.clone(), &line),
        };
        let worker = VirtioWorker::new(plugged.state.clone()).expect("an eventfd");
        let mut thread = EventManager::new().expect("an epoll");
        thread.add_subscriber(worker);
        let doorbells = lock(&plugged.state).doorbells();
        Self {
            memory,
            registers: plugged.registers,
            bus_device: plugged.bus_device,
            #[cfg(test)]
            transport: plugged.transport,
            state: plugged.state,
            doorbells,
            line,
            thread,
            features: 0,
            queues: BTreeMap::new(),
        }
    }

    /// The registers as the bus has them, for accesses that no driver makes.
    pub fn bus_device(&self) -> &Arc<dyn BusDevice> {
        &self.bus_device
    }

    /// The state behind the transport.
    pub fn state(&self) -> MutexGuard<'_, VirtioState> {
        lock(&self.state)
    }

    /// The doorbell of queue `index`, which the kernel rings for the driver.
    pub fn doorbell(&self, index: u16) -> &EventFd {
        &self.doorbells[usize::from(index)]
    }

    /// Reads a register; zero for one that can only be written.
    pub fn read(&mut self, register: Register) -> u32 {
        self.registers.read(register)
    }

    /// Writes a register.
    pub fn write(&mut self, register: Register, value: u32) {
        self.registers.write(register, value);
    }

    /// Fills `data` from the device's configuration at `offset`.
    pub fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        self.registers.read_config(offset, data);
    }

    /// Writes `data` to the device's configuration at `offset`.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.registers.write_config(offset, data);
    }

    /// The byte at `offset` of the device's configuration.
    pub fn config_u8(&mut self, offset: u64) -> u8 {
        let mut data = [0];
        self.read_config(offset, &mut data);
        data[0]
    }

    /// The 16-bit field at `offset` of the device's configuration.
    pub fn config_u16(&mut self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.read_config(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// The 32-bit field at `offset` of the device's configuration.
    pub fn config_u32(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// The 64-bit field at `offset` of the device's configuration, in two accesses as a driver makes them.
    pub fn config_u64(&mut self, offset: u64) -> u64 {
        u64::from(self.config_u32(offset)) | u64::from(self.config_u32(offset + 4)) << 32
    }

    /// The device status.
    pub fn status(&mut self) -> u32 {
        self.read(Register::Status)
    }

    /// Sets `bits` of the device status and says whether the device granted them.
    pub fn add_status(&mut self, bits: u32) -> bool {
        let status = self.status() | bits;
        self.write(Register::Status, status);
        self.status() == status
    }

    /// Resets the device.
    pub fn reset(&mut self) {
        self.write(Register::Status, 0);
        self.queues.clear();
    }

    /// The features the device offers.
    pub fn offered(&mut self) -> u64 {
        self.write(Register::DeviceFeaturesSelect, 1);
        let high = self.read(Register::DeviceFeatures);
        self.write(Register::DeviceFeaturesSelect, 0);
        u64::from(high) << 32 | u64::from(self.read(Register::DeviceFeatures))
    }

    /// Resets the device and takes `features`, up to FEATURES_OK. Says whether it was granted.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.reset();
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        self.write_features(features);
        self.add_status(FEATURES_OK)
    }

    /// Writes the features the driver takes, in whatever status.
    pub fn write_features(&mut self, features: u64) {
        self.features = features;
        let (low, high) = halves(features);
        self.write(Register::DriverFeaturesSelect, 0);
        self.write(Register::DriverFeatures, low);
        self.write(Register::DriverFeaturesSelect, 1);
        self.write(Register::DriverFeatures, high);
    }

    /// The largest size of queue `index`, after a reset; 0 where there is no such queue.
    pub fn queue_size_max(&mut self, index: u16) -> u16 {
        self.write(Register::QueueSelect, index.into());
        u16::try_from(self.read(Register::QueueSizeMax)).expect("queue sizes are 16 bits")
    }

    /// Writes the registers of queue `index`.
    pub fn set_queue(&mut self, index: u16, registers: &QueueRegisters) {
        self.write(Register::QueueSelect, index.into());
        self.write(Register::QueueSize, registers.size);
        for (low, high, value) in [
            (
                Register::QueueDescriptorsLow,
                Register::QueueDescriptorsHigh,
                registers.descriptors,
            ),
            (
                Register::QueueAvailableLow,
                Register::QueueAvailableHigh,
                registers.available,
            ),
            (
                Register::QueueUsedLow,
                Register::QueueUsedHigh,
                registers.used,
            ),
        ] {
            let (low_value, high_value) = halves(value);
            self.write(low, low_value);
            self.write(high, high_value);
        }
        if registers.ready {
            self.write(Register::QueueReady, 1);
            let bell = Bell {
                registers: *registers,
                considered: 0,
            };
            self.queues.insert(index, bell);
        }
    }

    /// Brings the device up with `features` and rings of `size` for its one queue.
    pub fn start(&mut self, features: u64, size: u16) -> GuestRing {
        self.start_queues(features, &[size]).remove(0)
    }

    /// Brings the device up with `features` and rings of these `sizes` for its first queues.
    pub fn start_queues(&mut self, features: u64, sizes: &[u16]) -> Vec<GuestRing> {
        assert!(self.negotiate(features), "features {features:#x} refused");
        let mut rings = Vec::new();
        for (index, &size) in (0..).zip(sizes) {
            let ring = GuestRing::new(self.memory.clone(), index, size);
            self.set_queue(index, &ring.registers());
            rings.push(ring);
        }
        assert!(self.add_status(DRIVER_OK), "status {:#x}", self.status());
        rings
    }

    /// As [`start`](Self::start), with all features and the largest queue.
    pub fn start_all(&mut self) -> GuestRing {
        self.reset();
        let features = self.offered();
        let size = self.queue_size_max(0);
        self.start(features, size)
    }

    /// Whether the device wants to be told of what lies in queue `index` now (virtio 1.2 §2.7.10, §2.7.7.2): by its
    /// event index, or by the flag in the used ring. A queue that lies nowhere is always told of.
    fn wants_ring(&mut self, index: u16) -> bool {
        let event_index = self.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let memory = &self.memory;
        let load = |address| -> Option<u16> {
            let value = memory.load(GuestAddress(address), Ordering::SeqCst);
            value.ok().map(u16::from_le)
        };
        let Some(Bell {
            registers,
            considered,
        }) = self.queues.get_mut(&index)
        else {
            return true;
        };
        let event_at = registers.used + 4 + 8 * u64::from(registers.size);
        let read = (
            load(registers.available + 2),
            load(event_at),
            load(registers.used),
        );
        let (Some(available), Some(event), Some(flags)) = read else {
            return true;
        };
        let before = std::mem::replace(considered, available);
        if event_index {
            available.wrapping_sub(event).wrapping_sub(1) < available.wrapping_sub(before)
        } else {
            flags & 1 == 0
        }
    }

    /// Notifies queue `index`, wanted or not, and leaves the work to a later [`run`](Self::run).
    pub fn ring(&mut self, index: u16) {
        self.registers.ring(index);
    }

    /// Does what a driver does that has made requests available: notifies queue `index` if the device wants to be told.
    /// Then lets the device thread work until it has nothing left to do.
    pub fn notify(&mut self, index: u16) {
        if self.wants_ring(index) {
            self.ring(index);
        }
        self.run();
    }

    /// As [`notify`](Self::notify), for a driver that notifies whether or not the device wants to be told.
    pub fn ring_anyway(&mut self, index: u16) {
        self.ring(index);
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

    /// Interrupts since the last call, of whatever kind.
    pub fn interrupts(&mut self) -> u64 {
        self.line.read().unwrap_or(0)
    }

    /// Does what an interrupt handler does: takes and acknowledges the reasons. Bit 0: a queue has used buffers;
    /// bit 1: the configuration or the status has changed.
    pub fn acknowledge(&mut self) -> u32 {
        self.registers.acknowledge()
    }

    /// Takes the guest apart: doorbells, interrupts (one readable descriptor for all), and the device thread's event
    /// manager, to be run on a thread of its own.
    pub fn into_parts(self) -> (Arc<[EventFd]>, EventFd, EventManager<VirtioWorker>) {
        (self.doorbells, self.line, self.thread)
    }
}

/// A device on its transport.
struct Plugged {
    registers: Box<dyn Registers + Send>,
    bus_device: Arc<dyn BusDevice>,
    #[cfg(test)]
    transport: snapshot::AnyTransport,
    state: SharedState,
}

fn lock(state: &SharedState) -> MutexGuard<'_, VirtioState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The low and the high 32 bits.
fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}
