//! What only one kind of device can be asked for: console, balloon, rng, pmem.

use super::{Attack, check, once, queue};
use crate::driver::Driver;
use crate::hw::memory;
use crate::ring::{NEXT, WRITE};

const CONTROL_TRANSMIT: u16 = 3;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;
/// Nothing of this program is there.
const FREE: core::ops::Range<u64> = 0x240_0000..0x400_0000;

/// Sends `len` bytes at the start of the queue's buffers, and waits until they are taken.
fn send(driver: &mut Driver, queue: u16, len: u32) -> Result<(), &'static str> {
    let ring = driver.rings[usize::from(queue)];
    ring.describe(0, ring.buffers(), len, 0, 0);
    driver.submit(queue, 0);
    driver.wait(queue).map(drop)
}

/// Sends the page numbers by `queue`.
fn pages(driver: &mut Driver, queue: u16, pages: &[u32]) -> Result<(), &'static str> {
    let at = driver.rings[usize::from(queue)].buffers();
    let mut len = 0;
    for page in pages {
        memory::write32(at + u64::from(len), *page);
        len += 4;
    }
    send(driver, queue, len)
}

/// Of the console, with all of its ports.
pub const CONSOLE: &[Attack] = &[
    check("control-messages-for-any-port", |driver| {
        let at = driver.rings[usize::from(CONTROL_TRANSMIT)].buffers();
        for port in [0, 1, 2, 15, 16, 17, 31, 0x7fff_ffff, u32::MAX] {
            for event in [0, 1, 2, 3, 4, 5, 6, 7, 8, 0xff, 0xffff] {
                for value in [0, 1, 0xffff] {
                    memory::write32(at, port);
                    memory::write16(at + 4, event);
                    memory::write16(at + 6, value);
                    send(driver, CONTROL_TRANSMIT, 8)?;
                }
            }
        }
        Ok(())
    }),
    check("control-messages-of-any-length", |driver| {
        memory::clear(
            driver.rings[usize::from(CONTROL_TRANSMIT)].buffers(),
            0x1000,
        );
        for len in [1, 7, 9, 100, 0x1000] {
            send(driver, CONTROL_TRANSMIT, len)?;
        }
        Ok(())
    }),
    check("introductions-without-end", |driver| {
        // Each is answered by several messages, for which there are no buffers.
        let at = driver.rings[usize::from(CONTROL_TRANSMIT)].buffers();
        memory::write64(at, 1 << 48);
        for _ in 0..500 {
            send(driver, CONTROL_TRANSMIT, 8)?;
        }
        Ok(())
    }),
    once("output-of-megabytes", |driver| {
        let ring = driver.rings[1];
        for head in 0..8 {
            ring.describe(head, FREE.start, 0x100_0000, 0, 0);
            driver.submit(1, head);
        }
        driver.settle(1);
    }),
];

/// Of the balloon.
pub const BALLOON: &[Attack] = &[
    check("pages-outside-memory", |driver| {
        for queue in [INFLATE, DEFLATE] {
            let outside = [
                0x4000,
                0x4001,
                0xd_0000,
                0xf_ec00,
                0xf_ee00,
                0x10_0000,
                0x8000_0000,
                u32::MAX,
            ];
            pages(driver, queue, &outside)?;
        }
        Ok(())
    }),
    check("all-pages-again-and-again", |driver| {
        for round in 0..3 {
            let queue = if round == 2 { DEFLATE } else { INFLATE };
            let mut first = FREE.start >> 12;
            while first < FREE.end >> 12 {
                let at = driver.rings[usize::from(queue)].buffers();
                for index in 0..0x400_u32 {
                    let page = u32::try_from(first).unwrap_or(0) + index;
                    memory::write32(at + 4 * u64::from(index), page);
                }
                send(driver, queue, 0x1000)?;
                first += 0x400;
            }
        }
        Ok(())
    }),
    check("same-page-a-thousand-times", |driver| {
        let page = u32::try_from(FREE.start >> 12).unwrap_or(0);
        let at = driver.rings[usize::from(INFLATE)].buffers();
        for index in 0..1000 {
            memory::write32(at + 4 * index, page);
        }
        send(driver, INFLATE, 4000)
    }),
    once("lists-of-half-a-page-number", |driver| {
        for len in [1, 2, 3, 5, 4095] {
            let ring = driver.rings[usize::from(INFLATE)];
            ring.describe(0, ring.buffers(), len, 0, 0);
            driver.submit(INFLATE, 0);
        }
        driver.settle(INFLATE.into());
    }),
    once("statistics-of-nonsense", |driver| {
        for len in [1, 9, 10, 11, 0x1000, 0x100_0000] {
            let ring = driver.rings[usize::from(STATISTICS)];
            ring.describe(0, FREE.start, len, 0, 0);
            driver.submit(STATISTICS, 0);
        }
        driver.settle(STATISTICS.into());
    }),
    queue("reports-of-half-pages-and-of-used-ones", |driver, index| {
        for (address, len) in [
            (FREE.start + 1, 0x1000),
            (FREE.start, 1),
            (FREE.start + 0x800, 0x10_0000),
        ] {
            let ring = driver.rings[usize::from(index)];
            ring.describe(0, address, len, WRITE, 0);
            driver.submit(index, 0);
        }
        driver.settle(index.into());
    }),
];

/// Of the rng.
pub const RNG: &[Attack] = &[
    check("gigabytes-of-entropy", |driver| {
        let ring = driver.rings[0];
        let count: u16 = 100;
        for one in 0..count {
            let next = if one + 1 < count { NEXT } else { 0 };
            ring.describe_indirect(one, FREE.start, 0x1c0_0000, WRITE | next, one + 1);
        }
        ring.describe(
            0,
            ring.table(),
            16 * u32::from(count),
            crate::ring::INDIRECT,
            0,
        );
        driver.submit(0, 0);
        match driver.wait(0)? {
            1..=0x1_0000 => Ok(()),
            _ => Err("one request gets more than 64 KiB"),
        }
    }),
    once("entropy-into-readable-buffers", |driver| {
        let ring = driver.rings[0];
        ring.describe(0, ring.buffers(), 64, 0, 0);
        driver.submit(0, 0);
        driver.settle(0);
    }),
];

/// Of persistent memory.
pub const PMEM: &[Attack] = &[
    check("flushes-of-nonsense", |driver| {
        let ring = driver.rings[0];
        let at = ring.buffers();
        for (kind, asked, answer) in [
            (1, 4, 4),
            (u32::MAX, 4, 4),
            (0, 3, 4),
            (0, 4, 3),
            (0, 4096, 4096),
        ] {
            memory::write32(at, kind);
            ring.describe(0, at, asked, NEXT, 1);
            ring.describe(1, at + 0x1000, answer, WRITE, 0);
            driver.submit(0, 0);
            driver.wait(0)?;
        }
        Ok(())
    }),
    check("flush-storm", |driver| {
        let ring = driver.rings[0];
        memory::write32(ring.buffers(), 0);
        ring.describe(0, ring.buffers(), 4, NEXT, 1);
        ring.describe(1, ring.buffers() + 8, 4, WRITE, 0);
        for _ in 0..64 {
            driver.submit(0, 0);
            driver.wait(0)?;
        }
        Ok(())
    }),
];
