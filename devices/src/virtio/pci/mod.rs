//! Virtio over PCI (virtio 1.2 §4.1): registers in one memory region, interrupts by MSI-X alone.
//!
//! ```text
//!   offset in BAR 0
//!   0x0000  common configuration      0x3000  MSI-X table
//!   0x1000  ISR status                0x4000  MSI-X pending bits
//!   0x2000  device configuration      0x6000  notification: 4 bytes for each queue
//! ```
//!
//! There is no interrupt pin: a driver that does not switch MSI-X on is not interrupted.

mod capabilities;
mod common;
mod interrupt;
mod save;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use self::capabilities::Capabilities;
use self::interrupt::PciInterrupt;
pub use self::save::PciSaved;
use super::device::VirtioDevice;
use super::state::{SharedState, VirtioState};
use super::worker::VirtioWorker;
use crate::interrupt::Interrupt;
use crate::memory::GuestMemory;
use crate::pci::{Bar, ConfigSpace, MsiSink, PciFunction};
use crate::throttle::Throttle;

/// Bytes of the memory region of one device.
pub const BAR_LEN: u64 = 0x8000;
/// Offset of the register by which a driver notifies queue 0. Each queue has a register of its own, and what is written
/// does not matter: KVM can watch it by an ioeventfd for any write.
pub const NOTIFY: u64 = 0x6000;
/// Bytes from one queue's notification register to the next (`notify_off_multiplier`).
pub const NOTIFY_STRIDE: u64 = 4;

const ISR: u64 = 0x1000;
const DEVICE_CONFIG: u64 = 0x2000;
const MSIX_TABLE: u64 = 0x3000;
const MSIX_PENDING: u64 = 0x4000;
/// Bytes of each of the parts but the last.
const PART_LEN: u64 = 0x1000;
/// Most queues: their vectors and that of the configuration fill the table's part.
const MAX_QUEUES: usize = 255;

/// Who rings the doorbells while the vCPU stays in the guest: KVM by its ioeventfds.
pub trait DoorbellBinder: Send + Sync {
    /// Rings `doorbell` on any write at guest address `address`.
    fn bind(&self, doorbell: &EventFd, address: u64) -> io::Result<()>;

    /// Ends what [`bind`](Self::bind) began.
    fn unbind(&self, doorbell: &EventFd, address: u64) -> io::Result<()>;
}

/// How many interrupt vectors `device` has: one for each queue and one for its configuration.
pub fn vectors(device: &dyn VirtioDevice) -> u16 {
    let queues = device.traits().queue_sizes.len().min(MAX_QUEUES);
    u16::try_from(queues).unwrap_or(u16::MAX - 1) + 1
}

/// Configuration space, and what follows from it outside of this device.
struct Config {
    space: ConfigSpace,
    /// Where the doorbells are bound.
    bound: Option<Bar>,
    failures: Throttle,
}

/// The registers of one virtio device on a PCI bus.
pub struct VirtioPci {
    state: SharedState,
    interrupt: Arc<PciInterrupt>,
    doorbells: Arc<[EventFd]>,
    config: Mutex<Config>,
    capabilities: Capabilities,
    binder: Option<Arc<dyn DoorbellBinder>>,
}

