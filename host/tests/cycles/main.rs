//! Thousands of snapshots and restores, by the real processes: the store's service, and VMMs with guests on KVM that have
//! requests to their disk under way all the time. After each restore the guest itself compares its memory with its disk.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test whose world cannot be set up has failed, and says what its processes said"
)]

#[expect(dead_code, reason = "other tests need more of it")]
#[path = "../../../vmm/tests/guest/mod.rs"]
mod guest;
mod service;
mod vmm;

use std::io::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use service::Service;
use vmm::{Said, Vmm};

/// Cycles if nobody says how many.
const CYCLES: u32 = 304;
/// Says how many.
const ENVIRONMENT: &str = "DARUMA_CYCLES";
/// Snapshots after which all but the newest are deleted.
const KEPT: usize = 8;
/// Guests that run at the same time.
const AT_ONCE: usize = 2;

/// A guest's devices and processors.
#[derive(Clone, Copy, Debug)]
struct Shape {
    pci: bool,
    vcpus: u8,
}

/// Whether there is a KVM. Without one the test fails, unless the user knows.
fn have_kvm() -> bool {
    let there = std::path::Path::new("/dev/kvm").exists();
    let known = std::env::var("DARUMA_NO_KVM").as_deref() == Ok("1");
    assert!(
        there || known,
        "/dev/kvm does not exist; DARUMA_NO_KVM=1 skips the tests that need it"
    );
    there
}

/// Numbers that are the same each time (xorshift).
fn dice(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Takes a guest through so many cycles.
fn cycles(shape: Shape, count: u32) {
    let service = Service::start();
    let mut state = u64::from(shape.vcpus) << 8 | u64::from(shape.pci) | 1 << 40;
    let nonce = [b'n', shape.vcpus, u8::from(shape.pci), b'!'];
    let kernel = guest::Code::new().count_in_flight(shape.pci).image();
    let mut vmm = Vmm::start(&service, &service.open(None), shape, kernel.path());
    vmm.say(&nonce);
    let mut before = vmm.check(&nonce);
    let mut kept = Vec::new();
    for cycle in 0..count {
        // At any moment of whatever is under way.
        thread::sleep(Duration::from_micros(dice(&mut state) % 3000));
        let id = service.take();
        kept.push(id);
        // What comes after the snapshot is undone; sometimes it is much.
        if dice(&mut state).is_multiple_of(4) {
            vmm.check(&nonce);
        }
        vmm.kill();
        service.close();
        // Now and then it is an earlier one.
        let back = usize::try_from(dice(&mut state) % 8).unwrap();
        let earlier = (back < kept.len()).then(|| kept[kept.len() - 1 - back]);
        let from = match dice(&mut state) % 5 {
            0 => earlier.unwrap_or(id),
            _ => id,
        };
        vmm = Vmm::start(&service, &service.open(Some(from)), shape, kernel.path());
        let mut after = vmm.check(&nonce);
        if from == id {
            let what = format!("{shape:?}, cycle {cycle}, snapshot {id}: {before:?}");
            after.follows(&before, &what);
            // The others were woken, and may not have come to it.
            for _ in 0..100 {
                if shape.vcpus == 1 || after.first != before.first {
                    break;
                }
                after = vmm.check(&nonce);
            }
            assert_eq!(
                shape.vcpus > 1,
                after.first != before.first,
                "{what} {after:?}"
            );
        }
        before = after;
        if kept.len() >= KEPT {
            let newest = kept.split_off(kept.len() - 1);
            vmm.kill();
            service.close();
            // Its disk stands on that one from here on.
            let opened = service.open(Some(newest[0]));
            for id in kept.drain(..) {
                service.delete(id);
            }
            vmm = Vmm::start(&service, &opened, shape, kernel.path());
            before = vmm.check(&nonce);
            kept = newest;
        }
    }
    vmm.kill();
    service.close();
    service.verify();
}

#[test]
fn memory_and_disk_agree_after_every_restore_with_requests_under_way() {
    if !have_kvm() {
        return;
    }
    let count = std::env::var(ENVIRONMENT).map_or(CYCLES, |count| count.parse().unwrap());
    let shapes = (1..=4).flat_map(|vcpus| [false, true].map(|pci| Shape { pci, vcpus }));
    let shapes: Vec<_> = shapes.collect();
    let each = count.div_ceil(u32::try_from(shapes.len()).unwrap());
    let next = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(shape) = {
                    let next = next.fetch_add(1, Ordering::Relaxed);
                    shapes.get(usize::try_from(next).unwrap())
                } {
                    cycles(*shape, each);
                }
            });
        }
    });
    // Not by `println`, which the test harness takes.
    writeln!(
        io::stdout(),
        "counted: {} cycles of snapshot and restore with requests to the disk under way, on PCI and MMIO, 1 to 4 vCPUs",
        each * u32::try_from(shapes.len()).unwrap()
    )
    .unwrap();
}

impl Said {
    /// Goes on from what was said before the snapshot.
    fn follows(&self, before: &Self, what: &str) {
        assert!(self.count >= before.count, "{what} {self:?}");
        // Of two words that are counted up one after the other, the second was read first.
        assert!(self.first >= self.second, "{what} {self:?}");
        assert!(self.first >= before.first, "{what} {self:?}");
    }
}
