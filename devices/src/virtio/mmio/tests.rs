use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, fence};

use proptest::prelude::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;
use crate::virtio::block::engine::Preference;
use crate::virtio::block::{Block, Engine, Options, RawFile};
use crate::virtio::queue::RING_FEATURES;
use crate::virtio::rng::Rng;
use crate::virtio::state::{DRIVER_OK, NEEDS_RESET};
use crate::virtio::testing::{TestGuest, Transport};

fn disk() -> Block {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 * 512).unwrap();
    let disk = Box::new(RawFile::new(file, false).unwrap());
    let engine = Engine::new(Preference::Synchronous);
    Block::new(disk, engine, Options::default()).unwrap()
}

fn read(guest: &TestGuest, offset: u64) -> u32 {
    let mut data = [0; 4];
    guest.bus_device().read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(guest: &TestGuest, offset: u64, value: u32) {
    guest.bus_device().write(offset, &value.to_le_bytes());
}

#[test]
fn device_is_recognised() {
    let mut guest = TestGuest::new(Transport::Mmio, Rng::new());
    assert_eq!(read(&guest, 0x000), 0x7472_6976);
    assert_eq!(read(&guest, 0x004), 2);
    assert_eq!(read(&guest, 0x008), VIRTIO_ID_RNG);
    assert_ne!(read(&guest, 0x00c), 0);
    assert_eq!(guest.offered(), RING_FEATURES);
    write(&guest, 0x030, 0);
    assert_eq!(read(&guest, 0x034), 16);
}

#[test]
fn absent_shared_memory_reads_as_minus_one() {
    let guest = TestGuest::new(Transport::Mmio, Rng::new());
    write(&guest, 0x0ac, 3);
    for offset in [0x0b0, 0x0b4, 0x0b8, 0x0bc] {
        assert_eq!(read(&guest, offset), u32::MAX);
    }
}

#[test]
fn interrupt_carries_its_reason_until_acknowledged() {
    let mut guest = TestGuest::new(Transport::Mmio, Rng::new());
    let mut ring = guest.start_all();
    assert_eq!(read(&guest, 0x060), 0);
    let buffer = ring.buffer(8, true);
    ring.add(&[buffer]);
    guest.notify(0);
    assert_eq!(guest.interrupts(), 1);
    assert_eq!(guest.acknowledge(), USED_BUFFERS);
    assert_eq!(read(&guest, 0x060), 0);

    ring.set_available_index(99);
    guest.notify(0);
    assert_eq!(guest.interrupts(), 1);
    assert_eq!(guest.acknowledge(), CONFIG_CHANGED);
    assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn reset_clears_the_interrupt_status() {
    let mut guest = TestGuest::new(Transport::Mmio, Rng::new());
    let mut ring = guest.start_all();
    let buffer = ring.buffer(8, true);
    ring.add(&[buffer]);
    guest.notify(0);
    write(&guest, 0x070, 0);
    assert_eq!((read(&guest, 0x060), guest.status()), (0, 0));
}

#[test]
fn notifying_a_queue_that_does_not_exist_is_refused() {
    let mut guest = TestGuest::new(Transport::Mmio, Rng::new());
    let _ring = guest.start_all();
    for index in [1, 0x1_0000, u32::MAX] {
        write(&guest, 0x050, index);
    }
    guest.run();
    assert_eq!(guest.state().refused_writes(), 3);
    assert_eq!(guest.status() & (DRIVER_OK | NEEDS_RESET), DRIVER_OK);
}

#[test]
fn configuration_is_read_in_any_width_and_zero_beyond_its_end() {
    let guest = TestGuest::new(Transport::Mmio, disk());
    let mut capacity = [0xaa; 8];
    guest.bus_device().read(CONFIG, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 8);
    let mut byte = [0xaa];
    guest.bus_device().read(CONFIG, &mut byte);
    assert_eq!(byte, [8]);
    let mut over_the_end = [0xaa; 8];
    guest.bus_device().read(CONFIG + 20, &mut over_the_end);
    assert_eq!(over_the_end, [0, 2, 0, 0, 0, 0, 0, 0]);
    guest.bus_device().read(LEN - 8, &mut over_the_end);
    assert_eq!(over_the_end, [0; 8]);
}

/// Driver and device on threads of their own, each asleep whenever the other's event index lets it: no
/// request may be left lying because one of them slept through the other's last word.
#[test]
fn no_wake_up_is_lost_between_driver_and_device() {
    const REQUESTS: u32 = 20_000;
    const DEPTH: u32 = 16;
    let mut guest = TestGuest::new(Transport::Mmio, Rng::new());
    let mut ring = guest.start_all();
    let buffers: Vec<_> = (0..DEPTH).map(|_| ring.buffer(8, true)).collect();
    let (doorbells, line, mut thread) = guest.into_parts();
    let doorbell = &doorbells[0];
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let device = std::thread::spawn(move || {
        while !stopped.load(Ordering::SeqCst) {
            thread.run().unwrap();
        }
    });

    let index = |count: u32| u16::try_from(count % 0x1_0000).unwrap();
    let (mut offered, mut done) = (0, 0);
    while done < REQUESTS {
        let before = index(offered);
        // Batches of all sizes, so that each side meets the other awake and asleep.
        for _ in 0..(done % 7 + 1).min(DEPTH - (offered - done)) {
            ring.add(&[buffers[(offered % DEPTH) as usize]]);
            offered += 1;
        }
        fence(Ordering::SeqCst);
        // Ring only if the device's event index is among what was just offered (§2.7.10).
        let (now, event) = (index(offered), ring.available_event());
        if now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before) {
            doorbell.write(1).unwrap();
        }
        ring.set_used_event(index(done));
        fence(Ordering::SeqCst);
        let reaped = u32::try_from(std::iter::from_fn(|| ring.used()).count()).unwrap();
        done += reaped;
        if reaped == 0 {
            assert!(
                rung(&line),
                "asleep with {} requests under way",
                offered - done
            );
        }
    }
    stop.store(true, Ordering::SeqCst);
    doorbell.write(1).unwrap();
    device.join().unwrap();
}

/// Waits for `line`; `false` if it never rings.
fn rung(line: &EventFd) -> bool {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll
        .ctl(ControlOperation::Add, line.as_raw_fd(), event)
        .unwrap();
    // Long enough for the slowest machine: only a failure ever waits for it.
    let ready = epoll.wait(120_000, &mut [EpollEvent::default()]).unwrap();
    ready == 1 && line.read().is_ok()
}

/// Brings a guest's device to one of the statuses a driver can reach.
fn reach(guest: &mut TestGuest, status: u8) {
    let features = guest.offered();
    match status {
        0 => {}
        1 => drop(guest.add_status(1)),
        2 => drop(guest.add_status(3)),
        3 => drop(guest.negotiate(features)),
        4 => drop(guest.start_all()),
        5 => {
            guest.start_all().set_available_index(u16::MAX);
            guest.notify(0);
        }
        _ => {
            guest.start_all();
            guest.add_status(128);
        }
    }
}

/// What a driver can read of the device without changing it: 64 registers, and what is behind those
/// that can only be written.
fn visible(guest: &mut TestGuest) -> Vec<u32> {
    let mut seen: Vec<u32> = (0..CONFIG)
        .step_by(4)
        .map(|offset| read(guest, offset))
        .collect();
    let state = guest.state();
    seen.extend(
        [
            Register::DriverFeatures,
            Register::QueueSize,
            Register::QueueDescriptorsLow,
            Register::QueueDescriptorsHigh,
            Register::QueueAvailableLow,
            Register::QueueAvailableHigh,
            Register::QueueUsedLow,
            Register::QueueUsedHigh,
        ]
        .map(|register| state.read(register)),
    );
    seen
}

/// What is behind the registers that can only be written, whatever is selected.
fn behind(guest: &mut TestGuest) -> Vec<u32> {
    write(guest, 0x024, 0);
    write(guest, 0x030, 0);
    visible(guest).split_off(64)
}

#[test]
fn registers_answer_to_aligned_32_bits_only() {
    for status in 0..7 {
        let mut guest = TestGuest::new(Transport::Mmio, disk());
        reach(&mut guest, status);
        let before = visible(&mut guest);
        for offset in 0..CONFIG {
            for width in [1, 2, 4, 8] {
                if width == 4 && offset % 4 == 0 {
                    continue;
                }
                let mut data = vec![0xaa; width];
                guest.bus_device().read(offset, &mut data);
                assert_eq!(data, vec![0; width], "read of {width} at {offset:#x}");
                for byte in [0, 1, 0xff] {
                    guest.bus_device().write(offset, &vec![byte; width]);
                }
            }
        }
        guest.run();
        assert_eq!(visible(&mut guest), before, "status {status}");
    }
}

#[test]
fn every_register_in_every_status_keeps_the_device_alive() {
    for status in 0..7 {
        for offset in (0..LEN).step_by(4) {
            for value in [0, 1, 2, 0x10, 0x80, 0xffff, 0x8000_0000, u32::MAX] {
                // Past the registers and the configuration all is the same.
                if offset > 0x140 && offset + 8 < LEN {
                    continue;
                }
                let mut guest = TestGuest::new(Transport::Mmio, disk());
                reach(&mut guest, status);
                let before = behind(&mut guest);
                write(&guest, offset, value);
                guest.run();
                if status >= 4 && guest.status() != 0 {
                    let after = behind(&mut guest);
                    assert_eq!(
                        after, before,
                        "{value:#x} to {offset:#x} in status {status}"
                    );
                }
                // Whatever it was, a reset and a good driver get the device to work.
                let mut ring = guest.start_all();
                let header = ring.data(&[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                let id = ring.buffer(20, true);
                let end = ring.buffer(1, true);
                let head = ring.add(&[header, id, end]);
                guest.notify(0);
                assert_eq!(ring.used(), Some((head, 21)), "{value:#x} to {offset:#x}");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_accesses_are_harmless(
        status in 0..7_u8,
        accesses in proptest::collection::vec(
            (
                prop_oneof![8 => 0..0x140_u64, 1 => 0..LEN],
                proptest::sample::select(&[1_usize, 2, 4, 8][..]),
                prop_oneof![2 => 0..256_u64, 1 => any::<u64>()],
                any::<bool>(),
                any::<bool>(),
            ),
            0..80,
        ),
    ) {
        let mut guest = TestGuest::new(Transport::Mmio, disk());
        reach(&mut guest, status);
        for (offset, width, value, align, write) in accesses {
            let offset = if align { offset & !3 } else { offset };
            let mut data = value.to_le_bytes();
            if write {
                guest.bus_device().write(offset, &data[..width]);
            } else {
                guest.bus_device().read(offset, &mut data[..width]);
            }
            guest.run();
        }
        let mut ring = guest.start_all();
        prop_assert_eq!(guest.status() & NEEDS_RESET, 0);
        let header = ring.data(&[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let end = ring.buffer(1, true);
        let head = ring.add(&[header, end]);
        guest.notify(0);
        prop_assert_eq!(ring.used(), Some((head, 1)));
    }
}
