use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::pages::MAX_LIST;
use super::*;
use crate::memory::discard::PAGE;
use crate::memory::discard::testing::is_resident;
use crate::virtio::interrupt::QueueInterrupt;
use crate::virtio::testing::{
    Buffer, GuestRing, HIGH_BASE, HIGH_LEN, InterruptCounter, LOW_LEN, TestGuest, Transport,
    guest_memory,
};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
/// Where reports go by the specification, and where drivers that leave no gaps send them.
const REPORTS: [usize; 2] = [4, 3];

/// Pages of the test guest's memory that neither rings nor buffers are in: at the end of each region.
fn free_pages() -> impl Iterator<Item = u64> {
    (0x70..LOW_LEN / PAGE).chain(HIGH_BASE / PAGE..(HIGH_BASE + HIGH_LEN) / PAGE)
}

fn balloon(options: Options) -> Balloon {
    Balloon::new(options).unwrap()
}

fn reporting() -> Balloon {
    balloon(Options {
        page_reporting: true,
        ..Options::default()
    })
}

/// A guest that has written to all of its free pages.
fn guest(on: Transport, device: Balloon) -> (TestGuest, Vec<GuestRing>) {
    let mut guest = TestGuest::new(on, device);
    let features = guest.offered();
    let rings = guest.start_queues(features, &[32; QUEUES]);
    touch(&guest);
    (guest, rings)
}

fn touch(guest: &TestGuest) {
    for page in free_pages() {
        guest
            .memory
            .write_obj(7_u8, GuestAddress(page * PAGE))
            .unwrap();
    }
}

/// The free pages that the host has nothing behind.
fn gone(guest: &TestGuest) -> Vec<u64> {
    free_pages()
        .filter(|page| !is_resident(&guest.memory, page * PAGE))
        .collect()
}

