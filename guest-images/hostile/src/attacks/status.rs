//! The status register and features in every order but the right one; storms on registers.

use super::{ARENA, Attack, queue, registers};
use crate::device::{ACKNOWLEDGE, DRIVER, DRIVER_OK, Device, FEATURES_OK};
use crate::driver::{Driver, INDIRECT_DESC, VERSION_1, agree};
use crate::hw::memory;
use crate::ring::WRITE;

const AGREED: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK;

/// Reads and writes `len` bytes from `at` on in every width, aligned and not.
fn sweep(at: u64, len: u64, write: bool) {
    for offset in (0..len).step_by(3) {
        let at = at + offset;
        memory::read8(at);
        memory::read16(at);
        memory::read32(at);
        memory::read64(at);
        if write {
            memory::write8(at, 0xa5);
            memory::write16(at, 0xa5a5);
            memory::write32(at, 0xa5a5_a5a5);
            memory::write64(at, u64::MAX);
        }
    }
}

pub const ATTACKS: &[Attack] = &[
    registers("status-every-value-from-reset", |device| {
        for status in 0..=u8::MAX {
            device.set_status(status);
            device.set_status(0);
        }
    }),
    registers("status-every-value-without-reset", |device| {
        for status in 1..=u8::MAX {
            device.set_status(status);
        }
        for status in (1..=u8::MAX).rev() {
            device.set_status(status);
        }
    }),
    registers("status-every-value-while-running", |device| {
        for status in (1..=u8::MAX).step_by(5) {
            if Driver::start(device, ARENA, INDIRECT_DESC).is_ok() {
                device.set_status(status);
                device.notify(0);
            }
        }
    }),
    registers("features-never-offered", |device| {
        for (low, high) in [
            (u32::MAX, u32::MAX),
            (0, u32::MAX),
            (u32::MAX, VERSION_1),
            (0, 0),
        ] {
            device.set_status(0);
            device.set_status(ACKNOWLEDGE | DRIVER);
            device.accept(0, low);
            device.accept(1, high);
            device.accept(2, u32::MAX);
            device.accept(u32::MAX, u32::MAX);
            device.set_status(AGREED);
            device.set_status(AGREED | DRIVER_OK);
            device.notify(0);
        }
    }),
    registers("features-after-they-were-agreed", |device| {
        if agree(device, u32::MAX).is_ok() {
            device.accept(0, u32::MAX);
            device.accept(1, u32::MAX);
            device.set_status(AGREED | DRIVER_OK);
            device.accept(0, 0);
            device.accept(1, 0);
        }
    }),
    registers("features-ok-skipped", |device| {
        device.set_status(ACKNOWLEDGE | DRIVER);
        device.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK);
        device.notify(0);
        device.set_status(0);
        device.set_status(DRIVER_OK);
        device.notify(0);
    }),
    registers("driver-ok-again-and-again", |device| {
        if Driver::start(device, ARENA, INDIRECT_DESC).is_ok() {
            for _ in 0..100 {
                device.set_status(AGREED | DRIVER_OK);
                device.notify(0);
            }
        }
    }),
    registers("queues-set-up-before-features", |device| {
        device.set_status(ACKNOWLEDGE);
        device.select(0);
        device.set_size(16);
        device.set_addresses([ARENA; 3]);
        device.enable(1);
        device.set_status(AGREED | DRIVER_OK);
    }),
    registers("reset-in-a-tight-loop", |device| {
        for _ in 0..300 {
            device.set_status(0);
        }
    }),
    queue("reset-with-requests-in-flight", |driver, index| {
        let device = driver.device;
        for _ in 0..16 {
            let Ok(mut driver) = Driver::start(&device, ARENA, INDIRECT_DESC) else {
                return;
            };
            for head in 0..8 {
                let ring = driver.rings[usize::from(index)];
                ring.describe(head, ring.buffers(), 4096, WRITE, 0);
                driver.rings[usize::from(index)].offer(head);
            }
            device.notify(index);
            device.set_status(0);
            device.notify(index);
        }
    }),
    registers("notify-storm", |device| {
        if Driver::start(device, ARENA, INDIRECT_DESC).is_ok() {
            for round in 0..1000_u16 {
                device.notify(round % 8);
            }
            for index in [256, 1000, 0x1fff, 0x7fff, 0xffff] {
                device.notify(index);
            }
        }
    }),
    registers("notify-before-driver-ok", |device| {
        for _ in 0..50 {
            device.notify(0);
        }
        if agree(device, 0).is_ok() {
            for _ in 0..50 {
                device.notify(0);
            }
        }
    }),
    registers("configuration-in-every-width-and-past-its-end", |device| {
        sweep(device.config(), 0x60, false);
        if Driver::start(device, ARENA, INDIRECT_DESC).is_ok() {
            sweep(device.config(), 0x60, true);
            for past in [0x800, 0xef0, 0xef8, 0xefc] {
                sweep(device.config() + past, 4, true);
            }
        }
    }),
    registers("registers-in-every-width", |device: &Device| {
        // Also what may reset the device, or set it up: all that counts is that it comes back.
        sweep(device.base(), 0x100, true);
        device.set_status(0);
    }),
];
