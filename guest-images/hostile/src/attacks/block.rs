//! Requests that no disk can grant, and some that it must (virtio 1.2 §5.2.6).

use super::{Attack, check, once};
use crate::driver::{Driver, INDIRECT_DESC};
use crate::hw::memory;
use crate::ring::{NEXT, Ring, WRITE};

const OK: u8 = 0;
const READ: u32 = 0;
const WRITE_OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const DATA: u64 = 0x200;

/// Sectors of the disk.
fn capacity(driver: &Driver) -> u64 {
    memory::read64(driver.device.config())
}

/// Reads `len` bytes from `sector` on, which must fail.
fn refused(driver: &mut Driver, kind: u32, sector: u64, len: u32) -> Result<(), &'static str> {
    match driver.block(kind, sector, len)? {
        OK => Err("a request that cannot be granted is said to be done"),
        _ => Ok(()),
    }
}

/// Writes a header.
fn header(at: u64, kind: u32, sector: u64) {
    memory::write64(at, kind.into());
    memory::write64(at + 8, sector);
}

/// A request whose data the device reads; its status.
fn outgoing(driver: &mut Driver, kind: u32, sector: u64, len: u32) -> Result<u8, &'static str> {
    let ring = driver.rings[0];
    let at = ring.buffers();
    header(at, kind, sector);
    memory::write8(at + 16, 0xff);
    ring.describe(0, at, 16, NEXT, 1);
    ring.describe(1, at + DATA, len, NEXT, 2);
    ring.describe(2, at + 16, 1, WRITE, 0);
    driver.submit(0, 0);
    driver.wait(0)?;
    Ok(memory::read8(at + 16))
}

/// A range to discard or to zero, which must fail.
fn range(driver: &mut Driver, sector: u64, sectors: u32, flags: u32) -> Result<(), &'static str> {
    let at = driver.rings[0].buffers() + DATA;
    for kind in [DISCARD, WRITE_ZEROES] {
        memory::write64(at, sector);
        memory::write32(at + 8, sectors);
        memory::write32(at + 12, flags);
        if outgoing(driver, kind, 0, 16)? == OK {
            return Err("an absurd range is said to be discarded");
        }
    }
    Ok(())
}

/// A chain that may be no request at all.
fn chain(driver: &mut Driver, make: impl FnOnce(&Ring, u64)) {
    let ring = driver.rings[0];
    header(ring.buffers(), READ, 0);
    make(&ring, ring.buffers());
    driver.submit(0, 0);
    driver.settle(0);
}

