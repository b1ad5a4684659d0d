//! The PCI transport's memory by the reference model (virtio 1.2 §4.1.4): common configuration, ISR status, device
//! configuration, MSI-X table and pending bits, notification.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::model::{CONFIG_CHANGED, Model, QUEUES};
use super::{World, swept};
use crate::bus::Bus;
use crate::memory::GuestMemory;
use crate::pci::{MsiMessage, MsiSink, PciBus, PciFunction};
use crate::virtio::pci::{BAR_LEN, VirtioPci};
use crate::virtio::state::{Register, SharedState};

/// Where the device's memory is before a driver moves it.
pub const BAR: u64 = 0xd800_0000;
/// The window of functions' memory.
pub const WINDOW: u64 = 0xd7f0_0000;
/// Bytes of the window.
pub const WINDOW_LEN: u64 = 0x20_0000;
/// Where configuration space is.
pub const ECAM: u64 = 0xe000_0000;
/// The device's configuration space in it: device number 1.
pub const FUNCTION: u64 = ECAM + (1 << 15);
/// One vector for each queue and one for the configuration.
pub const VECTORS: usize = QUEUES + 1;
const NO_VECTOR: u16 = 0xffff;
/// Message control of MSI-X.
const MSIX_CONTROL: u64 = 0x86;

/// Offset, bytes, register, writable.
const REGISTERS: [(u64, usize, Register, bool); 14] = [
    (0x00, 4, Register::DeviceFeaturesSelect, true),
    (0x04, 4, Register::DeviceFeatures, false),
    (0x08, 4, Register::DriverFeaturesSelect, true),
    (0x0c, 4, Register::DriverFeatures, true),
    (0x14, 1, Register::Status, true),
    (0x15, 1, Register::ConfigGeneration, false),
    (0x16, 2, Register::QueueSelect, true),
    (0x18, 2, Register::QueueSize, true),
    (0x20, 4, Register::QueueDescriptorsLow, true),
    (0x24, 4, Register::QueueDescriptorsHigh, true),
    (0x28, 4, Register::QueueAvailableLow, true),
    (0x2c, 4, Register::QueueAvailableHigh, true),
    (0x30, 4, Register::QueueUsedLow, true),
    (0x34, 4, Register::QueueUsedHigh, true),
];
const CONFIG_VECTOR: u64 = 0x10;
const QUEUE_COUNT: u64 = 0x12;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;

/// Delivers to nobody, and counts.
#[derive(Default)]
pub struct Sink {
    routes: Mutex<[Option<MsiMessage>; VECTORS]>,
    sent: AtomicU32,
}

impl MsiSink for Sink {
    fn route(&self, vector: u16, message: MsiMessage) -> io::Result<()> {
        self.routes.lock().unwrap()[usize::from(vector)] = Some(message);
        Ok(())
    }

    fn send(&self, vector: u16) -> io::Result<()> {
        assert!(
            self.routes.lock().unwrap()[usize::from(vector)].is_some(),
            "vector {vector} is routed before it is sent"
        );
        self.sent.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// The device on its bus.
pub struct Pci {
    bus: Bus,
    /// The ports of configuration mechanism 1.
    pub ports: Bus,
    state: SharedState,
    memory: Arc<GuestMemory>,
    function: Arc<VirtioPci>,
    sink: Arc<Sink>,
}

impl Pci {
    /// The function itself.
    pub fn function(&self) -> &VirtioPci {
        &self.function
    }
}

/// One entry of the MSI-X table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    words: [u32; 4],
    pending: bool,
}

/// What the transport itself remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    isr: u8,
    config_vector: u16,
    vectors: [u16; QUEUES],
    entries: [Entry; VECTORS],
    /// MSI-X message control: enable and function mask.
    pub control: u16,
    alarms: u32,
    sent: u32,
}

