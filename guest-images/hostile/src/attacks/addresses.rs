//! Where the rings of a queue are said to be, and how large it is said to be.

use super::{ARENA, Attack, registers};
use crate::device::{ACKNOWLEDGE, DRIVER, DRIVER_OK, Device, FEATURES_OK};
use crate::driver::agree;
use crate::hw::memory;
use crate::ring::Ring;

/// All the tests' guests have so much RAM.
const RAM_END: u64 = 64 << 20;
const RUNNING: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

/// Each of the three rings at each of `places` in turn, the others where they should be.
fn each_at(device: &Device, places: &[u64]) {
    for part in 0..3 {
        for place in places {
            let mut addresses = Ring::new(ARENA, 16).addresses();
            addresses[part] = *place;
            start(device, 16, addresses);
        }
    }
}

/// Starts queue 0 as said, and rings.
fn start(device: &Device, size: u32, addresses: [u64; 3]) {
    if agree(device, u32::MAX).is_err() {
        return;
    }
    device.select(0);
    device.set_size(size);
    device.set_addresses(addresses);
    device.enable(1);
    device.set_status(RUNNING);
    device.notify(0);
}

fn with_size(device: &Device, size: u32) {
    start(device, size, Ring::new(ARENA, 16).addresses());
}

/// Everything of a running queue written anew.
fn change_while_running(device: &Device, change: fn(&Device)) {
    with_size(device, 16);
    device.select(0);
    change(device);
    device.notify(0);
}

pub const ATTACKS: &[Attack] = &[
    registers("ring-outside-memory", |device| {
        each_at(device, &[RAM_END, 1 << 40, 0x7fff_ffff_ffff_f000]);
    }),
    registers("ring-over-the-end-of-memory", |device| {
        each_at(device, &[RAM_END - 16, RAM_END - 32, RAM_END - 4]);
    }),
    registers("ring-in-the-hole", |device| {
        each_at(
            device,
            &[0xd000_0000, 0xe000_0000, 0xfec0_0000, 0xfee0_0000],
        );
    }),
    registers("ring-in-own-registers", |device| {
        each_at(device, &[device.base(), device.base() + 0x100]);
    }),
    registers("ring-unaligned", |device| {
        each_at(device, &[ARENA + 1, ARENA + 2, ARENA + 7, ARENA + 8]);
    }),
    registers("ring-wraps-the-address-space", |device| {
        each_at(device, &[!0xf, u64::MAX - 1, u64::MAX - 0xff]);
    }),
    registers("rings-overlap", |device| {
        memory::clear(ARENA, 0x1000);
        start(device, 16, [ARENA; 3]);
        device.notify(0);
        start(device, 16, [ARENA, ARENA + 4, ARENA + 8]);
        memory::write32(ARENA, u32::MAX);
        device.notify(0);
    }),
    registers("rings-in-code", |device| {
        // Empty rings there: the device may write its flags and index, and the program goes on.
        start(device, 1, [0x20_0000, 0x6000, 0x6800]);
    }),
    registers("size-zero", |device| with_size(device, 0)),
    registers("size-no-power-of-two", |device| {
        for size in [3, 5, 6, 7, 12, 17, 127, 129, 255] {
            with_size(device, size);
        }
    }),
    registers("size-beyond-the-maximum", |device| {
        for size in [
            512,
            1024,
            0x4000,
            0x8000,
            0xffff,
            0x1_0000,
            0x1_0010,
            u32::MAX,
        ] {
            with_size(device, size);
        }
    }),
    registers("size-changed-while-running", |device| {
        change_while_running(device, |device| {
            for size in [0, 1, 3, 8, 256, 0x8000, 0xffff] {
                device.set_size(size);
            }
        });
    }),
    registers("rings-moved-while-running", |device| {
        change_while_running(device, |device| {
            device.set_addresses([RAM_END, u64::MAX, 0]);
        });
    }),
    registers("queue-disabled-while-running", |device| {
        change_while_running(device, |device| {
            for value in [0, 2, 0xffff, 1] {
                device.enable(value);
            }
        });
    }),
    registers("queues-that-do-not-exist", |device| {
        if agree(device, u32::MAX).is_err() {
            return;
        }
        for index in [7, 64, 255, 256, 0x7fff, 0xffff] {
            device.select(index);
            device.set_size(16);
            device.set_addresses([ARENA; 3]);
            device.enable(1);
        }
        device.set_status(RUNNING);
        for index in [7, 64, 255, 256, 0x7fff, 0xffff] {
            device.notify(index);
        }
    }),
    registers("queues-without-any", |device| {
        if agree(device, u32::MAX).is_ok() {
            device.set_status(RUNNING);
            for index in 0..8 {
                device.notify(index);
            }
        }
    }),
];
