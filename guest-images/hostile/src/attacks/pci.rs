//! What only PCI has: a configuration space, a memory region that the driver moves, and MSI-X.

use super::machine::HOT_PLUG;
use super::{ARENA, Attack, pci};
use crate::device::{Device, PciRegisters};
use crate::driver::{Driver, INDIRECT_DESC};
use crate::hw::{memory, port};
use crate::pci::{BAR, COMMAND_ON, Function};

const ECAM: u64 = 0xe000_0000;
const MAPPED: u64 = 8 << 30;
/// Message control: on, all masked.
const MSIX_ON: u16 = 1 << 15;
const MSIX_MASKED: u16 = 1 << 14;
const LOCAL_APIC: u32 = 0xfee0_0000;

/// Moves the region to each of `places` while the device runs, goes there, and moves it back.
fn move_to(device: &Device, pci: &PciRegisters, places: &[u64]) {
    let driver = Driver::start(device, ARENA, INDIRECT_DESC);
    for place in places {
        pci.function.set_bar(*place);
        if *place < MAPPED {
            memory::read32(place + pci.common);
            memory::write16(place + pci.notify, 0);
        }
        // Where it was there is nothing now.
        memory::read32(pci.base + pci.common);
        device.notify(0);
    }
    pci.function.set_bar(pci.base);
    drop(driver);
}

/// Entry `index` of the interrupt table.
fn vector(pci: &PciRegisters, index: u64, address: u64, data: u32, masked: u32) {
    let at = pci.base + pci.msix_table + 16 * index;
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    memory::write32(at, u32::from_le_bytes([a, b, c, d]));
    memory::write32(at + 4, u32::from_le_bytes([e, f, g, h]));
    memory::write32(at + 8, data);
    memory::write32(at + 12, masked);
}

/// Lets the device interrupt by vectors 0 and 1, then serves requests while `change` rewrites what it likes.
fn interrupts(device: &Device, pci: &PciRegisters, change: fn(&PciRegisters, usize)) {
    device.set_status(0);
    for index in 0..2 {
        vector(
            pci,
            index,
            LOCAL_APIC.into(),
            0x40 + u32::from(index == 1),
            0,
        );
    }
    pci.function.write16(pci.msix + 2, MSIX_ON);
    if let Ok(mut driver) = Driver::start(device, ARENA, INDIRECT_DESC) {
        memory::write16(pci.base + pci.common + 0x10, 0);
        for queue in 0..2 {
            device.select(queue);
            memory::write16(pci.base + pci.common + 0x1a, 1);
        }
        for round in 0..24 {
            change(pci, round);
            if driver.serve_once().is_err() {
                break;
            }
        }
    }
}

/// The configuration access capability: BAR, offset, length.
fn window(function: Function, bar: u8, offset: u32, len: u32) {
    let at = function.capability(|at| function.read8(at) == 9 && function.read8(at + 3) == 5);
    if let Some(at) = at {
        function.write8(at + 4, bar);
        function.write32(at + 8, offset);
        function.write32(at + 12, len);
        function.read32(at + 16);
        function.read8(at + 17);
        function.write32(at + 16, u32::MAX);
        function.write8(at + 19, 0);
    }
}