fn list(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

/// Sends `data` by queue `index` and expects it back.
fn send(guest: &mut TestGuest, rings: &mut [GuestRing], index: usize, data: &[u8]) {
    let buffer = rings[index].data(data);
    exchange(guest, rings, index, buffer);
}

fn exchange(guest: &mut TestGuest, rings: &mut [GuestRing], index: usize, buffer: Buffer) {
    let head = rings[index].add(&[buffer]);
    guest.notify(u16::try_from(index).unwrap());
    assert_eq!(rings[index].used(), Some((head, 0)));
}

#[test]
fn pages_in_the_balloon_leave_the_process_and_come_back_empty() {
    for &on in Transport::ALL {
        let (mut guest, mut rings) = guest(on, reporting());
        assert!(gone(&guest).is_empty());
        send(
            &mut guest,
            &mut rings,
            INFLATE,
            &list(&[0x72, 0x71, 0x10f, 0x72, 0x7f]),
        );
        assert_eq!(gone(&guest), [0x71, 0x72, 0x7f, 0x10f]);
        // Deflating alone brings nothing; touching does.
        send(&mut guest, &mut rings, DEFLATE, &list(&[0x71, 0x72]));
        assert_eq!(gone(&guest), [0x71, 0x72, 0x7f, 0x10f]);
        let page = GuestAddress(0x71 * PAGE);
        assert_eq!(guest.memory.read_obj::<u8>(page).unwrap(), 0);
        guest.memory.write_obj(1_u8, page).unwrap();
        assert_eq!(gone(&guest), [0x72, 0x7f, 0x10f]);
    }
}

#[test]
fn reported_pages_leave_the_process_by_whichever_number_the_queue_has() {
    for &on in Transport::ALL {
        for queue in REPORTS {
            let (mut guest, mut rings) = guest(on, reporting());
            let range = |page: u64, pages: u32| Buffer {
                address: page * PAGE,
                len: pages * 4096,
                writable: true,
            };
            let head = rings[queue].add(&[range(0x7e, 2), range(0x100, 3)]);
            guest.notify(u16::try_from(queue).unwrap());
            assert_eq!(rings[queue].used(), Some((head, 0)));
            assert_eq!(gone(&guest), [0x7e, 0x7f, 0x100, 0x101, 0x102]);
        }
    }
}

#[test]
fn without_statistics_reports_may_come_by_the_third_queue() {
    for &on in Transport::ALL {
        let (mut guest, _) = guest(on, reporting());
        let features = guest.offered() & !F_STATS_VQ;
        let mut rings = guest.start_queues(features, &[32; 3]);
        let buffer = Buffer {
            address: 0x75 * PAGE,
            len: 4096,
            writable: true,
        };
        exchange(&mut guest, &mut rings, 2, buffer);
        assert_eq!(gone(&guest), [0x75]);
    }
}

#[test]
fn reports_that_nobody_agreed_on_take_nothing() {
    for &on in Transport::ALL {
        let (mut guest, mut rings) = guest(on, balloon(Options::default()));
        assert_eq!(guest.offered() & (F_PAGE_REPORTING | F_DEFLATE_ON_OOM), 0);
        for queue in REPORTS {
            let buffer = Buffer {
                address: 0x75 * PAGE,
                len: 4096,
                writable: true,
            };
            exchange(&mut guest, &mut rings, queue, buffer);
        }
        assert!(gone(&guest).is_empty());
    }
}

#[test]
fn memory_that_is_only_readable_is_not_given_back_by_a_report() {
    for &on in Transport::ALL {
        let (mut guest, mut rings) = guest(on, reporting());
        let buffer = Buffer {
            address: 0x75 * PAGE,
            len: 4096,
            writable: false,
        };
        exchange(&mut guest, &mut rings, REPORTS[0], buffer);
        assert!(gone(&guest).is_empty());
    }
}

#[test]
fn a_list_that_never_ends_is_cut_off() {
    for &on in Transport::ALL {
        let (mut guest, mut rings) = guest(on, reporting());
        // One page of numbers, again and again: the last number is beyond what is taken.
        let zeroes = rings[DEFLATE].data(&[0xff; 4096]);
        let mut buffers = vec![zeroes; MAX_LIST * 4 / 4096];
        buffers.push(rings[INFLATE].data(&list(&[0x75])));
        let head = rings[INFLATE].add(&buffers);
        guest.notify(0);
        assert_eq!(rings[INFLATE].used(), Some((head, 0)));
        assert!(gone(&guest).is_empty());
        buffers.remove(0);
        rings[INFLATE].add(&buffers);
        guest.notify(0);
        assert_eq!(gone(&guest), [0x75]);
    }
}

#[test]
fn the_target_is_in_the_configuration_and_a_change_interrupts() {
    for &on in Transport::ALL {
        let device = balloon(Options {
            target_pages: 0x1234,
            deflate_on_oom: true,
            ..Options::default()
        });
        let target = device.target();
        let (mut guest, _) = guest(on, device);
        assert_ne!(guest.offered() & F_DEFLATE_ON_OOM, 0);
        assert_eq!((guest.config_u32(0), guest.config_u32(4)), (0x1234, 0));
        guest.write_config(4, &0x56_u32.to_le_bytes());
        assert_eq!((guest.config_u32(0), guest.config_u32(4)), (0x1234, 0x56));
        target.set(0x1234).unwrap();
        guest.run();
        assert_eq!(guest.acknowledge() & 2, 0, "nothing has changed");
        target.set(0x777).unwrap();
        guest.run();
        assert_eq!(guest.acknowledge() & 2, 2);
        assert_eq!(guest.config_u32(0), 0x777);
        // The target is not the driver's to set.
        guest.write_config(0, &[0xff; 4]);
        guest.write_config(2, &[0xee; 4]);
        assert_eq!(guest.config_u32(0), 0x777);
        guest.reset();
        assert_eq!((guest.config_u32(0), guest.config_u32(4)), (0x777, 0));
    }
}

#[test]
fn a_balloon_goes_on_with_its_size_whatever_the_next_one_was_made_with() {
    for &on in Transport::ALL {
        let device = balloon(Options {
            target_pages: 1,
            ..Options::default()
        });
        let target = device.target();
        let (mut guest, mut rings) = guest(on, device);
        target.set(0x777).unwrap();
        guest.run();
        guest.write_config(4, &0x56_u32.to_le_bytes());
        // It has another size from now on, of which its driver was not told.
        target.set(0x778).unwrap();
        let text = guest.save().unwrap();
        let device = balloon(Options::default());
        let target = device.target();
        guest.replace(device, &text).unwrap();
        guest.acknowledge();
        guest.run();
        assert_eq!(guest.acknowledge() & 2, 2, "the configuration has changed");
        assert_eq!((guest.config_u32(0), guest.config_u32(4)), (0x778, 0x56));
        assert_eq!(target.pages(), 0x778);
        send(&mut guest, &mut rings, INFLATE, &list(&[0x75]));
        assert_eq!(gone(&guest), [0x75]);
    }
}

/// A device that asks as fast as it can, and what it is told.
fn polled() -> (Balloon, Receiver<Statistics>) {
    let (sender, receiver) = channel();
    let sink = move |statistics: &Statistics| sender.send(statistics.clone()).unwrap();
    let poll = Poll::new(Duration::from_millis(1), sink).unwrap();
    let device = balloon(Options {
        target_pages: 9,
        poll: Some(poll),
        ..Options::default()
    });
    (device, receiver)
}

fn entries(values: &[(u16, u64)]) -> Vec<u8> {
    let entry = |(tag, value): &(u16, u64)| {
        let mut entry = tag.to_le_bytes().to_vec();
        entry.extend(value.to_le_bytes());
        entry
    };
    values.iter().flat_map(entry).collect()
}

/// Lets the guest run until the device has asked for statistics.
fn asked(guest: &mut TestGuest, ring: &mut GuestRing) {
    while ring.used().is_none() {
        guest.run();
    }
}

#[test]
fn statistics_are_asked_for_and_passed_on() {
    for &on in Transport::ALL {
        let (device, told) = polled();
        let (mut guest, mut rings) = guest(on, device);
        send(&mut guest, &mut rings, INFLATE, &list(&[0x75, 0x90, 0x76]));
        guest.write_config(4, &3_u32.to_le_bytes());
        let ring = &mut rings[STATISTICS];
        let first = ring.data(&entries(&[(4, 1)]));
        ring.add(&[first]);
        guest.notify(2);
        asked(&mut guest, ring);
        assert!(told.try_recv().is_err(), "nobody had asked for the first");
        // Known tags in any order, one that nobody knows, and half an entry.
        let mut answer = entries(&[(5, 1 << 40), (4, 77), (0x1234, 5), (15, 2), (4, 78)]);
        answer.extend([0; 9]);
        let answer = ring.data(&answer);
        ring.add(&[answer]);
        guest.notify(2);
        let statistics = told.recv().unwrap();
        let mut expected = Statistics {
            target_pages: 9,
            actual_pages: 3,
            discarded_pages: 2,
            refused_pages: 1,
            ..Statistics::default()
        };
        (expected.guest[5], expected.guest[4], expected.guest[15]) =
            (Some(1 << 40), Some(78), Some(2));
        assert_eq!(statistics, expected);
        assert_eq!(TAGS[4], "free_memory");
    }
}

#[test]
fn statistics_that_nobody_asked_for_are_not_passed_on() {
    for &on in Transport::ALL {
        let (sender, told) = channel();
        let sink = move |statistics: &Statistics| sender.send(statistics.clone()).unwrap();
        let poll = Poll::new(Duration::from_secs(1 << 20), sink).unwrap();
        let device = balloon(Options {
            poll: Some(poll),
            ..Options::default()
        });
        let (mut guest, mut rings) = guest(on, device);
        let ring = &mut rings[STATISTICS];
        for _ in 0..3 {
            let data = ring.data(&entries(&[(4, 1)]));
            ring.add(&[data]);
            guest.notify(2);
        }
        // All but the last are given back.
        assert_eq!(ring.pending(), 2);
        assert!(told.try_recv().is_err());
    }
}

#[test]
fn a_buffer_held_when_the_queue_stops_is_found_again() {
    let mut device = balloon(Options::default());
    let memory = guest_memory();
    let mut ring = GuestRing::new(memory.clone(), 2, 32);
    let queue = |ring: &GuestRing, state| {
        let interrupt = QueueInterrupt::new(Arc::new(InterruptCounter::default()), 2);
        Virtqueue::new(&ring.registers(), 32, 0, memory.clone(), interrupt, state).unwrap()
    };
    device.start_queue(2, queue(&ring, None), F_STATS_VQ);
    let buffer = ring.data(&entries(&[(4, 1)]));
    let head = ring.add(&[buffer]);
    assert_eq!(device.process(2).unwrap(), Progress::Idle);
    let state = device.stop_queue(2).unwrap();
    assert_eq!(state, QueueState::default());
    assert_eq!(device.stop_queue(2), None);
    device.start_queue(2, queue(&ring, Some(state)), F_STATS_VQ);
    assert_eq!(device.process(2).unwrap(), Progress::Idle);
    assert_eq!(device.wake(1).unwrap(), Progress::Idle);
    assert_eq!(ring.used(), Some((head, 0)));
}

/// Page numbers: of the guest's free pages, around the ends of its memory, and any.
fn page_number() -> impl Strategy<Value = u32> {
    prop_oneof![0x70..0x82_u32, 0xfe..0x112_u32, 0x200..=u32::MAX]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn of_any_list_exactly_the_guests_pages_go(
        pages in prop::collection::vec(page_number(), 0..200),
        odd in 0..4_usize,
        cuts in prop::collection::vec(0..800_usize, 0..4),
    ) {
        for &on in Transport::ALL {
            let (mut guest, mut rings) = guest(on, reporting());
            let mut data = list(&pages);
            data.extend(vec![0x70; odd]);
            // The list may be cut into buffers anywhere.
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (data.len() + 1)).collect();
            cuts.extend([0, data.len()]);
            cuts.sort_unstable();
            cuts.dedup();
            let buffers: Vec<_> = cuts
                .windows(2)
                .map(|cut| rings[INFLATE].data(&data[cut[0]..cut[1]]))
                .collect();
            if buffers.is_empty() {
                continue;
            }
            rings[INFLATE].add(&buffers);
            guest.notify(0);
            prop_assert!(rings[INFLATE].used().is_some());
            let listed: BTreeSet<_> = pages.iter().map(|page| u64::from(*page)).collect();
            let expected: Vec<_> = free_pages().filter(|page| listed.contains(page)).collect();
            prop_assert_eq!(gone(&guest), expected);
        }
    }

    #[test]
    fn of_any_ranges_exactly_the_whole_pages_go(
        ranges in prop::collection::vec((any::<bool>(), 0..0x1_0000_u32, 1..0x1_0000_u32), 1..6),
    ) {
        for &on in Transport::ALL {
            let (mut guest, mut rings) = guest(on, reporting());
            let mut expected = BTreeSet::new();
            let mut buffers = Vec::new();
            for &(high, offset, len) in &ranges {
                let base = if high { HIGH_BASE } else { 0x70 * PAGE };
                let len = len.min(0x1_0000 - offset);
                let start = base + u64::from(offset);
                let end = start + u64::from(len);
                expected.extend(
                    free_pages().filter(|page| page * PAGE >= start && (page + 1) * PAGE <= end),
                );
                buffers.push(Buffer { address: start, len, writable: true });
            }
            rings[4].add(&buffers);
            guest.notify(4);
            prop_assert!(rings[4].used().is_some());
            prop_assert_eq!(gone(&guest), Vec::from_iter(expected));
        }
    }

    #[test]
    fn pages_of_the_rings_themselves_harm_nobody_but_the_guest(
        pages in prop::collection::vec(0..0x90_u32, 0..50),
        statistics in prop::collection::vec(any::<u8>(), 1..900),
    ) {
        for &on in Transport::ALL {
            let (mut guest, mut rings) = guest(on, reporting());
            let statistics = rings[STATISTICS].data(&statistics);
            rings[STATISTICS].add(&[statistics]);
            let data = rings[INFLATE].data(&list(&pages));
            if data.len > 0 {
                rings[INFLATE].add(&[data]);
            }
            for index in 0..5 {
                guest.notify(index);
            }
        }
    }
}
