//! The chipset: Intel 82Q35 (MCH) and ICH9 (LPC bridge), as QEMU has them.

use super::ecam::{self, port_read32, port_write32};
use super::port;
use crate::memory::halves;
use crate::pci::{Address, Config, Inventory, register};

/// Vendor and device of the MCH.
pub const MCH_ID: u32 = 0x29c0_8086;
/// Vendor and device of the ICH9 LPC bridge.
const LPC_ID: u32 = 0x2918_8086;

const MCH: Address = Address::on_root(0, 0);
const LPC: Address = Address::on_root(31, 0);

/// MCH: base of the PCI configuration window (Intel 3 Series datasheet §5.1.13).
const MCH_PCIEXBAR: u16 = 0x60;
/// MCH: programmable attribute map, 7 bytes for the memory from 0xC0000 on (§5.1.16).
const MCH_PAM0: u16 = 0x90;
/// LPC: base of the power management registers (ICH9 datasheet §13.1.13).
const LPC_PMBASE: u16 = 0x40;
/// LPC: ACPI control; bit 7 enables the power management registers.
const LPC_ACPI_CONTROL: u16 = 0x44;
/// LPC: routing of PIRQA to PIRQD; of PIRQE to PIRQH eight bytes on.
const LPC_PIRQ: u16 = 0x60;
/// LPC: base of the chipset configuration registers.
const LPC_RCBA: u16 = 0xf0;

/// Where QEMU's ACPI tables say the power management registers are.
const PMBASE: u32 = 0x600;
/// Chipset configuration registers: base and size.
pub const RCBA: u64 = 0xfed1_c000;
/// Bytes of the chipset configuration registers.
pub const RCBA_SIZE: u64 = 16 << 10;

/// Edge or level triggering of interrupts 0 to 7 and 8 to 15.
const ELCR: [u16; 2] = [0x4d0, 0x4d1];
/// Interrupts of PIRQA to PIRQD, and of PIRQE to PIRQH, for software that does not use the I/O APIC.
const PIRQ: [u8; 4] = [10, 10, 11, 11];

/// What chipset the machine has, by its host bridge.
pub fn host_bridge() -> u32 {
    port_read32(MCH, register::ID)
}

/// Opens the PCI configuration window at [`ecam::BASE`] for 256 buses.
pub fn open_config_window() {
    let [high, low] = halves(ecam::BASE);
    // Closed while its halves do not belong together.
    port_write32(MCH, MCH_PCIEXBAR, 0);
    port_write32(MCH, MCH_PCIEXBAR + 4, high);
    port_write32(MCH, MCH_PCIEXBAR, low | 1);
}

/// Makes the memory from 0xC0000 to 0xFFFFF readable and writable, in place of the copy of the ROM's end.
pub fn open_low_memory(config: &mut impl Config) {
    config.write8(MCH, MCH_PAM0, 0x30);
    for register in MCH_PAM0 + 1..=MCH_PAM0 + 6 {
        config.write8(MCH, register, 0x33);
    }
}

/// Puts power management where ACPI says it is, and routes interrupts.
pub fn set_up_lpc(config: &mut impl Config) {
    if config.read32(LPC, register::ID) != LPC_ID {
        return;
    }
    config.write32(LPC, LPC_PMBASE, PMBASE | 1);
    config.write8(LPC, LPC_ACPI_CONTROL, 0x80);
    config.write32(LPC, LPC_RCBA, halves(RCBA)[1] | 1);
    let mut level = [0u8; 2];
    for (offset, line) in (0..).zip(PIRQ) {
        config.write8(LPC, LPC_PIRQ + offset, line);
        config.write8(LPC, LPC_PIRQ + 8 + offset, line);
        level[usize::from(line / 8)] |= 1 << (line % 8);
    }
    for (port, lines) in ELCR.into_iter().zip(level) {
        port::write8(port, lines);
    }
}

/// Writes to each function which interrupt its pin arrives at without the I/O APIC. QEMU rotates the pins of devices 0 to 24
/// by the device number, and those of bridges on the way; 25 to 31 are fixed.
pub fn set_interrupt_lines(config: &mut impl Config, found: &Inventory) {
    for function in found.iter() {
        let at = function.address;
        let pin = config.read8(at, register::INTERRUPT_PIN);
        if !(1..=4).contains(&pin) {
            continue;
        }
        let rotation = if at.bus == 0 && at.device >= 25 {
            0
        } else {
            at.device
        };
        let line = usize::from(pin - 1) + usize::from(rotation) + usize::from(function.swizzle);
        config.write8(at, register::INTERRUPT_LINE, PIRQ[line % 4]);
    }
}