pub const ATTACKS: &[Attack] = &[
    pci("region-over-memory", |device, pci| {
        move_to(
            device,
            pci,
            &[ARENA, ARENA + 0x8000, 0, (64 << 20) - 0x4000],
        );
    }),
    pci("region-over-other-regions", |device, pci| {
        let mut near = [0; 16];
        for (place, step) in near.iter_mut().zip(0..) {
            *place = 0xd800_0000 + 0x8000 * step;
        }
        move_to(device, pci, &near);
        move_to(
            device,
            pci,
            &[pci.base + 0x8000, pci.base.wrapping_sub(0x8000)],
        );
    }),
    pci("region-over-interrupt-controllers", |device, pci| {
        move_to(
            device,
            pci,
            &[0xfee0_0000, 0xfec0_0000, 0xfffb_8000, 0xffff_8000],
        );
    }),
    pci("region-over-configuration-and-timer", |device, pci| {
        move_to(device, pci, &[ECAM, ECAM + 0x8000, 0xd000_0000]);
    }),
    pci("region-at-the-ends-of-the-address-space", |device, pci| {
        move_to(
            device,
            pci,
            &[
                !0x7fff,
                1 << 40,
                1 << 52,
                1 << 63,
                0xffff_ffff_0000_0000,
                1 << 32,
            ],
        );
    }),
    pci("region-sized-while-in-use", |device, pci| {
        if let Ok(mut driver) = Driver::start(device, ARENA, INDIRECT_DESC) {
            for _ in 0..4 {
                pci.function.write32(BAR, u32::MAX);
                driver.device.notify(0);
                pci.function.write32(BAR + 4, u32::MAX);
                pci.function.read32(BAR);
                driver.device.notify(0);
                pci.function.set_bar(pci.base);
            }
            let _ = driver.serve_once();
        }
    }),
    pci("decoding-and-mastering-off", |device, pci| {
        if let Ok(driver) = Driver::start(device, ARENA, INDIRECT_DESC) {
            for command in [0, 1, 2, 4, 0xffff, 0, COMMAND_ON] {
                pci.function.write16(4, command);
                driver.device.status();
                driver.device.notify(0);
                driver.device.notify(0xffff);
            }
        }
    }),
    pci("configuration-space-in-every-width", |device, pci| {
        let _ = Driver::start(device, ARENA, INDIRECT_DESC);
        for register in (0..=252_u8).step_by(4) {
            for value in [u32::MAX, 0, 0xa5a5_a5a5] {
                let [low, high, ..] = value.to_le_bytes();
                pci.function.write32(register, value);
                pci.function
                    .write16(register + 2, u16::from_le_bytes([low, high]));
                pci.function.write8(register + 3, low);
                pci.function.write8(register + 1, low);
            }
            pci.function.read32(register);
        }
    }),
    pci("extended-configuration-space", |_, pci| {
        let at = ECAM + (u64::from(pci.function.0) << 15);
        for offset in [
            0xfc, 0xff, 0x100, 0x101, 0xffc, 0xffd, 0xfff, 0x1000, 0x7000,
        ] {
            memory::read8(at + offset);
            memory::read16(at + offset);
            memory::read32(at + offset);
            memory::read64(at + offset);
            memory::write64(at + offset, u64::MAX);
            memory::write32(at + offset, 0);
            memory::write8(at + offset, 0xff);
        }
    }),
    pci("functions-that-do-not-exist", |_, _| {
        for address in [
            0x80ff_0000,
            0x8000_ff00,
            0x80ff_fffc,
            u32::MAX,
            0x7fff_ffff,
            0x8000_f8fc,
        ] {
            port::write32(0xcf8, address);
            for data in 0xcfc..=0xcff {
                port::read8(data);
                port::write8(data, 0xff);
                port::read16(data);
                port::write32(data, u32::MAX);
            }
        }
        port::write32(0xcf8, 0);
    }),
    pci("access-capability-to-anywhere", |_, pci| {
        for bar in [0, 1, 5, 6, 255] {
            for offset in [
                0,
                0x14,
                0x3000,
                0x5fff,
                0x7ffc,
                0x7ffd,
                0x8000,
                0xffff_fffc,
                u32::MAX,
            ] {
                for len in [0, 1, 2, 3, 4, 8, u32::MAX] {
                    window(pci.function, bar, offset, len);
                }
            }
        }
    }),
    pci("vectors-out-of-range", |device, pci| {
        interrupts(device, pci, |pci, round| {
            let vector = [2, 7, 255, 256, 2047, 2048, 0xfffe, 0xffff][round % 8];
            memory::write16(pci.base + pci.common + 0x10, vector);
            memory::write16(pci.base + pci.common + 0x1a, vector);
        });
    }),
    pci("table-rewritten-while-interrupts-fire", |device, pci| {
        // Fixed and reserved delivery only: what stops or resets the processor harms nobody but this program.
        interrupts(device, pci, |pci, round| {
            let apic = u64::from(LOCAL_APIC);
            let addresses = [
                apic,
                apic | 0xf_f000,
                0,
                1 << 40,
                u64::MAX,
                0xfec0_0000,
                0xd000_0000,
                apic | 0xc,
            ];
            let data = [0x41, 0x10, 0x8041, 0x0341, 0xffff_0041, 0x0, 0xff, 0x4041][round / 8 % 8];
            vector(pci, 1, addresses[round % 8], data, 0);
        });
    }),
    pci("masks-changed-while-interrupts-fire", |device, pci| {
        interrupts(device, pci, |pci, round| {
            let control = [MSIX_ON, MSIX_ON | MSIX_MASKED, 0, MSIX_MASKED][round % 4];
            vector(pci, 1, LOCAL_APIC.into(), 0x41, u32::from(round % 3 == 0));
            pci.function.write16(pci.msix + 2, control);
        });
    }),
    pci("table-and-pending-bits-in-every-width", |_, pci| {
        let table = pci.base + pci.msix_table;
        for offset in [
            0, 1, 4, 8, 12, 13, 15, 16, 0x7f8, 0xfff, 0xffc, 0x1000, 0x1001, 0x1ffc,
        ] {
            memory::read8(table + offset);
            memory::read16(table + offset);
            memory::read32(table + offset);
            memory::read64(table + offset);
            memory::write8(table + offset, 0xff);
            memory::write16(table + offset, 0xffff);
            memory::write32(table + offset, u32::MAX);
            memory::write64(table + offset, u64::MAX);
        }
        // Nothing may stay that could interrupt.
        for index in 0..8 {
            vector(pci, index, 0, 0, 1);
        }
        memory::read32(pci.base + pci.isr);
    }),
];

/// Takes the device off the bus, as a guest does that was asked to.
pub fn let_go(pci: &PciRegisters) {
    port::write32(HOT_PLUG + 8, 1 << pci.function.0);
}

/// Everything as a driver finds it.
pub fn restore(pci: &PciRegisters) {
    pci.function.write16(pci.msix + 2, 0);
    pci.function.set_bar(pci.base);
    pci.function.write16(4, COMMAND_ON);
}