impl VirtioPci {
    /// A transport for `device`, whose queues lie in `memory` and whose registers start at guest address `base` (until a
    /// driver moves them). `sink` delivers [`vectors`] vectors. Without a `binder` notifications come by
    /// [`write_memory`](PciFunction::write_memory).
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        base: u64,
        sink: Arc<dyn MsiSink>,
        binder: Option<Arc<dyn DoorbellBinder>>,
    ) -> io::Result<Self> {
        let vectors = vectors(&*device);
        let traits = device.traits();
        let queues = traits.queue_sizes.len();
        if queues > MAX_QUEUES || traits.config_len > PART_LEN {
            let message = format!(
                "a device on PCI has at most {MAX_QUEUES} queues and {PART_LEN} bytes of configuration, \
                 device type {} has {queues} and {}",
                traits.device_id, traits.config_len
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let interrupt = Arc::new(PciInterrupt::new(vectors, queues, sink));
        let state = VirtioState::new(device, memory, interrupt.clone())?;
        let doorbells = state.doorbells();
        let bar = Bar { base, len: BAR_LEN };
        let (space, capabilities) = capabilities::space(&traits, bar, interrupt.msix());
        Ok(Self {
            state: Arc::new(Mutex::new(state)),
            interrupt,
            doorbells,
            config: Mutex::new(Config {
                space,
                bound: None,
                failures: Throttle::default(),
            }),
            capabilities,
            binder,
        })
    }

    /// The subscriber that does the device's work on the thread of an event manager.
    pub fn worker(&self) -> io::Result<VirtioWorker> {
        VirtioWorker::new(self.state.clone())
    }

    /// The state behind the transport.
    pub fn state(&self) -> &SharedState {
        &self.state
    }

    fn lock(&self) -> MutexGuard<'_, VirtioState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Binds the doorbells where the region is now.
    fn follow(&self, config: &mut Config) {
        let now = config.space.memory();
        let (Some(binder), false) = (&self.binder, now == config.bound) else {
            return;
        };
        for (index, doorbell) in (0..).zip(self.doorbells.iter()) {
            let unbound = config.bound.map_or(Ok(()), |bar| {
                binder.unbind(doorbell, notify_address(bar, index))
            });
            let bound = now.map_or(Ok(()), |bar| {
                binder.bind(doorbell, notify_address(bar, index))
            });
            if let Err(error) = unbound.and(bound) {
                // Notifications still come here, by the vCPU's thread.
                config.failures.warn(format_args!(
                    "Doorbell of queue {index} cannot follow the device's registers: {error}"
                ));
            }
        }
        config.bound = now;
    }

    /// A driver's write to the notification registers, from `offset` of them on.
    fn notify(&self, offset: u64) {
        let index = usize::try_from(offset / NOTIFY_STRIDE).unwrap_or(usize::MAX);
        let own = offset.is_multiple_of(NOTIFY_STRIDE);
        let doorbell = self.doorbells.get(index).filter(|_| own);
        if !matches!(doorbell.map(Interrupt::trigger), Some(Ok(()))) {
            self.lock()
                .refuse(format_args!("notification at {offset:#x}"));
        }
    }
}

/// A function that is gone leaves nothing behind in KVM: its doorbells are unbound here, its interrupts by its sink.
impl Drop for VirtioPci {
    fn drop(&mut self) {
        let config = self.config.get_mut();
        let config = config.unwrap_or_else(PoisonError::into_inner);
        let (Some(binder), Some(bar)) = (&self.binder, config.bound.take()) else {
            return;
        };
        for (index, doorbell) in (0..).zip(self.doorbells.iter()) {
            if let Err(error) = binder.unbind(doorbell, notify_address(bar, index)) {
                config.failures.warn(format_args!(
                    "Doorbell of queue {index} stays bound: {error}"
                ));
            }
        }
    }
}

/// Where the notification register of queue `index` is.
fn notify_address(bar: Bar, index: u64) -> u64 {
    bar.base.wrapping_add(NOTIFY + index * NOTIFY_STRIDE)
}

/// The part of the region an offset is in, and where in it.
fn part(offset: u64) -> (u64, u64) {
    let within = offset % PART_LEN;
    match offset - within {
        start if start >= NOTIFY => (NOTIFY, offset - NOTIFY),
        start => (start, within),
    }
}

impl PciFunction for VirtioPci {
    fn as_virtio(&self) -> Option<&VirtioPci> {
        Some(self)
    }

    fn read_config(&self, register: u16, data: &mut [u8]) {
        let window = self
            .capabilities
            .window(&self.config().space, register, data);
        if let Some((offset, len)) = window {
            let mut value = [0; 4];
            self.read_memory(offset, &mut value[..len]);
            self.config().space.set(self.capabilities.data(), &value);
        }
        self.config().space.read(register, data);
    }

    fn write_config(&self, register: u16, data: &[u8]) {
        let mut config = self.config();
        config.space.write(register, data);
        self.follow(&mut config);
        let control = config.space.u16_at(self.capabilities.msix_control());
        self.interrupt.msix().set_control(control);
        if let Some((offset, len)) = self.capabilities.window(&config.space, register, data) {
            let value = config.space.u32_at(self.capabilities.data_register());
            drop(config);
            self.write_memory(offset, &value.to_le_bytes()[..len]);
        }
    }

    fn memory(&self) -> Option<Bar> {
        self.config().space.memory()
    }

    fn read_memory(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let (part, offset) = part(offset);
        match part {
            0 => common::read(&self.lock(), &self.interrupt, offset, data),
            ISR if offset == 0 => {
                if let Some(first) = data.first_mut() {
                    *first = self.interrupt.take_status();
                }
            }
            DEVICE_CONFIG => self.lock().read_config(offset, data),
            MSIX_TABLE => self.interrupt.msix().read_table(offset, data),
            MSIX_PENDING => self.interrupt.msix().read_pending(offset, data),
            _ => {}
        }
    }

    fn write_memory(&self, offset: u64, data: &[u8]) {
        match part(offset) {
            (0, offset) => common::write(&mut self.lock(), &self.interrupt, offset, data),
            (DEVICE_CONFIG, offset) => self.lock().write_config(offset, data),
            (MSIX_TABLE, offset) => self.interrupt.msix().write_table(offset, data),
            (NOTIFY, offset) => self.notify(offset),
            _ => {
                let len = data.len();
                self.lock()
                    .refuse(format_args!("write of {len} bytes to {offset:#x}"));
            }
        }
    }
}

#[cfg(test)]
mod tests;
