//! Rings whose indices lie, and heads that are offered again and again.

use super::{Attack, queue};
use crate::driver::Driver;
use crate::ring::{NEXT, WRITE};

/// Sets the available index to `index`, rings, and waits.
fn jump(driver: &mut Driver, queue: u16, by: impl FnOnce(u16) -> u16) {
    let ring = driver.rings[usize::from(queue)];
    ring.describe(0, ring.buffers(), 16, 0, 0);
    ring.set_available_index(by(ring.size()));
    driver.device.notify(queue);
    driver.settle(queue.into());
}

/// Offers descriptor `head` as it is `times` times at once.
fn again(driver: &mut Driver, queue: u16, times: u16, flags: u16) {
    let ring = driver.rings[usize::from(queue)];
    ring.describe(0, ring.buffers(), 64, flags, 0);
    for _ in 0..times {
        driver.rings[usize::from(queue)].offer(0);
    }
    driver.device.notify(queue);
    driver.settle(queue.into());
}

pub const ATTACKS: &[Attack] = &[
    queue("available-index-one-too-far", |driver, index| {
        jump(driver, index, |size| size + 1);
    }),
    queue("available-index-half-around", |driver, index| {
        jump(driver, index, |_| 0x8000);
    }),
    queue("available-index-backwards", |driver, index| {
        jump(driver, index, |_| 0xffff);
    }),
    queue("available-index-full-of-the-same-head", |driver, index| {
        jump(driver, index, |size| size);
    }),
    queue("same-head-in-flight-readable", |driver, index| {
        again(driver, index, 2, 0);
    }),
    queue("same-head-in-flight-writable", |driver, index| {
        again(driver, index, 16, WRITE);
    }),
    queue("same-head-thousands-of-times", |driver, index| {
        let ring = driver.rings[usize::from(index)];
        ring.describe(0, ring.buffers(), 16, WRITE, 0);
        for round in 0..2000 {
            driver.rings[usize::from(index)].offer(0);
            if round % 16 == 0 {
                driver.device.notify(index);
            }
        }
        driver.device.notify(index);
        driver.settle(index.into());
    }),
    queue("used-index-overwritten", |driver, index| {
        let ring = driver.rings[usize::from(index)];
        ring.describe(0, ring.buffers(), 16, WRITE, 0);
        ring.set_used_index(0x1234);
        driver.submit(index, 0);
        driver.settle(index.into());
        ring.set_used_index(0xffff);
        driver.device.notify(index);
    }),
    queue("descriptors-rewritten-while-served", |driver, index| {
        let ring = driver.rings[usize::from(index)];
        let at = ring.buffers();
        ring.describe(1, at, 16, WRITE, 0);
        driver.submit(index, 0);
        for round in 0..200 {
            let flags = [0, NEXT, WRITE, NEXT | WRITE][usize::from(round % 4_u16)];
            let address = [at, 1 << 40, 0xd000_0000, 0][usize::from(round / 2 % 4)];
            ring.describe(0, address, u32::from(round) << 8, flags, round % 24);
            driver.rings[usize::from(index)].offer(round % 16);
            if round % 8 == 0 {
                driver.device.notify(index);
            }
        }
        driver.settle(index.into());
    }),
];
