//! The driver's side of the MMIO transport (virtio 1.2 §4.2).

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{Plugged, Registers};
use crate::bus::BusDevice;
use crate::memory::GuestMemory;
use crate::virtio::device::VirtioDevice;
use crate::virtio::mmio::{self, MmioTransport};
use crate::virtio::state::Register;

/// Puts `device` on the bus, with its interrupts on `line`.
pub(super) fn plug(
    device: Box<dyn VirtioDevice>,
    memory: Arc<GuestMemory>,
    line: &EventFd,
) -> Plugged {
    let other_end = Arc::new(line.try_clone().expect("an eventfd"));
    let transport = MmioTransport::new(device, memory, other_end).expect("eventfds for doorbells");
    let transport = Arc::new(transport);
    Plugged {
        state: transport.state().clone(),
        bus_device: transport.clone(),
        #[cfg(test)]
        transport: super::snapshot::AnyTransport::Mmio(transport.clone()),
        registers: Box::new(Mmio(transport)),
    }
}

pub(super) struct Mmio(pub(super) Arc<MmioTransport>);

impl Mmio {
    fn load(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.0.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn store(&self, offset: u64, value: u32) {
        self.0.write(offset, &value.to_le_bytes());
    }
}

/// Where §4.2.2 has the register; the transport's own table is what is tested against this one.
fn offset(register: Register) -> u64 {
    match register {
        Register::DeviceFeatures => 0x010,
        Register::DeviceFeaturesSelect => 0x014,
        Register::DriverFeatures => 0x020,
        Register::DriverFeaturesSelect => 0x024,
        Register::QueueSelect => 0x030,
        Register::QueueSizeMax => 0x034,
        Register::QueueSize => 0x038,
        Register::QueueReady => 0x044,
        Register::Status => 0x070,
        Register::QueueDescriptorsLow => 0x080,
        Register::QueueDescriptorsHigh => 0x084,
        Register::QueueAvailableLow => 0x090,
        Register::QueueAvailableHigh => 0x094,
        Register::QueueUsedLow => 0x0a0,
        Register::QueueUsedHigh => 0x0a4,
        Register::ConfigGeneration => 0x0fc,
    }
}

impl Registers for Mmio {
    fn read(&self, register: Register) -> u32 {
        self.load(offset(register))
    }

    fn write(&self, register: Register, value: u32) {
        self.store(offset(register), value);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.0.read(0x100 + offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.0.write(0x100 + offset, data);
    }

    fn ring(&self, index: u16) {
        self.store(mmio::QUEUE_NOTIFY, index.into());
    }

    fn acknowledge(&self) -> u32 {
        let reasons = self.load(0x060);
        self.store(0x064, reasons);
        reasons
    }
}
