//! Descriptor chains that no driver may make (virtio 1.2 §2.7.5).

use super::{Attack, queue};
use crate::driver::Driver;
use crate::ring::{INDIRECT, NEXT, Ring, WRITE};

const RAM_END: u64 = 64 << 20;

/// Makes a chain, offers it, and waits what becomes of it.
fn offer(driver: &mut Driver, index: u16, make: impl FnOnce(&Ring, u64)) {
    let ring = driver.rings[usize::from(index)];
    make(&ring, ring.buffers());
    driver.submit(index, 0);
    driver.settle(index.into());
}

/// One buffer, once for the device to read and once for it to write.
fn buffer(driver: &mut Driver, index: u16, address: u64, len: u32) {
    for (head, flags) in [(0, 0), (1, WRITE)] {
        let ring = driver.rings[usize::from(index)];
        ring.describe(head, address, len, flags, 0);
        driver.submit(index, head);
    }
    driver.settle(index.into());
}

pub const ATTACKS: &[Attack] = &[
    queue("chain-loops-on-itself", |driver, index| {
        offer(driver, index, |ring, at| ring.describe(0, at, 16, NEXT, 0));
    }),
    queue("chain-loops-over-all", |driver, index| {
        offer(driver, index, |ring, at| {
            for one in 0..ring.size() {
                ring.describe(one, at, 16, NEXT, (one + 1) % ring.size());
            }
        });
    }),
    queue("chain-next-out-of-range", |driver, index| {
        offer(driver, index, |ring, at| {
            ring.describe(0, at, 16, NEXT, ring.size());
        });
    }),
    queue("chain-next-far-out-of-range", |driver, index| {
        offer(driver, index, |ring, at| {
            ring.describe(0, at, 16, NEXT, 0xffff);
        });
    }),
    queue("head-out-of-range", |driver, index| {
        let size = driver.rings[usize::from(index)].size();
        driver.submit(index, size);
        driver.settle(index.into());
    }),
    queue("head-far-out-of-range", |driver, index| {
        driver.submit(index, 0xffff);
        driver.settle(index.into());
    }),
    queue("buffer-empty", |driver, index| {
        let at = driver.rings[usize::from(index)].buffers();
        buffer(driver, index, at, 0);
    }),
    queue("buffer-of-4-gib", |driver, index| {
        let at = driver.rings[usize::from(index)].buffers();
        buffer(driver, index, at, u32::MAX);
    }),
    queue("buffer-outside-memory", |driver, index| {
        buffer(driver, index, 1 << 40, 512);
    }),
    queue("buffer-over-the-end-of-memory", |driver, index| {
        buffer(driver, index, RAM_END - 1, 2);
    }),
    queue("buffer-64-kib-over-the-end-of-memory", |driver, index| {
        buffer(driver, index, RAM_END - 16, 0x1_0000);
    }),
    queue("buffer-in-the-hole", |driver, index| {
        buffer(driver, index, 0xd000_0000, 0x1000);
    }),
    queue("buffer-in-the-local-apic", |driver, index| {
        buffer(driver, index, 0xfee0_0000, 0x1000);
    }),
    queue("buffer-in-own-registers", |driver, index| {
        let base = driver.device.base();
        buffer(driver, index, base, 0x100);
    }),
    queue("buffer-wraps-the-address-space", |driver, index| {
        buffer(driver, index, u64::MAX - 15, 32);
    }),
    queue("buffer-wraps-to-zero", |driver, index| {
        buffer(driver, index, u64::MAX, 1);
    }),
    queue("buffer-is-its-own-descriptor", |driver, index| {
        let [table, ..] = driver.rings[usize::from(index)].addresses();
        buffer(driver, index, table, 64);
    }),
    queue("buffer-is-the-used-ring", |driver, index| {
        let [.., used] = driver.rings[usize::from(index)].addresses();
        buffer(driver, index, used, 64);
    }),
    queue("readable-after-writable", |driver, index| {
        offer(driver, index, |ring, at| {
            ring.describe(0, at, 16, WRITE | NEXT, 1);
            ring.describe(1, at + 64, 16, 0, 0);
        });
    }),
    queue("chain-of-more-than-4-gib", |driver, index| {
        offer(driver, index, |ring, _| {
            for one in 0..ring.size() {
                let next = if one + 1 < ring.size() { NEXT } else { 0 };
                ring.describe(one, 0, 0x3ff_0000, next, one + 1);
            }
        });
    }),
    queue(
        "indirect-table-names-all-memory-1024-times",
        |driver, index| {
            offer(driver, index, |ring, _| {
                for one in 0..512 {
                    let next = if one < 511 { NEXT } else { 0 };
                    ring.describe_indirect(one, 0x200_0000, 0x10_0000, WRITE | next, one + 1);
                }
                ring.describe(0, ring.table(), 16 * 512, INDIRECT, 0);
            });
        },
    ),
    queue("indirect-in-indirect", |driver, index| {
        offer(driver, index, |ring, _| {
            ring.describe_indirect(0, ring.table(), 16, INDIRECT, 0);
            ring.describe(0, ring.table(), 16, INDIRECT, 0);
        });
    }),
    queue("indirect-and-next", |driver, index| {
        offer(driver, index, |ring, at| {
            ring.describe_indirect(0, at, 16, 0, 0);
            ring.describe(0, ring.table(), 16, INDIRECT | NEXT, 1);
            ring.describe(1, at, 16, 0, 0);
        });
    }),
    queue("indirect-table-empty", |driver, index| {
        offer(driver, index, |ring, _| {
            ring.describe(0, ring.table(), 0, INDIRECT, 0);
        });
    }),
    queue("indirect-table-of-half-a-descriptor", |driver, index| {
        offer(driver, index, |ring, _| {
            ring.describe(0, ring.table(), 24, INDIRECT, 0);
        });
    }),
    queue("indirect-table-of-4-gib", |driver, index| {
        offer(driver, index, |ring, _| {
            ring.describe(0, 0, 0xffff_fff0, INDIRECT, 0);
        });
    }),
    queue("indirect-table-outside-memory", |driver, index| {
        offer(driver, index, |ring, _| {
            ring.describe(0, RAM_END - 16, 32, INDIRECT, 0);
        });
    }),
    queue("indirect-table-loops", |driver, index| {
        offer(driver, index, |ring, at| {
            ring.describe_indirect(0, at, 16, NEXT, 1);
            ring.describe_indirect(1, at, 16, NEXT, 0);
            ring.describe(0, ring.table(), 32, INDIRECT, 0);
        });
    }),
    queue("indirect-next-out-of-range", |driver, index| {
        offer(driver, index, |ring, at| {
            ring.describe_indirect(0, at, 16, NEXT, 2);
            ring.describe(0, ring.table(), 32, INDIRECT, 0);
        });
    }),
    queue("flags-nobody-knows", |driver, index| {
        offer(driver, index, |ring, at| {
            ring.describe(0, at, 16, 0xfff8, 0);
        });
    }),
];
