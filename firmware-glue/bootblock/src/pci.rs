//! PCI: finding all functions, numbering buses, and giving every base address register (BAR) its addresses.
//!
//! PCI Local Bus 3.0 §6.1–6.2, PCI-to-PCI Bridge 1.2 §3.2. Expansion ROMs are left disabled: nothing here runs them, and
//! Linux assigns them when a driver asks.

use core::fmt;

use thiserror::Error;

use crate::list::List;

mod resource;

pub use resource::{Windows, assign};

/// Functions that fit in the inventory.
pub const MAX_FUNCTIONS: usize = 256;
/// Bridges behind bridges.
const MAX_DEPTH: usize = 16;

/// Registers of the configuration header.
pub mod register {
    /// Vendor and device.
    pub const ID: u16 = 0x00;
    /// Command.
    pub const COMMAND: u16 = 0x04;
    /// Revision and class.
    pub const CLASS: u16 = 0x08;
    /// Header type.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// First base address register.
    pub const BAR0: u16 = 0x10;
    /// Bridges: primary bus, secondary bus, last subordinate bus.
    pub const PRIMARY_BUS: u16 = 0x18;
    /// Bridges: I/O window.
    pub const IO_WINDOW: u16 = 0x1c;
    /// Bridges: memory window.
    pub const MEMORY_WINDOW: u16 = 0x20;
    /// Bridges: prefetchable memory window.
    pub const PREFETCH_WINDOW: u16 = 0x24;
    /// Bridges: bits 32 and up of the prefetchable memory window.
    pub const PREFETCH_UPPER: u16 = 0x28;
    /// Bridges: bits 16 and up of the I/O window.
    pub const IO_UPPER: u16 = 0x30;
    /// Interrupt line, a number for software only.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin: 1 to 4 for INTA to INTD, 0 for none.
    pub const INTERRUPT_PIN: u16 = 0x3d;
}

/// Command: answer to I/O addresses.
pub const COMMAND_IO: u16 = 1;
/// Command: answer to memory addresses.
pub const COMMAND_MEMORY: u16 = 2;
/// Command: may access memory itself. Needed by bridges to pass their devices' accesses on.
pub const COMMAND_MASTER: u16 = 4;

/// Bus, device and function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// Bus.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl Address {
    /// An address on bus 0.
    pub const fn on_root(device: u8, function: u8) -> Self {
        Self {
            bus: 0,
            device,
            function,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// Access to configuration space. Registers are multiples of the width; functions that are not there read as all ones.
pub trait Config {
    /// Reads 8 bits.
    fn read8(&mut self, address: Address, register: u16) -> u8;
    /// Reads 16 bits.
    fn read16(&mut self, address: Address, register: u16) -> u16;
    /// Reads 32 bits.
    fn read32(&mut self, address: Address, register: u16) -> u32;
    /// Writes 8 bits.
    fn write8(&mut self, address: Address, register: u16, value: u8);
    /// Writes 16 bits.
    fn write16(&mut self, address: Address, register: u16, value: u16);
    /// Writes 32 bits.
    fn write32(&mut self, address: Address, register: u16, value: u32);
}

/// Why PCI cannot be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PciError {
    /// Too many functions.
    #[error("The machine has more than {MAX_FUNCTIONS} PCI functions")]
    TooManyFunctions,
    /// Too many base address registers and bridge windows.
    #[error(
        "The machine's PCI functions have more than {} base address registers",
        resource::MAX_ITEMS
    )]
    TooManyResources,
    /// More than 256 buses.
    #[error("PCI bridge {at}: there are no bus numbers left")]
    NoBuses {
        /// The bridge.
        at: Address,
    },
    /// Bridges too deep behind one another.
    #[error("PCI bridge {at} lies behind more than {MAX_DEPTH} others")]
    TooDeep {
        /// The bridge.
        at: Address,
    },
}

/// One function that was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: Address,
    /// Vendor (low half) and device.
    pub id: u32,
    /// Class code, 24 bits: class, subclass, programming interface.
    pub class: u32,
    /// The bus behind it, if it is a bridge.
    pub secondary: Option<u8>,
    /// Sum of the device numbers of the bridges it is behind: rotates interrupt pins.
    pub swizzle: u8,
}

/// All functions; a bridge comes before everything behind it.
pub type Inventory = List<Function, MAX_FUNCTIONS>;

/// Finds all functions and numbers all buses, depth first.
pub fn scan(config: &mut impl Config) -> Result<Inventory, PciError> {
    let mut found = Inventory::new(Function::default());
    let mut last_bus = 0;
    scan_bus(config, &mut found, 0, &mut last_bus, 0, 0)?;
    Ok(found)
}

fn scan_bus(
    config: &mut impl Config,
    found: &mut Inventory,
    bus: u8,
    last_bus: &mut u8,
    swizzle: u8,
    depth: usize,
) -> Result<(), PciError> {
    for device in 0..32 {
        for function in 0..8 {
            let address = Address {
                bus,
                device,
                function,
            };
            let id = config.read32(address, register::ID);
            // No function has vendor 0xFFFF; some bridges answer 0 for what is not there.
            if matches!(id & 0xffff, 0 | 0xffff) {
                if function == 0 {
                    break;
                }
                continue;
            }
            let header = config.read8(address, register::HEADER_TYPE);
            let index = found.len();
            found
                .push(Function {
                    address,
                    id,
                    class: config.read32(address, register::CLASS) >> 8,
                    secondary: None,
                    swizzle,
                })
                .map_err(|_| PciError::TooManyFunctions)?;
            if header & 0x7f == 1 {
                if depth >= MAX_DEPTH {
                    return Err(PciError::TooDeep { at: address });
                }
                let secondary = last_bus
                    .checked_add(1)
                    .ok_or(PciError::NoBuses { at: address })?;
                *last_bus = secondary;
                found[index].secondary = Some(secondary);
                // Everything above belongs to this bridge until it is known how much there is.
                set_buses(config, address, bus, secondary, 0xff);
                let swizzle = swizzle.wrapping_add(device);
                scan_bus(config, found, secondary, last_bus, swizzle, depth + 1)?;
                set_buses(config, address, bus, secondary, *last_bus);
            }
            if function == 0 && header & 0x80 == 0 {
                break;
            }
        }
    }
    Ok(())
}

fn set_buses(config: &mut impl Config, at: Address, primary: u8, secondary: u8, last: u8) {
    config.write8(at, register::PRIMARY_BUS, primary);
    config.write8(at, register::PRIMARY_BUS + 1, secondary);
    config.write8(at, register::PRIMARY_BUS + 2, last);
}

#[cfg(test)]
mod tests;