impl Default for Transport {
    fn default() -> Self {
        let entry = Entry {
            words: [0, 0, 0, 1],
            pending: false,
        };
        Self {
            isr: 0,
            config_vector: NO_VECTOR,
            vectors: [NO_VECTOR; QUEUES],
            entries: [entry; VECTORS],
            control: 0,
            alarms: 0,
            sent: 0,
        }
    }
}

impl Transport {
    /// Message control is what the driver has written.
    pub fn set_control(&mut self, control: u16) {
        if self.control == control {
            return;
        }
        self.control = control;
        if control & 0x8000 == 0 {
            for entry in &mut self.entries {
                entry.pending = false;
            }
        }
        self.deliver();
    }

    /// Sends what was waiting and need not any more.
    fn deliver(&mut self) {
        for entry in &mut self.entries {
            let open = self.control & 0xc000 == 0x8000 && entry.words[3] & 1 == 0;
            if open && entry.pending {
                entry.pending = false;
                self.sent += 1;
            }
        }
    }

    fn signal(&mut self, vector: u16) {
        if let Some(entry) = self.entries.get_mut(usize::from(vector)) {
            entry.pending |= self.control & 0x8000 != 0;
        }
        self.deliver();
    }

    fn read_table(&self, offset: u64, data: &mut [u8]) {
        if !table_access(offset, data.len()) {
            return;
        }
        for (chunk, at) in data.chunks_exact_mut(4).zip([offset, offset + 4]) {
            let (entry, word) = slot(at);
            let entry = self.entries.get(entry);
            let value = entry.map_or(0, |entry| entry.words[word]);
            chunk.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !table_access(offset, data.len()) {
            return;
        }
        for (chunk, at) in data.chunks_exact(4).zip([offset, offset + 4]) {
            let (entry, word) = slot(at);
            // Addresses are aligned to 4; of vector control only the mask exists.
            let kept = [!3, u32::MAX, u32::MAX, 1][word];
            if let Some(entry) = self.entries.get_mut(entry) {
                entry.words[word] = u32::from_le_bytes(chunk.try_into().unwrap()) & kept;
            }
        }
        self.deliver();
    }

    fn read_pending(&self, offset: u64, data: &mut [u8]) {
        if !table_access(offset, data.len()) {
            return;
        }
        for (byte, at) in data.iter_mut().zip(offset * 8..) {
            if at == 0 {
                for (bit, entry) in self.entries.iter().enumerate() {
                    *byte |= u8::from(entry.pending) << bit;
                }
            }
        }
    }
}

fn table_access(offset: u64, len: usize) -> bool {
    (len == 4 || len == 8) && offset.is_multiple_of(len as u64)
}

/// Entry of the table and word in it.
fn slot(at: u64) -> (usize, usize) {
    let word = usize::try_from(at / 4).unwrap();
    (word / 4, word % 4)
}

fn is_wide(offset: u64, len: usize) -> bool {
    len == 8 && (offset == 0x20 || offset == 0x28 || offset == 0x30)
}

fn read_common(model: &Model, transport: &Transport, offset: u64, data: &mut [u8]) {
    if is_wide(offset, data.len()) {
        read_common(model, transport, offset, &mut data[..4]);
        return read_common(model, transport, offset + 4, &mut data[4..]);
    }
    let selected = transport.vectors.get(model.selected as usize);
    let short = match offset {
        CONFIG_VECTOR => Some(transport.config_vector),
        QUEUE_COUNT => Some(u16::try_from(QUEUES).unwrap()),
        QUEUE_VECTOR => Some(selected.copied().unwrap_or(NO_VECTOR)),
        QUEUE_ENABLE => Some(u16::from(model.read(Register::QueueReady) == 1)),
        QUEUE_NOTIFY_OFFSET => Some(selected.map_or(0, |_| u16::try_from(model.selected).unwrap())),
        _ => None,
    };
    let found = REGISTERS.iter().find(|(at, ..)| *at == offset);
    match (short, found) {
        (Some(value), _) if data.len() == 2 => data.copy_from_slice(&value.to_le_bytes()),
        (_, Some((_, width, register, _))) if data.len() == *width => {
            data.copy_from_slice(&model.read(*register).to_le_bytes()[..*width]);
        }
        _ => {}
    }
}

fn write_common(model: &mut Model, transport: &mut Transport, offset: u64, data: &[u8]) {
    if is_wide(offset, data.len()) {
        write_common(model, transport, offset, &data[..4]);
        return write_common(model, transport, offset + 4, &data[4..]);
    }
    if let (Ok(value), CONFIG_VECTOR | QUEUE_VECTOR | QUEUE_ENABLE) =
        (data.try_into().map(u16::from_le_bytes), offset)
    {
        // A vector that does not exist reads back as none (§4.1.5.1.2.1).
        let vector = if usize::from(value) < VECTORS {
            value
        } else {
            NO_VECTOR
        };
        match offset {
            CONFIG_VECTOR => transport.config_vector = vector,
            QUEUE_VECTOR => {
                if let Some(place) = transport.vectors.get_mut(model.selected as usize) {
                    *place = vector;
                }
            }
            // Here a queue is never taken down (§4.1.4.3.2).
            _ if value == 1 => model.write(Register::QueueReady, 1),
            _ => model.refuse(),
        }
        return;
    }
    let found = REGISTERS
        .iter()
        .find(|(at, width, _, writable)| *at == offset && *width == data.len() && *writable);
    let Some((_, width, register, _)) = found else {
        return model.refuse();
    };
    let mut value = [0; 4];
    value[..*width].copy_from_slice(data);
    let value = u32::from_le_bytes(value);
    model.write(*register, value);
    if *register == Register::Status && value == 0 {
        transport.isr = 0;
        transport.config_vector = NO_VECTOR;
        transport.vectors = [NO_VECTOR; QUEUES];
    }
}

impl World for Pci {
    type Transport = Transport;

