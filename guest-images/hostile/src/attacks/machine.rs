//! What is not virtio: ports, holes in memory, the small devices of a PC.

use super::{Attack, machine};
use crate::hw::{memory, port};

const COM1: u16 = 0x3f8;
const CONFIG_PORTS: u16 = 0xcf8;
const PVPANIC: u16 = 0x505;
const ACPI: u16 = 0x600;
const GED: u16 = 0x604;
const WATCHDOG: u16 = 0x610;
/// By which a guest lets go of PCI functions: told of new ones, asked for old ones, let go.
pub const HOT_PLUG: u16 = 0x620;
const BOOT_TIMER: u64 = 0xd000_0000;
const ECAM: u64 = 0xe000_0000;
const IO_APIC: u64 = 0xfec0_0000;
const LOCAL_APIC: u64 = 0xfee0_0000;
/// Physical addresses where ranges begin or end.
const EDGES: [u64; 14] = [
    0x9_fc00,
    0xa_0000,
    0xe_0000,
    0x10_0000,
    64 << 20,
    0xd000_0000,
    0xd000_1000,
    0xd001_3000,
    0xd800_0000,
    ECAM,
    ECAM + 0x10_0000,
    IO_APIC,
    IO_APIC + 0x1000,
    LOCAL_APIC + 0x1000,
];

/// Reads and writes every port from `first` on, `count` of them, in each width.
///
/// None of the values is one that a reset or power register takes: those have runs of their own.
fn ports(first: u16, count: u16) {
    for number in first..=first + (count - 1) {
        port::write8(number, 0xff);
        port::read8(number);
        port::write16(number, 0xa5a5);
        port::read16(number);
        port::write32(number, 0);
        port::read32(number);
    }
    quiet();
}

/// The serial port as it was, the watchdog stopped, PCI's address port on nothing.
fn quiet() {
    port::write8(COM1 + 3, 3);
    for register in [1, 2, 4] {
        port::write8(COM1 + register, 0);
    }
    port::write32(WATCHDOG, 0);
    port::write32(CONFIG_PORTS, 0);
    // What the sweep printed is a line of its own.
    port::write8(COM1, b'\n');
}

/// Reads `address` in every width, and writes it too.
fn touch(address: u64) {
    memory::read8(address);
    memory::read16(address);
    memory::read32(address);
    memory::read64(address);
    memory::write8(address, 0xff);
    memory::write16(address, 0xff);
    memory::write32(address, 0xffff_ffff);
    memory::write64(address, u64::MAX);
}

macro_rules! port_sweeps {
    ($($name:literal: $first:literal,)*) => {
        [$(machine($name, || { ports($first, 0x1000); Ok(()) }),)*]
    };
}

/// Every port there is.
pub const PORTS: &[Attack] = &port_sweeps! {
    "ports-0000": 0x0000, "ports-1000": 0x1000, "ports-2000": 0x2000, "ports-3000": 0x3000,
    "ports-4000": 0x4000, "ports-5000": 0x5000, "ports-6000": 0x6000, "ports-7000": 0x7000,
    "ports-8000": 0x8000, "ports-9000": 0x9000, "ports-a000": 0xa000, "ports-b000": 0xb000,
    "ports-c000": 0xc000, "ports-d000": 0xd000, "ports-e000": 0xe000, "ports-f000": 0xf000,
};

