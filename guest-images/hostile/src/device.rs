//! A virtio device on either transport: registers as the specification names them, without any order in their use.

use crate::hw::memory;
use crate::pci::{COMMAND_ON, Function};

/// Device status: noticed, has a driver, features agreed, in use (virtio 1.2 §2.1).
pub const ACKNOWLEDGE: u8 = 1;
pub const DRIVER: u8 = 2;
pub const DRIVER_OK: u8 = 4;
pub const FEATURES_OK: u8 = 8;
pub const NEEDS_RESET: u8 = 64;

const MMIO_FIRST: u64 = 0xd000_1000;
const MMIO_STRIDE: u64 = 0x1000;
const MMIO_DEVICES: u64 = 18;
const MMIO_MAGIC: u32 = 0x7472_6976;
const PCI_VENDOR: u16 = 0x1af4;
const PCI_SLOTS: u8 = 32;
const VENDOR_CAPABILITY: u8 = 9;
const MSIX_CAPABILITY: u8 = 0x11;

/// Where the registers are.
#[derive(Clone, Copy)]
pub enum Transport {
    /// A page of them.
    Mmio { base: u64 },
    /// In the memory region of a PCI function, which the driver can move.
    Pci(PciRegisters),
}

/// Offsets from the start of the region.
#[derive(Clone, Copy)]
pub struct PciRegisters {
    pub function: Function,
    pub base: u64,
    pub common: u64,
    pub notify: u64,
    pub notify_stride: u64,
    pub isr: u64,
    pub config: u64,
    pub msix: u8,
    pub msix_table: u64,
}

/// One virtio device.
#[derive(Clone, Copy)]
pub struct Device {
    pub transport: Transport,
    /// Virtio's number of its kind.
    pub kind: u32,
    /// Which of its kind.
    pub ordinal: u32,
}

/// All virtio devices of this machine.
pub struct Devices {
    all: [Option<Device>; 32],
}

impl Devices {
    /// Looks on both transports.
    pub fn find() -> Self {
        let mut found = Self { all: [None; 32] };
        for slot in 0..PCI_SLOTS {
            let function = Function(slot);
            if function.read16(0) == PCI_VENDOR
                && let Some(registers) = PciRegisters::of(function)
            {
                let kind = u32::from(function.read16(2)).wrapping_sub(0x1040);
                found.add(Transport::Pci(registers), kind);
            }
        }
        for index in 0..MMIO_DEVICES {
            let base = MMIO_FIRST + index * MMIO_STRIDE;
            if memory::read32(base) == MMIO_MAGIC {
                found.add(Transport::Mmio { base }, memory::read32(base + 8));
            }
        }
        found
    }

    fn add(&mut self, transport: Transport, kind: u32) {
        let same = self.iter().filter(|device| device.kind == kind);
        let ordinal = same.fold(0, |count, _| count + 1);
        let place = self.all.iter_mut().find(|place| place.is_none());
        if let Some(place) = place {
            *place = Some(Device {
                transport,
                kind,
                ordinal,
            });
        }
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Device> {
        self.all.iter().flatten()
    }
}

impl PciRegisters {
    /// Finds them by the function's capabilities, and lets it answer and master the bus.
    fn of(function: Function) -> Option<Self> {
        let structure = |kind: u8| {
            let at = function.capability(|at| {
                function.read8(at) == VENDOR_CAPABILITY && function.read8(at + 3) == kind
            })?;
            Some((at, u64::from(function.read32(at + 8))))
        };
        function.write16(4, COMMAND_ON);
        let (notify_at, notify) = structure(2)?;
        let msix = function.capability(|at| function.read8(at) == MSIX_CAPABILITY)?;
        Some(Self {
            function,
            base: function.bar(),
            common: structure(1)?.1,
            notify,
            notify_stride: u64::from(function.read32(notify_at + 16)),
            isr: structure(3)?.1,
            // Not every kind of device has a configuration.
            config: structure(4).map_or(0x2000, |(_, offset)| offset),
            msix,
            msix_table: u64::from(function.read32(msix + 4) & !7),
        })
    }
}

impl Device {
    /// What its kind is called.
    pub fn name(&self) -> &'static str {
        match self.kind {
            1 => "net",
            2 => "block",
            3 => "console",
            4 => "rng",
            5 => "balloon",
            19 => "vsock",
            26 => "fs",
            27 => "pmem",
            _ => "unknown",
        }
    }

