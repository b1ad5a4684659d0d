//! The driver's side of the PCI transport (virtio 1.2 §4.1): everything is found as a driver finds it, by the capabilities.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::{Plugged, Registers};
use crate::bus::BusDevice;
use crate::interrupt::Interrupt;
use crate::memory::GuestMemory;
use crate::pci::{MsiMessage, MsiSink, PciBus};
use crate::virtio::device::VirtioDevice;
use crate::virtio::pci::VirtioPci;
use crate::virtio::state::{DRIVER, Register};

/// Where the test guest's PCI memory is.
pub(crate) const BAR: u64 = 0xd800_0000;
/// The device number of the one device.
const SLOT: u64 = 1;
/// The vector of the configuration; that of queue `n` is `n + 1`.
const CONFIG_VECTOR: u16 = 0;

/// Records which vectors were sent, by the messages they were routed to.
pub(crate) struct Vectors {
    line: EventFd,
    routes: Mutex<Vec<Option<MsiMessage>>>,
    /// One bit for each vector, taken by `acknowledge`.
    sent: AtomicU64,
}

impl Vectors {
    pub(crate) fn new(count: u16, line: &EventFd) -> Arc<Self> {
        Arc::new(Self {
            line: line.try_clone().expect("an eventfd"),
            routes: Mutex::new(vec![None; usize::from(count)]),
            sent: AtomicU64::new(0),
        })
    }

    /// Vectors sent since the last call, one bit for each.
    pub(crate) fn take(&self) -> u64 {
        self.sent.swap(0, Ordering::SeqCst)
    }
}

impl MsiSink for Vectors {
    fn route(&self, vector: u16, message: MsiMessage) -> io::Result<()> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes[usize::from(vector)] = Some(message);
        Ok(())
    }

    fn send(&self, vector: u16) -> io::Result<()> {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let message = routes[usize::from(vector)].expect("a vector is routed before it is sent");
        assert_eq!(message, message_of(vector), "the driver's own message");
        self.sent.fetch_or(1 << (vector % 64), Ordering::SeqCst);
        self.line.trigger()
    }
}

/// The message the test driver programs for a vector.
fn message_of(vector: u16) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000,
        data: 0x40 + u32::from(vector),
    }
}

/// Puts `device` on a bus, enables it and its interrupts, which all ring `line`.
pub(super) fn plug(
    device: Box<dyn VirtioDevice>,
    memory: Arc<GuestMemory>,
    line: &EventFd,
) -> Plugged {
    let count = crate::virtio::pci::vectors(&*device);
    let vectors = Vectors::new(count, line);
    let function = VirtioPci::new(device, memory, BAR, vectors.clone(), None);
    let function = Arc::new(function.expect("eventfds for doorbells"));
    let state = function.state().clone();
    #[cfg(test)]
    let kept = function.clone();
    let bus = PciBus::new();
    bus.insert(1, function).expect("an empty bus");
    let driver = Driver::probe(&bus, vectors);
    Plugged {
        state,
        bus_device: bus.window(BAR),
        #[cfg(test)]
        transport: super::snapshot::AnyTransport::Pci(kept, driver.clone()),
        registers: Box::new(driver),
    }
}

/// What a driver knows after it has probed the device.
#[derive(Clone)]
pub(super) struct Driver {
    #[cfg(test)]
    pub(super) config: Arc<dyn BusDevice>,
    pub(super) memory: Arc<dyn BusDevice>,
    pub(super) vectors: Arc<Vectors>,
    common: u64,
    notify: u64,
    notify_multiplier: u64,
    device: Option<u64>,
}

