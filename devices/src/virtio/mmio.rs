//! Virtio over MMIO (virtio 1.2 §4.2): a page of registers and one interrupt line.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::device::VirtioDevice;
use super::interrupt::VirtioInterrupt;
use super::saved::{RestoreError, SaveError, VirtioSaved};
use super::state::{Register, SharedState, VirtioState};
use super::worker::VirtioWorker;
use crate::bus::BusDevice;
use crate::interrupt::Interrupt;
use crate::memory::GuestMemory;
use crate::throttle::Throttle;

/// Bytes of the range of one device.
pub const LEN: u64 = 0x1000;
/// Offset of the register by which a driver notifies a queue: its index, as 32 bits. KVM can watch it
/// by an ioeventfd with that index as its data match.
pub const QUEUE_NOTIFY: u64 = 0x050;

const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const SHM_SELECT: u64 = 0x0ac;
const SHM_LEN_LOW: u64 = 0x0b0;
const SHM_BASE_HIGH: u64 = 0x0bc;
const CONFIG: u64 = 0x100;

/// "virt"
const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
/// The version of the interface that virtio 1.x calls 2.
const VERSION_VALUE: u32 = 2;
/// Who made this device: "drma". Drivers do not care.
const VENDOR_VALUE: u32 = u32::from_le_bytes(*b"drma");

/// Interrupt status: used buffers wait.
const USED_BUFFERS: u32 = 1 << 0;
/// Interrupt status: the configuration or the device's status has changed.
const CONFIG_CHANGED: u32 = 1 << 1;

/// The one interrupt line of an MMIO device and the register that says why it was raised.
///
/// Has no lock: used by vCPUs in their interrupt handler while the device works.
struct MmioInterrupt {
    status: AtomicU32,
    line: Arc<dyn Interrupt>,
    failures: Mutex<Throttle>,
}

impl MmioInterrupt {
    fn signal(&self, reason: u32) {
        // Before the edge, and after the used ring: the handler reads the reason first.
        self.status.fetch_or(reason, Ordering::SeqCst);
        if let Err(error) = self.line.trigger() {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.warn(format_args!("Virtio interrupt cannot be raised: {error}"));
        }
    }
}

impl VirtioInterrupt for MmioInterrupt {
    fn signal_queue(&self, _index: u16) {
        self.signal(USED_BUFFERS);
    }

    fn signal_config(&self) {
        self.signal(CONFIG_CHANGED);
    }
}

/// A device and this transport's own registers, as a value.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct MmioSaved {
    /// Interrupt status (§4.2.2).
    pub interrupt_status: u32,
    /// The device.
    pub virtio: VirtioSaved,
}

/// The registers of one virtio device on the MMIO bus.
pub struct MmioTransport {
    state: SharedState,
    interrupt: Arc<MmioInterrupt>,
    doorbells: Arc<[EventFd]>,
    device_id: u32,
}

