//! The bus: functions by device number, reached by ECAM, by the ports of old, and by their memory.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use thiserror::Error;

use super::PciFunction;
use super::config_space::Bar;
use crate::bus::BusDevice;

/// Device numbers on one bus.
pub const SLOTS: usize = 32;
/// Bytes of ECAM (PCI Express 4.0 §7.2.2) for one bus: 4 KiB for each of 8 functions of each device.
pub const ECAM_LEN: u64 = 1 << 20;
/// First port of configuration mechanism 1 (PCI Local Bus 3.0 §3.2.2.3.2).
pub const CONFIG_PORTS: u64 = 0xcf8;
/// Number of those ports: address, then data.
pub const CONFIG_PORTS_LEN: u64 = 8;

/// Bytes of configuration space of one function.
const FUNCTION_LEN: u64 = 0x1000;
/// Of those, what configuration mechanism 1 reaches is this mask of the address port.
const PORT_REGISTER: u32 = 0xfc;
/// Address port: the data port is configuration space.
const PORT_ENABLE: u32 = 1 << 31;

/// Why a function cannot be put on the bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SlotError {
    /// There are 32 device numbers.
    #[error("PCI device number {slot} does not exist, permitted are 0 to 31")]
    OutOfRange {
        /// The number asked for.
        slot: usize,
    },
    /// Another function is there.
    #[error("PCI device number {slot} is taken")]
    Taken {
        /// The number asked for.
        slot: usize,
    },
}

struct Slot {
    function: Arc<dyn PciFunction>,
    /// What it answers for, since its last configuration write.
    memory: Option<Bar>,
}

/// Bus 0. Functions come and go while vCPUs use it.
///
/// The lock is held to find a function, not while the function works. It is not on the way of data: notifications and
/// interrupts go by eventfds through KVM, and what comes here has left the guest, which takes a hundred times as long as
/// an uncontended read lock.
pub struct PciBus {
    slots: RwLock<[Option<Slot>; SLOTS]>,
    /// What was last written to the address port.
    port_address: AtomicU32,
}

impl PciBus {
    /// A bus without functions.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            slots: RwLock::new([const { None }; SLOTS]),
            port_address: AtomicU32::new(0),
        })
    }

    /// Puts `function` at device number `slot`. The guest finds it when it looks.
    pub fn insert(&self, slot: usize, function: Arc<dyn PciFunction>) -> Result<(), SlotError> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let place = slots.get_mut(slot).ok_or(SlotError::OutOfRange { slot })?;
        if place.is_some() {
            return Err(SlotError::Taken { slot });
        }
        let memory = function.memory();
        *place = Some(Slot { function, memory });
        Ok(())
    }

    /// Takes the function at device number `slot` off the bus: from now on the guest finds nothing there, and none of its
    /// accesses reaches the function but those that have begun already. Each of these holds a clone of what is returned.
    pub fn remove(&self, slot: usize) -> Option<Arc<dyn PciFunction>> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        Some(slots.get_mut(slot)?.take()?.function)
    }

    /// All functions by their device numbers.
    pub fn functions(&self) -> Vec<(usize, Arc<dyn PciFunction>)> {
        let slots = self.slots();
        let taken = slots.iter().enumerate();
        taken
            .filter_map(|(number, slot)| Some((number, slot.as_ref()?.function.clone())))
            .collect()
    }

    /// What was last written to the address port, which is all that the bus itself remembers.
    pub fn port_address(&self) -> u32 {
        self.port_address.load(Ordering::Relaxed)
    }

    /// Goes on with `address` at the address port.
    pub fn set_port_address(&self, address: u32) {
        self.port_address.store(address, Ordering::Relaxed);
    }

    /// The lowest device number at which there is no function.
    pub fn free(&self) -> Option<usize> {
        self.slots().iter().position(Option::is_none)
    }

    /// ECAM, to be put on the memory bus for [`ECAM_LEN`] bytes.
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ecam(self.clone()))
    }

    /// Configuration mechanism 1, to be put on the port bus at [`CONFIG_PORTS`].
    pub fn config_ports(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(ConfigPorts(self.clone()))
    }

    /// The functions' memory, to be put on the memory bus at `base`.
    pub fn window(self: &Arc<Self>, base: u64) -> Arc<dyn BusDevice> {
        Arc::new(Window {
            bus: self.clone(),
            base,
        })
    }

    fn slots(&self) -> RwLockReadGuard<'_, [Option<Slot>; SLOTS]> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The function at `device`.`function`: each device has function 0 alone.
    fn function(&self, device: u64, function: u64) -> Option<Arc<dyn PciFunction>> {
        let slot = usize::try_from(device).ok()?;
        if function != 0 {
            return None;
        }
        let slots = self.slots();
        Some(slots.get(slot)?.as_ref()?.function.clone())
    }

    fn read_config(&self, device: u64, function: u64, register: u16, data: &mut [u8]) {
        if let Some(function) = self.function(device, function) {
            function.read_config(register, data);
        }
    }

    fn write_config(&self, device: u64, function: u64, register: u16, data: &[u8]) {
        let Some(function) = self.function(device, function) else {
            return;
        };
        function.write_config(register, data);
        let slot = usize::try_from(device).unwrap_or(SLOTS);
        let stale = |slots: &[Option<Slot>; SLOTS]| {
            let slot = slots.get(slot).and_then(Option::as_ref);
            slot.is_some_and(|slot| slot.memory != slot.function.memory())
        };
        // Few writes move a function's memory; only those wait for accesses to others.
        if !stale(&self.slots()) {
            return;
        }
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(slot)) = slots.get_mut(slot) {
            // Asked again: another vCPU may have moved it since.
            slot.memory = slot.function.memory();
        }
    }

    /// Who answers at `address`, with the offset there and how many of `len` bytes. Where a guest has put two functions
    /// at one address, it is the first.
    fn at(&self, address: u64, len: usize) -> Option<(Arc<dyn PciFunction>, u64, usize)> {
        let slots = self.slots();
        slots.iter().flatten().find_map(|slot| {
            let memory = slot.memory?;
            let offset = memory.offset_of(address)?;
            let room = usize::try_from(memory.len - offset).unwrap_or(usize::MAX);
            Some((slot.function.clone(), offset, len.min(room)))
        })
    }
}