    fn new() -> Self {
        let (device, memory) = swept();
        let sink = Arc::<Sink>::default();
        let function = VirtioPci::new(device, memory.clone(), BAR, sink.clone(), None).unwrap();
        let function = Arc::new(function);
        let state = function.state().clone();
        let pci = PciBus::new();
        pci.insert(1, function.clone()).unwrap();
        let mut bus = Bus::new();
        bus.insert(WINDOW, WINDOW_LEN, pci.window(WINDOW)).unwrap();
        bus.insert(ECAM, 1 << 20, pci.ecam()).unwrap();
        let mut ports = Bus::new();
        ports.insert(0xcf8, 8, pci.config_ports()).unwrap();
        // Memory decoding on.
        bus.write(FUNCTION + 4, &[2]);
        Self {
            bus,
            ports,
            state,
            memory,
            function,
            sink,
        }
    }

    fn name() -> &'static str {
        "PCI"
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
        BAR
    }

    fn len() -> u64 {
        BAR_LEN
    }

    fn has_registers(offset: u64) -> bool {
        let within = |start: u64, len: u64| (start..start + len).contains(&offset);
        within(0, 0x40)
            || within(0x1000, 4)
            || within(0x2000, 0x10)
            || within(0x3000, 16 * VECTORS as u64 + 16)
            || within(0x4000, 0x10)
            || within(0x6000, 4 * QUEUES as u64 + 8)
    }

    fn place(register: Register) -> (u64, usize) {
        if register == Register::QueueReady {
            return (QUEUE_ENABLE, 2);
        }
        let found = REGISTERS.iter().find(|(_, _, other, _)| *other == register);
        let (offset, width, ..) = *found.unwrap();
        (offset, width)
    }

    fn notification(queue: u16) -> (u64, Vec<u8>) {
        (0x6000 + 4 * u64::from(queue), vec![0])
    }