pub const ATTACKS: &[Attack] = &[
    check("read-past-the-capacity", |driver| {
        let end = capacity(driver);
        for sector in [
            end,
            end - 1,
            end + 1,
            1 << 55,
            (1 << 55) - 1,
            u64::MAX,
            u64::MAX / 512,
        ] {
            refused(driver, READ, sector, 1024)?;
        }
        Ok(())
    }),
    check("write-past-the-capacity", |driver| {
        let end = capacity(driver);
        for sector in [end, end - 1, 1 << 55, u64::MAX, u64::MAX / 512 + 1] {
            if outgoing(driver, WRITE_OUT, sector, 1024)? == OK {
                return Err("a write past the end is said to be done");
            }
        }
        Ok(())
    }),
    check("reset-with-writes-not-yet-flushed", |driver| {
        // Each in a place that a thin image has yet to give it.
        for place in 0..8 {
            if outgoing(driver, WRITE_OUT, 128 * place, 512)? != OK {
                return Err("a good write fails");
            }
        }
        driver.device.set_status(0);
        Ok(())
    }),
    check("good-ranges-between-bad-ones", |driver| {
        let features = INDIRECT_DESC | 1 << 13 | 1 << 14;
        let mut driver = Driver::start(&driver.device, super::ARENA, features)?;
        let at = driver.rings[0].buffers() + DATA;
        // Zeroes with and without leave to give the space back, then a discard.
        for (kind, flags) in [(WRITE_ZEROES, 0), (WRITE_ZEROES, 1), (DISCARD, 0)] {
            range(&mut driver, u64::MAX, 1, 0)?;
            memory::write64(at, 1024);
            memory::write32(at + 8, 256);
            memory::write32(at + 12, flags);
            if outgoing(&mut driver, kind, 0, 16)? != OK {
                return Err("a good range is refused");
            }
        }
        if driver.block(READ, 1024, 512)? != OK || memory::read64(at) != 0 {
            return Err("what was zeroed does not read as zero");
        }
        // Of data that belong to no flush nothing is done.
        outgoing(&mut driver, FLUSH, 0, 512).map(drop)
    }),
    check("length-of-half-a-sector", |driver| {
        for len in [1, 511, 513, 1000] {
            refused(driver, READ, 0, len)?;
        }
        Ok(())
    }),
    check("types-nobody-knows", |driver| {
        for kind in [
            2,
            3,
            5,
            6,
            7,
            9,
            10,
            12,
            14,
            15,
            16,
            17,
            18,
            19,
            20,
            21,
            22,
            255,
            0xffff,
            u32::MAX,
        ] {
            refused(driver, kind, 0, 512)?;
        }
        Ok(())
    }),
    check("discard-with-absurd-ranges", |driver| {
        let end = capacity(driver);
        range(driver, end, 1, 0)?;
        range(driver, 0, u32::MAX, 0)?;
        range(driver, u64::MAX, 1, 0)?;
        range(driver, u64::MAX / 512, u32::MAX, 0)?;
        range(driver, 0, 1, 0xffff_fffe)?;
        range(driver, end - 1, 2, 0)
    }),
    check("discard-without-a-range", |driver| {
        for len in [1, 15, 17, 32, 4096] {
            if outgoing(driver, DISCARD, 0, len)? == OK {
                return Err("a range of another length is said to be discarded");
            }
        }
        Ok(())
    }),
    check("id-of-any-length", |driver| {
        for len in [1, 19, 20, 21, 4096] {
            driver.block(GET_ID, u64::MAX, len)?;
        }
        Ok(())
    }),
    check("header-in-single-bytes", |driver| {
        let ring = driver.rings[0];
        let at = ring.buffers();
        header(at, READ, 1);
        memory::write8(at + 0x100, 0xff);
        for byte in 0..16_u16 {
            ring.describe_indirect(byte, at + u64::from(byte), 1, NEXT, byte + 1);
        }
        ring.describe_indirect(16, at + DATA, 512, NEXT | WRITE, 17);
        ring.describe_indirect(17, at + 0x100, 1, WRITE, 0);
        ring.describe(0, ring.table(), 16 * 18, crate::ring::INDIRECT, 0);
        driver.submit(0, 0);
        driver.wait(0)?;
        match memory::read8(at + 0x100) {
            OK => Ok(()),
            _ => Err("a header in many pieces is not read"),
        }
    }),
    once("no-status-byte", |driver| {
        chain(driver, |ring, at| ring.describe(0, at, 16, 0, 0));
    }),
    once("status-byte-readable", |driver| {
        chain(driver, |ring, at| {
            ring.describe(0, at, 16, NEXT, 1);
            ring.describe(1, at + 16, 1, 0, 0);
        });
    }),
    once("status-byte-outside-memory", |driver| {
        chain(driver, |ring, at| {
            ring.describe(0, at, 16, NEXT, 1);
            ring.describe(1, at + DATA, 512, NEXT | WRITE, 2);
            ring.describe(2, 0xfee0_0000, 1, WRITE, 0);
        });
    }),
    once("only-a-status-byte", |driver| {
        chain(driver, |ring, at| ring.describe(0, at, 1, WRITE, 0));
    }),
    once("header-too-short", |driver| {
        chain(driver, |ring, at| {
            ring.describe(0, at, 15, NEXT, 1);
            ring.describe(1, at + 16, 1, WRITE, 0);
        });
    }),
    once("header-is-also-data-and-status", |driver| {
        chain(driver, |ring, at| {
            ring.describe(0, at, 16, NEXT, 1);
            ring.describe(1, at, 512, NEXT | WRITE, 2);
            ring.describe(2, at, 1, WRITE, 0);
        });
    }),
    once("data-is-the-rings", |driver| {
        chain(driver, |ring, at| {
            let [table, ..] = ring.addresses();
            ring.describe(0, at, 16, NEXT, 1);
            ring.describe(1, table, 0x4000, NEXT | WRITE, 2);
            ring.describe(2, at + 16, 1, WRITE, 0);
        });
    }),
    check("sixteen-gib-asked-for-at-once", |driver| {
        // Each of the queue's requests names the same 30 MiB many times.
        let ring = driver.rings[0];
        let at = ring.buffers();
        for head in 0..5_u16 {
            header(at + 32 * u64::from(head), READ, 0);
        }
        for one in 0..400 {
            ring.describe_indirect(
                one + 1,
                0x200_0000,
                0x1e0_0000 & !0x1ff,
                NEXT | WRITE,
                one + 2,
            );
        }
        ring.describe_indirect(0, at, 16, NEXT, 1);
        ring.describe_indirect(130, at + 0x100, 1, WRITE, 0);
        ring.describe(0, ring.table(), 16 * 131, crate::ring::INDIRECT, 0);
        memory::write8(at + 0x100, 0xff);
        driver.submit(0, 0);
        driver.wait(0)?;
        match memory::read8(at + 0x100) {
            OK => Err("more than the disk is said to be read"),
            _ => Ok(()),
        }
    }),
];