/// Configuration space as memory.
struct Ecam(Arc<PciBus>);

/// Device, function and register of an offset, and how many of `len` bytes are in that function.
fn ecam_address(offset: u64, len: usize) -> (u64, u64, u16, usize) {
    let register = offset % FUNCTION_LEN;
    let room = usize::try_from(FUNCTION_LEN - register).unwrap_or(usize::MAX);
    let register = u16::try_from(register).unwrap_or(0);
    (offset >> 15, offset >> 12 & 7, register, len.min(room))
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (device, function, register, len) = ecam_address(offset, data.len());
        self.0
            .read_config(device, function, register, &mut data[..len]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (device, function, register, len) = ecam_address(offset, data.len());
        self.0
            .write_config(device, function, register, &data[..len]);
    }
}

/// Configuration space behind an address port and a data port.
struct ConfigPorts(Arc<PciBus>);

impl ConfigPorts {
    /// Device, function and register that the data port's byte `offset` stands for.
    fn target(&self, offset: u64) -> Option<(u64, u64, u16)> {
        let address = self.0.port_address.load(Ordering::Relaxed);
        let bus = address >> 16 & 0xff;
        let byte = u16::try_from(offset.checked_sub(4)?).ok()?;
        if address & PORT_ENABLE == 0 || bus != 0 {
            return None;
        }
        let register = u16::try_from(address & PORT_REGISTER).ok()? + byte;
        Some((
            u64::from(address >> 11 & 0x1f),
            u64::from(address >> 8 & 7),
            register,
        ))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (0, Ok(address)) = (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            *address = self.0.port_address.load(Ordering::Relaxed).to_le_bytes();
        } else if let Some((device, function, register)) = self.target(offset) {
            self.0.read_config(device, function, register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Ok(address)) = (offset, <[u8; 4]>::try_from(data)) {
            let address = u32::from_le_bytes(address);
            self.0.port_address.store(address, Ordering::Relaxed);
        } else if let Some((device, function, register)) = self.target(offset) {
            self.0.write_config(device, function, register, data);
        }
    }
}

/// A part of the address space in which functions have their memory.
struct Window {
    bus: Arc<PciBus>,
    base: u64,
}

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = self.base.wrapping_add(offset);
        if let Some((function, offset, len)) = self.bus.at(address, data.len()) {
            function.read_memory(offset, &mut data[..len]);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let address = self.base.wrapping_add(offset);
        if let Some((function, offset, len)) = self.bus.at(address, data.len()) {
            function.write_memory(offset, &data[..len]);
        }
    }
}

#[cfg(test)]
mod tests;