impl Driver {
    fn probe(bus: &Arc<PciBus>, vectors: Arc<Vectors>) -> Self {
        let ecam = bus.ecam();
        let config = |register: u64| {
            let mut data = [0; 4];
            ecam.read(SLOT << 15 | register, &mut data);
            u32::from_le_bytes(data)
        };
        let byte = |register: u64| {
            let mut data = [0];
            ecam.read(SLOT << 15 | register, &mut data);
            u64::from(data[0])
        };
        assert_eq!(config(0) & 0xffff, 0x1af4, "a virtio device");
        // Memory and bus master.
        ecam.write(SLOT << 15 | 0x04, &6_u16.to_le_bytes());
        assert_eq!(
            u64::from(config(0x10) & !0xf) | u64::from(config(0x14)) << 32,
            BAR
        );
        let memory = bus.window(BAR);
        let mut found = Self {
            #[cfg(test)]
            config: ecam.clone(),
            memory,
            vectors,
            common: 0,
            notify: 0,
            notify_multiplier: 0,
            device: None,
        };
        let mut at = byte(0x34);
        let mut steps = 0;
        while at != 0 {
            steps += 1;
            assert!(steps < 48, "the list of capabilities has no end");
            let offset = u64::from(config(at + 8));
            match (byte(at), byte(at + 3)) {
                (0x09, 1) => found.common = offset,
                (0x09, 2) => {
                    found.notify = offset;
                    found.notify_multiplier = config(at + 16).into();
                }
                (0x09, 4) => found.device = Some(offset),
                (0x11, _) => {
                    let table = u64::from(config(at + 4) & !7);
                    let count = config(at) >> 16 & 0x7ff;
                    found.enable_vectors(table, count + 1);
                    // Enabled, no function mask.
                    ecam.write(SLOT << 15 | (at + 2), &0x8000_u16.to_le_bytes());
                }
                _ => {}
            }
            at = byte(at + 1);
        }
        found
    }

    /// Puts the function's memory where this driver looks for it, and switches it on.
    #[cfg(test)]
    pub(super) fn place(&self) {
        self.config.write(SLOT << 15 | 0x10, &BAR.to_le_bytes());
        // Memory and bus master.
        self.config.write(SLOT << 15 | 0x04, &6_u16.to_le_bytes());
    }

    fn enable_vectors(&self, table: u64, count: u32) {
        for vector in 0..u16::try_from(count).expect("at most 2048 vectors") {
            let entry = table + 16 * u64::from(vector);
            let MsiMessage { address, data } = message_of(vector);
            let address = address.to_le_bytes();
            self.memory.write(entry, &address[..4]);
            self.memory.write(entry + 4, &address[4..]);
            self.memory.write(entry + 8, &data.to_le_bytes());
            self.memory.write(entry + 12, &0_u32.to_le_bytes());
        }
    }

    fn load(&self, offset: u64, width: usize) -> u32 {
        let mut data = [0; 4];
        self.memory.read(self.common + offset, &mut data[..width]);
        u32::from_le_bytes(data)
    }

    fn store(&self, offset: u64, width: usize, value: u32) {
        let data = value.to_le_bytes();
        self.memory.write(self.common + offset, &data[..width]);
    }
}

/// Where §4.1.4.3 has the register, and its bytes; the transport's own table is what is tested against this one.
fn field(register: Register) -> (u64, usize) {
    match register {
        Register::DeviceFeaturesSelect => (0, 4),
        Register::DeviceFeatures => (4, 4),
        Register::DriverFeaturesSelect => (8, 4),
        Register::DriverFeatures => (12, 4),
        Register::Status => (20, 1),
        Register::ConfigGeneration => (21, 1),
        Register::QueueSelect => (22, 2),
        // After a reset, the size is the largest there can be.
        Register::QueueSizeMax | Register::QueueSize => (24, 2),
        Register::QueueReady => (28, 2),
        Register::QueueDescriptorsLow => (32, 4),
        Register::QueueDescriptorsHigh => (36, 4),
        Register::QueueAvailableLow => (40, 4),
        Register::QueueAvailableHigh => (44, 4),
        Register::QueueUsedLow => (48, 4),
        Register::QueueUsedHigh => (52, 4),
    }
}

impl Registers for Driver {
    fn read(&self, register: Register) -> u32 {
        let (offset, width) = field(register);
        self.load(offset, width)
    }

    fn write(&self, register: Register, value: u32) {
        // A reset has taken the vectors away: they are set before each use.
        match register {
            Register::Status if value & DRIVER != 0 => self.store(16, 2, CONFIG_VECTOR.into()),
            Register::QueueReady => {
                let queue = self.load(22, 2);
                self.store(26, 2, queue + 1);
            }
            _ => {}
        }
        let (offset, width) = field(register);
        self.store(offset, width, value);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        match self.device {
            Some(device) => self.memory.read(device + offset, data),
            None => data.fill(0),
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let Some(device) = self.device {
            self.memory.write(device + offset, data);
        }
    }

    fn ring(&self, index: u16) {
        // `queue_notify_off` is the queue's index; the transport's own tests see to that.
        let offset = u64::from(index) * self.notify_multiplier;
        self.memory
            .write(self.notify + offset, &index.to_le_bytes());
    }

    fn acknowledge(&self) -> u32 {
        let sent = self.vectors.take();
        let config = 1 << CONFIG_VECTOR;
        u32::from(sent & !config != 0) | u32::from(sent & config != 0) << 1
    }
}
