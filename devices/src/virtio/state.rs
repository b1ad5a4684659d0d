//! The virtio state machine (virtio 1.2 §2, §3), the same for every transport.
//!
//! Which write is allowed when is decided here and nowhere else:
//!
//! ```text
//!  status        driver may write
//!  0             status, selectors
//!  DRIVER        + driver features, device configuration
//!  FEATURES_OK   features frozen; queue registers of queues that are not ready
//!  DRIVER_OK     queues run; queue registers frozen
//!  NEEDS_RESET,  nothing but a reset
//!  FAILED
//! ```
//!
//! A write out of turn changes nothing and is counted. A driver that breaks a rule the device cannot
//! ignore gets NEEDS_RESET and an interrupt; the VMM lives on.

mod save;

use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{DeviceTraits, Progress, Source, VirtioDevice};
use super::interrupt::{QueueInterrupt, VirtioInterrupt};
use super::queue::{QueueError, QueueRegisters, QueueState, RING_FEATURES, Virtqueue};
use crate::interrupt::Interrupt;
use crate::memory::GuestMemory;
use crate::metrics::{Fault, Metrics};
use crate::throttle::Throttle;

/// Device status: the guest has noticed the device (virtio 1.2 §2.1).
pub const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
/// Device status: the guest has a driver for it.
pub const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
/// Device status: the driver is set up, the queues run.
pub const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
/// Device status: both sides agreed on features.
pub const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
/// Device status: the device has given up on the driver.
pub const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
/// Device status: the driver has given up on the device.
pub const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

/// The bits a driver may set.
const DRIVER_BITS: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;

/// A register that all transports have, under whatever address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in virtio 1.2 §4.2.2 and §4.1.4.3")]
pub enum Register {
    DeviceFeaturesSelect,
    DeviceFeatures,
    DriverFeaturesSelect,
    DriverFeatures,
    QueueSelect,
    QueueSizeMax,
    QueueSize,
    QueueReady,
    QueueDescriptorsLow,
    QueueDescriptorsHigh,
    QueueAvailableLow,
    QueueAvailableHigh,
    QueueUsedLow,
    QueueUsedHigh,
    Status,
    ConfigGeneration,
}

/// A virtio device with all that its driver has set.
pub struct VirtioState {
    device: Box<dyn VirtioDevice>,
    traits: DeviceTraits,
    memory: Arc<GuestMemory>,
    interrupt: Arc<dyn VirtioInterrupt>,
    doorbells: Arc<[EventFd]>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueRegisters>,
    config_generation: u32,
    metrics: Option<Arc<dyn Metrics>>,
    refused: Throttle,
    faults: Throttle,
}

/// A [`VirtioState`] as transport and worker share it.
pub type SharedState = Arc<Mutex<VirtioState>>;

