//! The MMIO transport by the reference model (virtio 1.2 §4.2.2).

use std::ops::Range;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::model::{CONFIG_CHANGED, DEVICE_ID, Model, QUEUES};
use super::{World, swept};
use crate::bus::Bus;
use crate::memory::GuestMemory;
use crate::virtio::mmio::{LEN, MmioTransport};
use crate::virtio::state::{Register, SharedState};

/// Where the device is on the bus.
const BASE: u64 = 0xd000_1000;

/// Offset, register, readable, writable.
const REGISTERS: [(u64, Register, bool, bool); 16] = [
    (0x010, Register::DeviceFeatures, true, false),
    (0x014, Register::DeviceFeaturesSelect, false, true),
    (0x020, Register::DriverFeatures, false, true),
    (0x024, Register::DriverFeaturesSelect, false, true),
    (0x030, Register::QueueSelect, false, true),
    (0x034, Register::QueueSizeMax, true, false),
    (0x038, Register::QueueSize, false, true),
    (0x044, Register::QueueReady, true, true),
    (0x070, Register::Status, true, true),
    (0x080, Register::QueueDescriptorsLow, false, true),
    (0x084, Register::QueueDescriptorsHigh, false, true),
    (0x090, Register::QueueAvailableLow, false, true),
    (0x094, Register::QueueAvailableHigh, false, true),
    (0x0a0, Register::QueueUsedLow, false, true),
    (0x0a4, Register::QueueUsedHigh, false, true),
    (0x0fc, Register::ConfigGeneration, true, false),
];

/// The device on its bus, and what it should be.
pub struct Mmio {
    bus: Bus,
    state: SharedState,
    memory: Arc<GuestMemory>,
    line: EventFd,
}

/// What the transport itself remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// Interrupt status.
    reasons: u32,
    /// The model's alarms that are in it.
    alarms: u32,
    /// Edges of the line.
    edges: u32,
}

impl World for Mmio {
    type Transport = Transport;

    fn new() -> Self {
        let (device, memory) = swept();
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupt = Arc::new(line.try_clone().unwrap());
        let transport = MmioTransport::new(device, memory.clone(), interrupt).unwrap();
        let state = transport.state().clone();
        let mut bus = Bus::new();
        bus.insert(BASE, LEN, Arc::new(transport)).unwrap();
        Self {
            bus,
            state,
            memory,
            line,
        }
    }

    fn name() -> &'static str {
        "MMIO"
    }

    fn state(&self) -> &SharedState {
        &self.state
    }

    fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    fn bus(&self) -> &Bus {
        &self.bus
    }

    fn base() -> u64 {
        BASE
    }

    fn len() -> u64 {
        LEN
    }

    fn has_registers(offset: u64) -> bool {
        offset < 0x110
    }

    fn place(register: Register) -> (u64, usize) {
        let found = REGISTERS.iter().find(|(_, other, ..)| *other == register);
        (found.unwrap().0, 4)
    }

    fn notification(queue: u16) -> (u64, Vec<u8>) {
        (0x050, u32::from(queue).to_le_bytes().to_vec())
    }

    fn read(model: &mut Model, transport: &mut Transport, offset: u64, data: &mut [u8]) {
        if offset >= 0x100 {
            return model.read_config(offset - 0x100, data);
        }
        data.fill(0);
        if data.len() != 4 {
            return;
        }
        let value = match offset {
            0x000 => 0x7472_6976,
            0x004 => 2,
            0x008 => DEVICE_ID,
            0x00c => u32::from_le_bytes(*b"drma"),
            0x060 => transport.reasons,
            0x0b0 | 0x0b4 | 0x0b8 | 0x0bc => u32::MAX,
            _ => REGISTERS
                .iter()
                .find(|(at, _, readable, _)| *at == offset && *readable)
                .map_or(0, |(_, register, ..)| model.read(*register)),
        };
        data.copy_from_slice(&value.to_le_bytes());
    }

    fn write(model: &mut Model, transport: &mut Transport, offset: u64, data: &[u8]) {
        if offset >= 0x100 {
            model.write_config(offset - 0x100, data);
            return;
        }
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else {
            model.refuse();
            return;
        };
        let register = REGISTERS
            .iter()
            .find(|(at, _, _, writable)| *at == offset && *writable);
        match (offset, register) {
            (0x050, _) if (value as usize) < QUEUES => model.rung |= 1 << value,
            (0x064, _) => transport.reasons &= !value,
            // Selects one of no shared memory regions.
            (0x0ac, _) => {}
            (_, Some((_, register, ..))) => {
                model.write(*register, value);
                if *register == Register::Status && value == 0 {
                    transport.reasons = 0;
                }
            }
            _ => model.refuse(),
        }
    }

    fn settle(model: &Model, transport: &mut Transport) {
        if model.alarms != transport.alarms {
            transport.reasons |= CONFIG_CHANGED;
            transport.edges += model.alarms - transport.alarms;
            transport.alarms = model.alarms;
        }
    }

    fn arm(&self, _transport: &mut Transport) {}

    fn rewind(&self) {
        self.bus.write(BASE + 0x070, &[0; 4]);
        let _ = self.line.read();
    }

    fn reached(offset: i64, width: usize) -> Range<usize> {
        // The bus cuts an access at the ends of a range.
        let (start, end) = (offset, offset + i64::try_from(width).unwrap());
        let cut = |at: i64| usize::try_from((at - start).max(0)).unwrap();
        let len = i64::try_from(LEN).unwrap();
        cut(start.max(0).min(end))..cut(end.min(len).max(start))
    }

    fn check(&self, transport: &mut Transport) {
        let mut reasons = [0; 4];
        self.bus.read(BASE + 0x060, &mut reasons);
        assert_eq!(u32::from_le_bytes(reasons), transport.reasons, "reasons");
        let edges = u32::try_from(self.line.read().unwrap_or(0)).unwrap();
        assert_eq!(edges, std::mem::take(&mut transport.edges), "edges");
    }
}
