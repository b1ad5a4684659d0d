//! PCI configuration space: by ports on bus 0 until the memory window is open, by memory after that.
#![expect(
    unsafe_code,
    reason = "configuration space is memory at a fixed address"
)]

use super::port;
use crate::pci::{Address, Config};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// Physical address of the memory window; QEMU's firmware by convention chooses this, and the Linux kernel looks for it in
/// ACPI's MCFG, which QEMU fills in from the register.
pub const BASE: u64 = BASE_ADDRESS as u64;
const BASE_ADDRESS: usize = 0xb000_0000;
/// Bytes of the window: 256 buses.
pub const SIZE: u64 = 256 << 20;

/// Writes 32 bits by the ports, which need no set-up (PCI 3.0 §3.2.2.3.2).
pub fn port_write32(at: Address, register: u16, value: u32) {
    select(at, register);
    port::write32(CONFIG_DATA, value);
}

/// Reads 32 bits by the ports.
pub fn port_read32(at: Address, register: u16) -> u32 {
    select(at, register);
    port::read32(CONFIG_DATA)
}

fn select(at: Address, register: u16) {
    let bus = u32::from(at.bus) << 16;
    let function = u32::from(at.device) << 11 | u32::from(at.function) << 8;
    port::write32(
        CONFIG_ADDRESS,
        1 << 31 | bus | function | u32::from(register & 0xfc),
    );
}

/// The memory window.
#[derive(Debug)]
pub struct Ecam(());

impl Ecam {
    /// The window at [`BASE`].
    ///
    /// # Safety
    ///
    /// The window must be open ([`super::q35::open_config_window`]), and stay so.
    pub unsafe fn new() -> Self {
        Self(())
    }

    /// All values of all three fields give an address inside the window.
    fn place<T>(at: Address, register: u16) -> *mut T {
        let offset = usize::from(at.bus) << 20
            | usize::from(at.device & 31) << 15
            | usize::from(at.function & 7) << 12
            | usize::from(register & 0xfff) & !(size_of::<T>() - 1);
        core::ptr::with_exposed_provenance_mut(BASE_ADDRESS + offset)
    }
}

macro_rules! access {
    ($read:ident, $write:ident, $width:ty) => {
        fn $read(&mut self, at: Address, register: u16) -> $width {
            // SAFETY: inside the window, aligned; reading has no side effects in the registers of the header.
            unsafe { Self::place::<$width>(at, register).read_volatile() }
        }

        fn $write(&mut self, at: Address, register: u16, value: $width) {
            // SAFETY: inside the window, aligned; what it means is the caller's to know.
            unsafe { Self::place::<$width>(at, register).write_volatile(value) }
        }
    };
}

impl Config for Ecam {
    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
}