impl VirtioState {
    /// Puts `device` into its reset state, with a doorbell for each of its queues.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        interrupt: Arc<dyn VirtioInterrupt>,
    ) -> io::Result<Self> {
        let traits = device.traits();
        let doorbells: io::Result<Arc<[EventFd]>> = traits
            .queue_sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect();
        let mut state = Self {
            queues: Vec::new(),
            metrics: device.metrics(),
            device,
            traits,
            memory,
            interrupt,
            doorbells: doorbells?,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            config_generation: 0,
            refused: Throttle::default(),
            faults: Throttle::default(),
        };
        state.reset_registers();
        Ok(state)
    }

    /// What the device is.
    pub fn traits(&self) -> &DeviceTraits {
        &self.traits
    }

    /// One doorbell for each queue: written to when the driver notifies the device.
    pub fn doorbells(&self) -> Arc<[EventFd]> {
        self.doorbells.clone()
    }

    /// How many writes out of turn there were.
    pub fn refused_writes(&self) -> u64 {
        self.refused.count()
    }

    /// The features the device offers.
    pub fn offered_features(&self) -> u64 {
        self.traits.features | RING_FEATURES
    }

    /// The value of `register`. Registers a transport makes write-only are readable here.
    pub fn read(&self, register: Register) -> u32 {
        let queue = self.selected_queue();
        let address = |field: fn(&QueueRegisters) -> u64| queue.map_or(0, field);
        match register {
            Register::DeviceFeaturesSelect => self.device_features_select,
            Register::DeviceFeatures => {
                feature_page(self.offered_features(), self.device_features_select)
            }
            Register::DriverFeaturesSelect => self.driver_features_select,
            Register::DriverFeatures => {
                feature_page(self.driver_features, self.driver_features_select)
            }
            Register::QueueSelect => self.queue_select,
            Register::QueueSizeMax => self
                .traits
                .queue_sizes
                .get(self.queue_select as usize)
                .map_or(0, |&max| max.into()),
            Register::QueueSize => queue.map_or(0, |queue| queue.size),
            Register::QueueReady => queue.map_or(0, |queue| queue.ready.into()),
            Register::QueueDescriptorsLow => low(address(|queue| queue.descriptors)),
            Register::QueueDescriptorsHigh => high(address(|queue| queue.descriptors)),
            Register::QueueAvailableLow => low(address(|queue| queue.available)),
            Register::QueueAvailableHigh => high(address(|queue| queue.available)),
            Register::QueueUsedLow => low(address(|queue| queue.used)),
            Register::QueueUsedHigh => high(address(|queue| queue.used)),
            Register::Status => self.status,
            Register::ConfigGeneration => self.config_generation,
        }
    }

    /// Takes the driver's write of `value` to `register`, or refuses it.
    pub fn write(&mut self, register: Register, value: u32) {
        let accepted = match register {
            Register::DeviceFeaturesSelect => {
                self.device_features_select = value;
                true
            }
            Register::DriverFeaturesSelect => {
                self.driver_features_select = value;
                true
            }
            Register::QueueSelect => {
                self.queue_select = value;
                true
            }
            Register::DriverFeatures => self.write_driver_features(value),
            Register::Status => self.write_status(value),
            Register::DeviceFeatures | Register::QueueSizeMax | Register::ConfigGeneration => false,
            Register::QueueSize
            | Register::QueueReady
            | Register::QueueDescriptorsLow
            | Register::QueueDescriptorsHigh
            | Register::QueueAvailableLow
            | Register::QueueAvailableHigh
            | Register::QueueUsedLow
            | Register::QueueUsedHigh => self.write_queue(register, value),
        };
        if !accepted {
            self.refuse(format_args!("write of {value:#x} to {register:?}"));
        }
    }

    /// Counts, and now and then logs, something the driver tried out of turn.
    pub fn refuse(&mut self, what: std::fmt::Arguments<'_>) {
        self.refused.warn(format_args!(
            "Virtio device {}: {what} ignored in status {:#04x}",
            self.traits.device_id, self.status
        ));
    }

    /// Fills `data` from the configuration space at `offset`; beyond its end there are zeroes.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let room = self.traits.config_len.saturating_sub(offset);
        let len = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if len > 0 {
            self.device.read_config(offset, &mut data[..len]);
        }
    }

    /// Takes a write to the configuration space, from a driver that has introduced itself.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        let inside = offset
            .checked_add(data.len() as u64)
            .is_some_and(|end| end <= self.traits.config_len);
        if inside && self.status & (DRIVER | FAILED | NEEDS_RESET) == DRIVER {
            self.device.write_config(offset, data);
        } else {
            let len = data.len();
            self.count(Fault::Configuration);
            self.refuse(format_args!(
                "write of {len} bytes to configuration at {offset:#x}"
            ));
        }
    }

    /// Tells the driver that the configuration space has changed (virtio 1.2 §2.5.1).
    pub fn config_changed(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        if self.status & DRIVER_OK != 0 {
            self.interrupt.signal_config();
        }
    }

    /// Lets the device work on queue `index`. Called when its doorbell has rung.
    pub fn process_queue(&mut self, index: u16) {
        if self.status & (DRIVER_OK | NEEDS_RESET | FAILED) != DRIVER_OK {
            return;
        }
        match self.device.process(index) {
            Ok(Progress::Idle) => {}
            Ok(Progress::More) => self.ring(index),
            Err(error) => {
                self.count(Fault::Event);
                self.fail(format_args!("queue {index}"), &error);
            }
        }
        self.pass_on_config_change();
    }

    fn count(&self, fault: Fault) {
        if let Some(metrics) = &self.metrics {
            metrics.fault(fault);
        }
    }

    /// Has the worker come to queue `index`.
    fn ring(&mut self, index: u16) {
        if let Some(doorbell) = self.doorbells.get(usize::from(index))
            && let Err(error) = doorbell.trigger()
        {
            self.faults
                .warn(format_args!("Doorbell of queue {index} is broken: {error}"));
        }
    }

    /// Lets the device look after its own descriptor `index`, which is ready.
    pub fn wake(&mut self, index: usize) -> Progress {
        let progress = self.device.wake(index).unwrap_or_else(|error| {
            self.count(Fault::Event);
            self.fail(format_args!("a queue"), &error);
            Progress::Idle
        });
        self.pass_on_config_change();
        progress
    }

    /// Ends the device's work for good: what is in flight is finished, what it caches is written back.
    pub fn shut_down(&mut self) {
        self.stop_queues();
    }

    /// The device's own descriptors.
    pub fn sources(&self) -> Vec<Source> {
        self.device.sources()
    }

    fn pass_on_config_change(&mut self) {
        if self.device.take_config_change() {
            self.config_changed();
        }
    }

    fn selected_queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(self.queue_select as usize)
    }

    fn write_driver_features(&mut self, value: u32) -> bool {
        if self.status & (DRIVER | FEATURES_OK | FAILED) != DRIVER {
            return false;
        }
        match self.driver_features_select {
            0 => self.driver_features = join(value, high(self.driver_features)),
            1 => self.driver_features = join(low(self.driver_features), value),
            // Nothing is offered there.
            _ => return value == 0,
        }
        true
    }

    fn write_queue(&mut self, register: Register, value: u32) -> bool {
        let status = self.status;
        let Some(queue) = self.queues.get_mut(self.queue_select as usize) else {
            return false;
        };
        if register == Register::QueueReady && value == u32::from(queue.ready) {
            // Drivers take a queue down again after a reset has done so.
            return true;
        }
        if status & (FEATURES_OK | DRIVER_OK | NEEDS_RESET | FAILED) != FEATURES_OK {
            return false;
        }
        if register == Register::QueueReady {
            if value <= 1 {
                queue.ready = value == 1;
            }
            return value <= 1;
        }
        if queue.ready {
            return false;
        }
        match register {
            Register::QueueSize => queue.size = value,
            Register::QueueDescriptorsLow => set_low(&mut queue.descriptors, value),
            Register::QueueDescriptorsHigh => set_high(&mut queue.descriptors, value),
            Register::QueueAvailableLow => set_low(&mut queue.available, value),
            Register::QueueAvailableHigh => set_high(&mut queue.available, value),
            Register::QueueUsedLow => set_low(&mut queue.used, value),
            Register::QueueUsedHigh => set_high(&mut queue.used, value),
            _ => return false,
        }
        true
    }

    fn write_status(&mut self, value: u32) -> bool {
        if value == 0 {
            self.reset();
            return true;
        }
        let old = self.status;
        if value & !(DRIVER_BITS | old) != 0 || old & !value & !NEEDS_RESET != 0 {
            // Unknown bits, or bits cleared other than by a reset.
            return false;
        }
        let new = value & !old;
        if new & FAILED != 0 {
            self.status |= FAILED;
            self.stop_queues();
            return true;
        }
        if old & (FAILED | NEEDS_RESET) != 0 {
            return new == 0;
        }
        self.status |= new & ACKNOWLEDGE;
        let mut accepted = true;
        for (bit, after) in [(DRIVER, ACKNOWLEDGE), (FEATURES_OK, DRIVER)] {
            if new & bit != 0 {
                let granted =
                    self.status & after != 0 && (bit != FEATURES_OK || self.features_acceptable());
                self.status |= if granted { bit } else { 0 };
                accepted &= granted;
            }
        }
        if new & DRIVER_OK != 0 {
            // The driver must have seen FEATURES_OK granted before it goes on.
            if old & FEATURES_OK == 0 {
                return false;
            }
            self.status |= DRIVER_OK;
            self.start_queues();
        }
        accepted
    }

    fn features_acceptable(&self) -> bool {
        let features = self.driver_features;
        features & !self.offered_features() == 0 && features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn start_queues(&mut self) {
        let fresh = |registers: &QueueRegisters| registers.ready.then(QueueState::default);
        let states: Vec<_> = self.queues.iter().map(fresh).collect();
        if let Err((index, error)) = self.start_queues_at(&states) {
            self.count(Fault::Activation);
            self.fail(format_args!("queue {index}"), &error);
        }
    }

    /// Starts the queues that have a state, where they stand.
    fn start_queues_at(&mut self, states: &[Option<QueueState>]) -> Result<(), (u16, QueueError)> {
        let mut started = Vec::with_capacity(states.len());
        let kinds = self.queues.iter().zip(&self.traits.queue_sizes);
        for ((index, state), (registers, &max_size)) in (0_u16..).zip(states).zip(kinds) {
            if state.is_some() {
                let interrupt = QueueInterrupt::new(self.interrupt.clone(), index);
                let (features, memory) = (self.driver_features, self.memory.clone());
                let queue =
                    Virtqueue::new(registers, max_size, features, memory, interrupt, *state);
                started.push((index, queue.map_err(|error| (index, error))?));
            }
        }
        // All or none: a device never runs on half of what its driver meant.
        for (index, queue) in started {
            self.device.start_queue(index, queue, self.driver_features);
            // Requests and edges of the device's own descriptors that came before this are forgotten: it looks by itself.
            self.ring(index);
        }
        Ok(())
    }

    fn stop_queues(&mut self) {
        for (index, _) in (0_u16..).zip(&self.queues) {
            self.device.stop_queue(index);
        }
    }

    /// Gives up on the driver until it resets the device (virtio 1.2 §2.1.2).
    fn fail(&mut self, what: std::fmt::Arguments<'_>, error: &QueueError) {
        self.faults.warn(format_args!(
            "Virtio device {} needs a reset, its driver broke {what}: {error}",
            self.traits.device_id
        ));
        self.stop_queues();
        self.status |= NEEDS_RESET;
        self.interrupt.signal_config();
    }

    fn reset(&mut self) {
        self.stop_queues();
        self.device.reset();
        self.reset_registers();
    }

    fn reset_registers(&mut self) {
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        let registers = |&size: &u16| QueueRegisters {
            size: size.into(),
            ..Default::default()
        };
        self.queues = self.traits.queue_sizes.iter().map(registers).collect();
    }
}

fn feature_page(features: u64, page: u32) -> u32 {
    match page {
        0 => low(features),
        1 => high(features),
        _ => 0,
    }
}

fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn high(value: u64) -> u32 {
    low(value >> 32)
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn set_low(target: &mut u64, value: u32) {
    *target = join(value, high(*target));
}

fn set_high(target: &mut u64, value: u32) {
    *target = join(low(*target), value);
}

#[cfg(test)]
mod tests;
