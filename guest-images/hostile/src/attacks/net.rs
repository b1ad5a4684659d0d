//! Frames with headers that lie (virtio 1.2 §5.1.6).

use super::{Attack, check, once};
use crate::driver::Driver;
use crate::hw::memory;
use crate::ring::{NEXT, WRITE};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const HEADER: u32 = 12;

/// `struct virtio_net_hdr_v1`: flags and kind; header and segment length; checksum start and offset.
fn header(at: u64, flags: u8, kind: u8, lengths: [u16; 4], buffers: u16) {
    memory::write8(at, flags);
    memory::write8(at + 1, kind);
    for (place, value) in (0..4).map(|index| at + 2 + 2 * index).zip(lengths) {
        memory::write16(place, value);
    }
    memory::write16(at + 10, buffers);
}

/// Sends a frame of `len` bytes with its header, and waits until it is taken.
fn send(driver: &mut Driver, len: u32) -> Result<(), &'static str> {
    let ring = driver.rings[usize::from(TRANSMIT)];
    ring.describe(0, ring.buffers(), HEADER + len, 0, 0);
    driver.submit(TRANSMIT, 0);
    driver.wait(TRANSMIT).map(drop)
}

/// An IPv4 and TCP frame, so that offloads have something to work on.
fn frame(at: u64) {
    memory::clear(at, 0x800);
    memory::write64(at, u64::MAX);
    memory::write16(at + 12, 0x0008);
    memory::write8(at + 14, 0x45);
    memory::write8(at + 23, 6);
    memory::write8(at + 46, 0x50);
}

pub const ATTACKS: &[Attack] = &[
    check("offloads-with-absurd-lengths", |driver| {
        let at = driver.rings[usize::from(TRANSMIT)].buffers();
        for kind in [0, 1, 3, 4, 5, 0x80, 0x81, 0xff] {
            for flags in [0, 1, 2, 0xff] {
                for lengths in [
                    [0, 0, 0, 0],
                    [0xffff; 4],
                    [54, 1, 34, 16],
                    [54, 0, 34, 16],
                    [0, 1400, 0xfffe, 0xfffe],
                    [2000, 1400, 34, 16],
                ] {
                    header(at, flags, kind, lengths, 0xffff);
                    frame(at + u64::from(HEADER));
                    send(driver, 200)?;
                }
            }
        }
        Ok(())
    }),
    check("frames-of-any-length", |driver| {
        let at = driver.rings[usize::from(TRANSMIT)].buffers();
        memory::clear(at, 0x8000);
        for len in [0, 1, 13, 14, 15, 60, 1514, 1515, 9000, 0x7ff4 - HEADER] {
            send(driver, len)?;
        }
        Ok(())
    }),
    check("frame-of-megabytes", |driver| {
        let ring = driver.rings[usize::from(TRANSMIT)];
        for len in [0xffff, 0x1_0000, 0x1_000d, 0x40_0000, 0x200_0000] {
            ring.describe(0, 0x100_0000, len, 0, 0);
            driver.submit(TRANSMIT, 0);
            driver.wait(TRANSMIT)?;
        }
        Ok(())
    }),
    once("header-too-short", |driver| {
        for len in [1, 9, 10, 11] {
            let ring = driver.rings[usize::from(TRANSMIT)];
            ring.describe(0, ring.buffers(), len, 0, 0);
            driver.submit(TRANSMIT, 0);
        }
        driver.settle(TRANSMIT.into());
    }),
    once("frame-in-hundreds-of-pieces", |driver| {
        let ring = driver.rings[usize::from(TRANSMIT)];
        let at = ring.buffers();
        memory::clear(at, 0x800);
        for one in 0..700_u16 {
            let next = if one < 699 { NEXT } else { 0 };
            ring.describe_indirect(one, at + u64::from(one), 1, next, one + 1);
        }
        ring.describe(0, ring.table(), 16 * 700, crate::ring::INDIRECT, 0);
        driver.submit(TRANSMIT, 0);
        driver.settle(TRANSMIT.into());
    }),
    once("transmit-buffer-writable", |driver| {
        let ring = driver.rings[usize::from(TRANSMIT)];
        ring.describe(0, ring.buffers(), 100, WRITE, 0);
        driver.submit(TRANSMIT, 0);
        driver.settle(TRANSMIT.into());
    }),
    once("receive-buffers-of-a-byte", |driver| {
        // The driver's own frames do not come back; those of the flood outside do.
        for head in 0..16 {
            let ring = driver.rings[usize::from(RECEIVE)];
            ring.describe(head, ring.buffers() + u64::from(head), 1, WRITE, 0);
            driver.submit(RECEIVE, head);
        }
        driver.settle(RECEIVE.into());
    }),
    once("receive-buffers-readable", |driver| {
        for head in 0..16 {
            let ring = driver.rings[usize::from(RECEIVE)];
            ring.describe(head, ring.buffers(), 2048, 0, 0);
            driver.submit(RECEIVE, head);
        }
        driver.settle(RECEIVE.into());
    }),
    check("flood-without-a-pause", |driver| {
        let ring = driver.rings[usize::from(TRANSMIT)];
        memory::clear(ring.buffers(), 2048);
        ring.describe(0, ring.buffers(), 1526, 0, 0);
        for _ in 0..200 {
            driver.submit(TRANSMIT, 0);
            driver.wait(TRANSMIT)?;
        }
        Ok(())
    }),
];