    fn read(model: &mut Model, transport: &mut Transport, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            0..0x1000 => read_common(model, transport, offset, data),
            0x1000 => data[0] = std::mem::take(&mut transport.isr),
            0x2000..0x3000 => model.read_config(offset - 0x2000, data),
            0x3000..0x4000 => transport.read_table(offset - 0x3000, data),
            0x4000..0x5000 => transport.read_pending(offset - 0x4000, data),
            _ => {}
        }
    }

    fn write(model: &mut Model, transport: &mut Transport, offset: u64, data: &[u8]) {
        match offset {
            0..0x1000 => write_common(model, transport, offset, data),
            0x2000..0x3000 => model.write_config(offset - 0x2000, data),
            0x3000..0x4000 => transport.write_table(offset - 0x3000, data),
            0x6000.. => {
                let index = usize::try_from((offset - 0x6000) / 4).unwrap();
                if offset.is_multiple_of(4) && index < QUEUES {
                    model.rung |= 1 << index;
                    return;
                }
                model.refuse();
            }
            _ => model.refuse(),
        }
    }

    fn settle(model: &Model, transport: &mut Transport) {
        if model.alarms != transport.alarms {
            transport.isr |= u8::try_from(CONFIG_CHANGED).unwrap();
            transport.alarms = model.alarms;
            transport.signal(transport.config_vector);
        }
    }

    fn arm(&self, transport: &mut Transport) {
        for vector in 0..VECTORS as u64 {
            for (word, value) in [(0, 0xfee0_0000_u32), (8, 0x40), (12, 0)] {
                let offset = 0x3000 + 16 * vector + word;
                self.function.write_memory(offset, &value.to_le_bytes());
                transport.write_table(offset - 0x3000, &value.to_le_bytes());
            }
        }
        self.bus.write(FUNCTION + MSIX_CONTROL, &[0, 0x80]);
        transport.set_control(0x8000);
        self.function.write_memory(CONFIG_VECTOR, &[0, 0]);
        transport.config_vector = 0;
    }

    fn rewind(&self) {
        self.bus.write(FUNCTION + MSIX_CONTROL, &[0, 0]);
        for vector in 0..VECTORS as u64 {
            for (word, value) in [(0, 0_u64), (8, 1 << 32)] {
                let at = 0x3000 + 16 * vector + word;
                self.function.write_memory(at, &value.to_le_bytes());
            }
        }
        self.function.write_memory(0x14, &[0]);
        self.sink.sent.store(0, Ordering::SeqCst);
    }

    fn reached(offset: i64, width: usize) -> Range<usize> {
        // A function answers for accesses that begin in its memory, as far as that goes.
        let len = i64::try_from(BAR_LEN).unwrap();
        let room = usize::try_from((len - offset).max(0)).unwrap();
        if offset < 0 { 0..0 } else { 0..width.min(room) }
    }

    fn check(&self, transport: &mut Transport) {
        let sent = self.sink.sent.swap(0, Ordering::SeqCst);
        assert_eq!(sent, std::mem::take(&mut transport.sent), "messages sent");
        // Not by ISR status: reading it would clear it.
        let mut table = [0; 16 * VECTORS];
        for at in (0..table.len()).step_by(8) {
            let address = 0x3000 + at as u64;
            self.function.read_memory(address, &mut table[at..at + 8]);
            let mut expected = [0; 8];
            transport.read_table(at as u64, &mut expected);
            assert_eq!(&table[at..at + 8], expected, "MSI-X table at {at}");
        }
        let (mut pending, mut expected) = ([0; 8], [0; 8]);
        self.function.read_memory(0x4000, &mut pending);
        transport.read_pending(0, &mut expected);
        assert_eq!(pending, expected, "pending bits");
        let mut vector = [0; 2];
        self.function.read_memory(CONFIG_VECTOR, &mut vector);
        assert_eq!(u16::from_le_bytes(vector), transport.config_vector);
    }
}