    /// What its transport is called.
    pub fn transport_name(&self) -> &'static str {
        match self.transport {
            Transport::Mmio { .. } => "mmio",
            Transport::Pci(_) => "pci",
        }
    }

    /// Whether it is the same device.
    pub fn is(&self, other: &Self) -> bool {
        self.kind == other.kind && self.ordinal == other.ordinal
    }

    /// Where its registers start.
    pub fn base(&self) -> u64 {
        match self.transport {
            Transport::Mmio { base } => base,
            Transport::Pci(pci) => pci.base,
        }
    }

    /// Where its configuration is.
    pub fn config(&self) -> u64 {
        match self.transport {
            Transport::Mmio { base } => base + 0x100,
            Transport::Pci(pci) => pci.base + pci.config,
        }
    }

    /// Device status.
    pub fn status(&self) -> u8 {
        match self.transport {
            Transport::Mmio { base } => memory::read32(base + 0x70).to_le_bytes()[0],
            Transport::Pci(pci) => memory::read8(pci.base + pci.common + 0x14),
        }
    }

    /// Writes the device status; 0 is a reset.
    pub fn set_status(&self, status: u8) {
        match self.transport {
            Transport::Mmio { base } => memory::write32(base + 0x70, status.into()),
            Transport::Pci(pci) => memory::write8(pci.base + pci.common + 0x14, status),
        }
    }

    /// 32 bits of what the device offers.
    pub fn offered(&self, page: u32) -> u32 {
        match self.transport {
            Transport::Mmio { base } => {
                memory::write32(base + 0x14, page);
                memory::read32(base + 0x10)
            }
            Transport::Pci(pci) => {
                memory::write32(pci.base + pci.common, page);
                memory::read32(pci.base + pci.common + 4)
            }
        }
    }

    /// Accepts 32 bits of features.
    pub fn accept(&self, page: u32, features: u32) {
        let (at, select) = match self.transport {
            Transport::Mmio { base } => (base + 0x20, base + 0x24),
            Transport::Pci(pci) => (pci.base + pci.common + 0xc, pci.base + pci.common + 8),
        };
        memory::write32(select, page);
        memory::write32(at, features);
    }

    /// Selects the queue that the next ones are about.
    pub fn select(&self, queue: u16) {
        match self.transport {
            Transport::Mmio { base } => memory::write32(base + 0x30, queue.into()),
            Transport::Pci(pci) => memory::write16(pci.base + pci.common + 0x16, queue),
        }
    }

    /// The most descriptors that the selected queue may have; 0 if there is no such queue.
    pub fn max_size(&self) -> u16 {
        match self.transport {
            Transport::Mmio { base } => {
                let [low, high, ..] = memory::read32(base + 0x34).to_le_bytes();
                u16::from_le_bytes([low, high])
            }
            Transport::Pci(pci) => memory::read16(pci.base + pci.common + 0x18),
        }
    }

    /// Sets the number of descriptors; only MMIO has room for 32 bits.
    pub fn set_size(&self, size: u32) {
        match self.transport {
            Transport::Mmio { base } => memory::write32(base + 0x38, size),
            Transport::Pci(pci) => {
                let [low, high, ..] = size.to_le_bytes();
                memory::write16(
                    pci.base + pci.common + 0x18,
                    u16::from_le_bytes([low, high]),
                );
            }
        }
    }

    /// Says where descriptor table, available ring and used ring are.
    pub fn set_addresses(&self, addresses: [u64; 3]) {
        let (base, stride) = match self.transport {
            Transport::Mmio { base } => (base + 0x80, 0x10),
            Transport::Pci(pci) => (pci.base + pci.common + 0x20, 8),
        };
        for (at, address) in (0..3).map(|part| base + part * stride).zip(addresses) {
            let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
            memory::write32(at, u32::from_le_bytes([a, b, c, d]));
            memory::write32(at + 4, u32::from_le_bytes([e, f, g, h]));
        }
    }

    /// Switches the selected queue on or off.
    pub fn enable(&self, value: u16) {
        match self.transport {
            Transport::Mmio { base } => memory::write32(base + 0x44, value.into()),
            Transport::Pci(pci) => memory::write16(pci.base + pci.common + 0x1c, value),
        }
    }

    /// Rings the doorbell of a queue, whether it exists or not.
    pub fn notify(&self, queue: u16) {
        match self.transport {
            Transport::Mmio { base } => memory::write32(base + 0x50, queue.into()),
            Transport::Pci(pci) => {
                let offset = u64::from(queue) * pci.notify_stride;
                memory::write16(pci.base + pci.notify + offset, queue);
            }
        }
    }
}