impl MmioTransport {
    /// A transport for `device`, whose queues lie in `memory` and which interrupts by `line` (edge).
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        line: Arc<dyn Interrupt>,
    ) -> io::Result<Self> {
        let interrupt = Arc::new(MmioInterrupt {
            status: AtomicU32::new(0),
            line,
            failures: Mutex::default(),
        });
        let state = VirtioState::new(device, memory, interrupt.clone())?;
        let device_id = state.traits().device_id;
        let doorbells = state.doorbells();
        Ok(Self {
            state: Arc::new(Mutex::new(state)),
            interrupt,
            doorbells,
            device_id,
        })
    }

    /// The subscriber that does the device's work on the thread of an event manager.
    pub fn worker(&self) -> io::Result<VirtioWorker> {
        VirtioWorker::new(self.state.clone())
    }

    /// The doorbells, one for each queue, in order. A VMM that binds each to [`QUEUE_NOTIFY`] with the
    /// queue's index spares the vCPU the way here; without that it works all the same.
    pub fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    /// The state behind the transport.
    pub fn state(&self) -> &SharedState {
        &self.state
    }

    /// All that a driver has set, here and in the device, whose lock `state` is.
    pub fn save(&self, state: &mut VirtioState) -> Result<MmioSaved, SaveError> {
        let virtio = state.save()?;
        Ok(MmioSaved {
            // Behind the device's last interrupt.
            interrupt_status: self.interrupt.status.load(Ordering::SeqCst),
            virtio,
        })
    }

    /// Goes on from `saved`. What the driver was interrupted for, and has not acknowledged, it is interrupted for again.
    pub fn restore(&self, saved: &MmioSaved) -> Result<(), RestoreError> {
        let status = saved.interrupt_status & (USED_BUFFERS | CONFIG_CHANGED);
        self.lock().restore(&saved.virtio)?;
        if status != 0 {
            self.interrupt.signal(status);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, VirtioState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            MAGIC => MAGIC_VALUE,
            VERSION => VERSION_VALUE,
            DEVICE_ID => self.device_id,
            VENDOR_ID => VENDOR_VALUE,
            INTERRUPT_STATUS => self.interrupt.status.load(Ordering::SeqCst),
            // No shared memory regions: length and base read as -1 (§4.2.2).
            SHM_LEN_LOW..=SHM_BASE_HIGH => u32::MAX,
            _ => match register(offset) {
                Some((register, Access::Read | Access::ReadWrite)) => self.lock().read(register),
                _ => 0,
            },
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            QUEUE_NOTIFY => {
                let rung = self.doorbells.get(value as usize).map(Interrupt::trigger);
                if !matches!(rung, Some(Ok(()))) {
                    self.lock()
                        .refuse(format_args!("notification of queue {value}"));
                }
            }
            INTERRUPT_ACK => {
                self.interrupt.status.fetch_and(!value, Ordering::SeqCst);
            }
            SHM_SELECT => {}
            _ => match register(offset) {
                Some((register, Access::Write | Access::ReadWrite)) => {
                    let mut state = self.lock();
                    state.write(register, value);
                    if offset == STATUS && value == 0 {
                        // Still under the lock, so no interrupt from before the reset comes after.
                        self.interrupt.status.store(0, Ordering::SeqCst);
                    }
                }
                _ => self
                    .lock()
                    .refuse(format_args!("write of {value:#x} to {offset:#x}")),
            },
        }
    }
}

enum Access {
    Read,
    Write,
    ReadWrite,
}

/// Where §4.2.2 puts the registers of the state machine.
fn register(offset: u64) -> Option<(Register, Access)> {
    Some(match offset {
        0x010 => (Register::DeviceFeatures, Access::Read),
        0x014 => (Register::DeviceFeaturesSelect, Access::Write),
        0x020 => (Register::DriverFeatures, Access::Write),
        0x024 => (Register::DriverFeaturesSelect, Access::Write),
        0x030 => (Register::QueueSelect, Access::Write),
        0x034 => (Register::QueueSizeMax, Access::Read),
        0x038 => (Register::QueueSize, Access::Write),
        0x044 => (Register::QueueReady, Access::ReadWrite),
        STATUS => (Register::Status, Access::ReadWrite),
        0x080 => (Register::QueueDescriptorsLow, Access::Write),
        0x084 => (Register::QueueDescriptorsHigh, Access::Write),
        0x090 => (Register::QueueAvailableLow, Access::Write),
        0x094 => (Register::QueueAvailableHigh, Access::Write),
        0x0a0 => (Register::QueueUsedLow, Access::Write),
        0x0a4 => (Register::QueueUsedHigh, Access::Write),
        0x0fc => (Register::ConfigGeneration, Access::Read),
        _ => return None,
    })
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            return self.lock().read_config(offset - CONFIG, data);
        }
        data.fill(0);
        // Registers are read as aligned 32 bits only (§4.2.2.2).
        if let (0, Ok(register)) = (offset % 4, <&mut [u8; 4]>::try_from(data)) {
            *register = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            return self.lock().write_config(offset - CONFIG, data);
        }
        match (offset % 4, <[u8; 4]>::try_from(data)) {
            (0, Ok(value)) => self.write_register(offset, u32::from_le_bytes(value)),
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