pub const ATTACKS: &[Attack] = &[
    machine("holes-in-memory", || {
        for mib in (64..0xd00)
            .step_by(64)
            .chain(0xd01..0xd80)
            .chain((0xe10..0xfec).step_by(8))
        {
            touch(mib << 20);
        }
        for gib in 4..8 {
            touch(gib << 30);
            touch((gib << 30) + 0xffc);
        }
        Ok(())
    }),
    machine("edges-of-ranges", || {
        for edge in EDGES {
            for before in [1, 2, 4, 7] {
                memory::read16(edge - before);
                memory::read32(edge - before);
                memory::read64(edge - before);
            }
        }
        // A write there would be one into this program's own structures.
        for edge in [64 << 20, 0xd001_3000, ECAM + 0x10_0000] {
            memory::write64(edge - 4, u64::MAX);
        }
        Ok(())
    }),
    machine("atomics-on-registers", || {
        for address in [BOOT_TIMER, 0xd000_1000, ECAM, IO_APIC, 0xc000_0000] {
            let _ = crate::hw::cpu::exchange(address, 0xffff);
        }
        Ok(())
    }),
    machine("io-apic-nonsense", || {
        for register in 0..=0xff {
            memory::write32(IO_APIC, register);
            memory::read32(IO_APIC + 0x10);
            // Masked: an interrupt that nobody waits for would end this program.
            memory::write32(IO_APIC + 0x10, 0xffff_f0ff);
        }
        Ok(())
    }),
    machine("interrupts-to-nobody", || {
        for round in 0..500_u32 {
            memory::write32(
                LOCAL_APIC + 0x310,
                0xfe00_0000 - (round << 24 & 0x3f00_0000),
            );
            memory::write32(LOCAL_APIC + 0x300, 0x40 + round % 0x80);
        }
        Ok(())
    }),
    machine("serial-registers", || {
        for round in 0..0x400_u16 {
            let [value, _] = (round.wrapping_mul(0x9d)).to_le_bytes();
            port::write8(COM1 + 1 + round % 7, value);
            port::read8(COM1 + round % 8);
            port::read32(COM1 + round % 8);
        }
        quiet();
        Ok(())
    }),
    machine("serial-flood", || {
        let line = [b'~'; 1024];
        for _ in 0..256 {
            port::write_string(COM1, &line);
        }
        quiet();
        Ok(())
    }),
    machine("strings-from-every-small-device", || {
        let mut bytes = [0; 256];
        for number in [
            COM1,
            0x60,
            0x64,
            0x70,
            0x71,
            ACPI,
            GED,
            WATCHDOG,
            PVPANIC,
            CONFIG_PORTS + 4,
        ] {
            port::read_string(number, &mut bytes);
        }
        Ok(())
    }),
    machine("clock-registers", || {
        for index in 0..=u8::MAX {
            port::write8(0x70, index);
            port::read8(0x71);
            port::write8(0x71, !index);
        }
        Ok(())
    }),
    machine("panic-and-boot-timer-storm", || {
        for round in 0..300 {
            port::write8(PVPANIC, if round % 2 == 0 { 1 } else { 0xff });
            memory::write8(BOOT_TIMER, 123);
            port::write8(0x3f0, 123);
        }
        Ok(())
    }),
    machine("watchdog-nonsense", || {
        for period in [0, 1, 9, 10, 0xffff, 0x1_0000, u32::MAX] {
            for control in [1, 2, u32::MAX, 1] {
                port::write32(WATCHDOG + 4, period);
                port::write32(WATCHDOG, control);
                port::write32(WATCHDOG + 8, period);
                port::read32(WATCHDOG + 8);
                port::write8(WATCHDOG + 1, 0xff);
                port::write16(WATCHDOG + 6, 0xffff);
            }
            port::write32(WATCHDOG, 0);
        }
        Ok(())
    }),
    machine("hot-plug-nonsense", || {
        for offset in 0..12 {
            port::write8(HOT_PLUG + offset, 0xff);
            port::write16(HOT_PLUG + offset, 0xffff);
            port::read16(HOT_PLUG + offset);
        }
        port::write32(HOT_PLUG, u32::MAX);
        port::write32(HOT_PLUG + 4, u32::MAX);
        // The host bridge, and a place where nothing is.
        port::write32(HOT_PLUG + 8, 1 << 31 | 1);
        Ok(())
    }),
    machine("events-and-sleep-registers", || {
        for value in 0..=u8::MAX {
            // S5 switches off, and the reset register resets: runs of their own.
            if value & 0x3c != 0x34 {
                port::write8(ACPI, value);
            }
            port::write8(ACPI + 1, value);
            if value != 1 {
                port::write8(ACPI + 2, value);
            }
            port::write8(GED, value);
            port::read8(GED);
        }
        port::write32(GED, u32::MAX);
        port::read32(GED);
        Ok(())
    }),
];
