//! What the specification says a device's registers do, written down a second time: as plain values, without a device,
//! memory or a lock. The sweep holds the real one to it.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::virtio::queue::QueueRegisters;
use crate::virtio::state::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET, Register,
};
use crate::virtio::testing::{HIGH_BASE, HIGH_LEN, LOW_LEN};

/// Queues of the device that is swept: a balloon, which also has a part of its configuration that drivers write.
pub const QUEUES: usize = 5;
/// Descriptors of each of them.
pub const QUEUE_SIZE: u32 = 128;
/// Its device ID.
pub const DEVICE_ID: u32 = 5;
/// What it offers: statistics, reports, and the features of every ring.
pub const OFFERED: u64 = 1 << 1 | 1 << 5 | 1 << 28 | 1 << 29 | 1 << VIRTIO_F_VERSION_1;
/// Bytes of its configuration. The last four are the driver's.
pub const CONFIG_LEN: usize = 8;

/// Why the device wants to be looked at. The rings of these sweeps are empty: queues never interrupt.
pub const CONFIG_CHANGED: u32 = 2;

/// Everything a driver can set, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub status: u32,
    pub device_page: u32,
    pub driver_page: u32,
    pub features: u64,
    pub selected: u32,
    pub queues: [QueueRegisters; QUEUES],
    pub config: [u8; CONFIG_LEN],
    /// Accesses out of turn so far.
    pub refused: u64,
    /// How often the driver was to be told of a change of the status.
    pub alarms: u32,
    /// What lies in the ring of queue 0 breaks the rules.
    pub broken_ring: bool,
    /// Queues the device is to look at, one bit for each.
    pub rung: u32,
}

impl Model {
    pub fn new() -> Self {
        Self {
            status: 0,
            device_page: 0,
            driver_page: 0,
            features: 0,
            selected: 0,
            queues: [QueueRegisters {
                size: QUEUE_SIZE,
                ..Default::default()
            }; QUEUES],
            config: [0; CONFIG_LEN],
            refused: 0,
            alarms: 0,
            broken_ring: false,
            rung: 0,
        }
    }

    fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(self.selected as usize)
    }

    /// What a driver reads. All of it is without side effects.
    pub fn read(&self, register: Register) -> u32 {
        let half = |value: u64, page: u32| match page {
            0 => (value & 0xffff_ffff) as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        let queue = self.queue().copied().unwrap_or_default();
        match register {
            Register::DeviceFeaturesSelect => self.device_page,
            Register::DeviceFeatures => half(OFFERED, self.device_page),
            Register::DriverFeaturesSelect => self.driver_page,
            Register::DriverFeatures => half(self.features, self.driver_page),
            Register::QueueSelect => self.selected,
            Register::QueueSizeMax => self.queue().map_or(0, |_| QUEUE_SIZE),
            Register::QueueSize => queue.size,
            Register::QueueReady => queue.ready.into(),
            Register::QueueDescriptorsLow => half(queue.descriptors, 0),
            Register::QueueDescriptorsHigh => half(queue.descriptors, 1),
            Register::QueueAvailableLow => half(queue.available, 0),
            Register::QueueAvailableHigh => half(queue.available, 1),
            Register::QueueUsedLow => half(queue.used, 0),
            Register::QueueUsedHigh => half(queue.used, 1),
            Register::Status => self.status,
            Register::ConfigGeneration => 0,
        }
    }

    pub fn refuse(&mut self) {
        self.refused += 1;
    }

    pub fn write(&mut self, register: Register, value: u32) {
        let permitted = match register {
            Register::DeviceFeaturesSelect => {
                self.device_page = value;
                true
            }
            Register::DriverFeaturesSelect => {
                self.driver_page = value;
                true
            }
            Register::QueueSelect => {
                self.selected = value;
                true
            }
            Register::DriverFeatures => self.write_features(value),
            Register::Status => self.write_status(value),
            Register::DeviceFeatures | Register::QueueSizeMax | Register::ConfigGeneration => false,
            _ => self.write_queue(register, value),
        };
        if !permitted {
            self.refuse();
        }
    }

    /// Features are written between DRIVER and FEATURES_OK (§3.1.1), two pages of 32 bits each.
    fn write_features(&mut self, value: u32) -> bool {
        let open = self.status & (DRIVER | FEATURES_OK | FAILED) == DRIVER;
        let value = u64::from(value);
        match self.driver_page {
            _ if !open => false,
            0 => {
                self.features = self.features >> 32 << 32 | value;
                true
            }
            1 => {
                self.features = self.features & 0xffff_ffff | value << 32;
                true
            }
            _ => value == 0,
        }
    }

    /// Queues are set up between FEATURES_OK and DRIVER_OK (§3.1.1), each until it is ready.
    fn write_queue(&mut self, register: Register, value: u32) -> bool {
        let open = self.status & (FEATURES_OK | DRIVER_OK | NEEDS_RESET | FAILED) == FEATURES_OK;
        let Some(queue) = self.queues.get_mut(self.selected as usize) else {
            return false;
        };
        if register == Register::QueueReady {
            // To say what is so already does no harm, in any status.
            if value != u32::from(queue.ready) {
                if !open || value > 1 {
                    return false;
                }
                queue.ready = value == 1;
            }
            return true;
        }
        if !open || queue.ready {
            return false;
        }
        let (field, low) = match register {
            Register::QueueSize => {
                queue.size = value;
                return true;
            }
            Register::QueueDescriptorsLow => (&mut queue.descriptors, true),
            Register::QueueDescriptorsHigh => (&mut queue.descriptors, false),
            Register::QueueAvailableLow => (&mut queue.available, true),
            Register::QueueAvailableHigh => (&mut queue.available, false),
            Register::QueueUsedLow => (&mut queue.used, true),
            _ => (&mut queue.used, false),
        };
        let value = u64::from(value);
        *field = if low {
            *field >> 32 << 32 | value
        } else {
            *field & 0xffff_ffff | value << 32
        };
        true
    }

    /// The status (§2.1, §3.1.1): bits are set in their order, and cleared all at once by writing zero.
    fn write_status(&mut self, value: u32) -> bool {
        let old = self.status;
        if value == 0 {
            *self = Self {
                refused: self.refused,
                alarms: self.alarms,
                broken_ring: self.broken_ring,
                ..Self::new()
            };
            return true;
        }
        let known = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;
        let unknown = value & !known & !old;
        let taken_back = old & !value & !NEEDS_RESET;
        if unknown != 0 || taken_back != 0 {
            return false;
        }
        let asked = |bit: u32| value & bit != 0 && old & bit == 0;
        if asked(FAILED) {
            self.status |= FAILED;
            return true;
        }
        if old & (FAILED | NEEDS_RESET) != 0 {
            // Nothing goes on from there; repeating what is set asks for nothing.
            return ![ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK]
                .into_iter()
                .any(asked);
        }
        if asked(ACKNOWLEDGE) {
            self.status |= ACKNOWLEDGE;
        }
        let mut all = true;
        if asked(DRIVER) {
            let granted = self.status & ACKNOWLEDGE != 0;
            self.status |= if granted { DRIVER } else { 0 };
            all &= granted;
        }
        if asked(FEATURES_OK) {
            let offered = self.features & !OFFERED == 0;
            let modern = self.features >> VIRTIO_F_VERSION_1 & 1 == 1;
            let granted = self.status & DRIVER != 0 && offered && modern;
            self.status |= if granted { FEATURES_OK } else { 0 };
            all &= granted;
        }
        if asked(DRIVER_OK) {
            // The driver must have read FEATURES_OK back: both at once is too early.
            if old & FEATURES_OK == 0 {
                return false;
            }
            self.status |= DRIVER_OK;
            self.start();
        }
        all
    }

    /// All queues run, or none; each is looked at once.
    fn start(&mut self) {
        if self.queues.iter().any(|queue| queue.ready && !sound(queue)) {
            return self.fail();
        }
        for (index, _) in self
            .queues
            .iter()
            .enumerate()
            .filter(|(_, queue)| queue.ready)
        {
            self.rung |= 1 << index;
        }
    }

    /// The device gives up on the driver, and says so (§2.1.2).
    fn fail(&mut self) {
        self.status |= NEEDS_RESET;
        self.alarms += 1;
    }

    /// The device comes to work on queue `index`, which was rung for.
    pub fn work(&mut self, index: usize) {
        let running = self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK;
        if running && index == 0 && self.queues[0].ready && self.broken_ring {
            self.fail();
        }
    }

    /// What is read of the configuration: zeroes behind its end.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            let at = usize::try_from(at).unwrap();
            *byte = self.config.get(at).copied().unwrap_or(0);
        }
    }

    /// The configuration is written by a driver that is there and well, and only inside of it.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        let inside = offset + data.len() as u64 <= CONFIG_LEN as u64;
        if !inside || self.status & (DRIVER | FAILED | NEEDS_RESET) != DRIVER {
            return self.refuse();
        }
        for (byte, at) in data.iter().zip(usize::try_from(offset).unwrap()..) {
            if at >= 4 {
                self.config[at] = *byte;
            }
        }
    }
}

/// A queue that lies in memory, aligned and of a permitted size (§2.7).
fn sound(queue: &QueueRegisters) -> bool {
    let size = u64::from(queue.size);
    let inside = |address: u64, len: u64, align: u64| {
        let end = u128::from(address) + u128::from(len);
        let low = end <= u128::from(LOW_LEN);
        let high = address >= HIGH_BASE && end <= u128::from(HIGH_BASE + HIGH_LEN);
        address.is_multiple_of(align) && (low || high)
    };
    queue.size.is_power_of_two()
        && queue.size <= QUEUE_SIZE
        && inside(queue.descriptors, 16 * size, 16)
        && inside(queue.available, 6 + 2 * size, 2)
        && inside(queue.used, 6 + 8 * size, 4)
}
