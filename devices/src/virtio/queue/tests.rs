use std::collections::HashSet;

use proptest::prelude::*;
use virtio_bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;
use vm_memory::Bytes;

use super::*;
use crate::memory;
use crate::virtio::chain::MAX_INDIRECT;
use crate::virtio::testing::{
    BUFFERS, Buffer, GuestRing, HIGH_BASE, HIGH_LEN, INDIRECT, InterruptCounter, LOW_LEN, NEXT,
    RINGS, WRITE, guest_memory,
};

const SIZE: u16 = 16;

struct Fixture {
    ring: GuestRing,
    queue: Virtqueue,
    interrupts: Arc<InterruptCounter>,
    chain: Chain,
}

impl Fixture {
    fn new(features: u64) -> Self {
        Self::starting_at(features, 0)
    }

    fn starting_at(features: u64, index: u16) -> Self {
        let memory = guest_memory();
        let mut ring = GuestRing::new(memory.clone(), 0, SIZE);
        ring.start_at(index);
        let interrupts = Arc::new(InterruptCounter::default());
        let interrupt = QueueInterrupt::new(interrupts.clone(), 0);
        let state = QueueState {
            next_available: index,
            next_used: index,
        };
        let queue = Virtqueue::new(
            &ring.registers(),
            256,
            features,
            memory,
            interrupt,
            Some(state),
        )
        .unwrap();
        Self {
            ring,
            queue,
            interrupts,
            chain: Chain::new(),
        }
    }

    fn pop(&mut self) -> Result<bool, QueueError> {
        self.queue.pop(&mut self.chain)
    }

    /// Serves all requests by filling their writable buffers with ones.
    fn serve(&mut self) -> Result<Progress, QueueError> {
        self.queue.serve(&mut self.chain, |memory, chain| {
            let len = chain.writable.len();
            chain.writable.write(memory, &vec![1; len as usize])?;
            Ok(len)
        })
    }

    /// The error of the chain that starts at descriptor 0.
    fn refused(&mut self) -> QueueError {
        self.ring.offer(0);
        self.ring.publish();
        self.pop().expect_err("the chain must be refused")
    }
}

#[test]
fn request_goes_round() {
    for features in [0, RING_FEATURES] {
        let mut f = Fixture::new(features);
        let question = f.ring.data(b"question");
        let answers = [f.ring.buffer(3, true), f.ring.buffer(5, true)];
        let head = f.ring.add(&[question, answers[0], answers[1]]);
        assert!(f.ring.used().is_none());

        assert!(f.pop().unwrap());
        assert_eq!(f.chain.head(), head);
        let mut data = [0; 8];
        assert!(f.chain.readable.read(f.queue.memory(), &mut data).unwrap());
        assert_eq!(&data, b"question");
        assert!(f.chain.writable.write(f.queue.memory(), b"answer").unwrap());
        assert_eq!(f.chain.writable.len(), 2);
        f.queue.complete(head, 6).unwrap();

        assert_eq!(f.ring.used(), Some((head, 6)));
        assert_eq!(f.ring.contents(answers[0]), b"ans");
        assert_eq!(f.ring.contents(answers[1]), b"wer\0\0");
        assert!(!f.pop().unwrap());
    }
}

#[test]
fn buffers_too_small_are_left_alone() {
    let mut f = Fixture::new(0);
    let (give, take) = (f.ring.data(b"abc"), f.ring.buffer(3, true));
    f.ring.add(&[give, take]);
    assert!(f.pop().unwrap());
    let memory = f.queue.memory().clone();
    assert!(!f.chain.readable.read(&memory, &mut [0; 4]).unwrap());
    assert!(!f.chain.writable.write(&memory, &[1; 4]).unwrap());
    assert_eq!((f.chain.readable.len(), f.chain.writable.len()), (3, 3));
    assert_eq!(f.ring.contents(take), [0; 3]);
}

#[test]
fn last_byte_can_be_taken_until_none_is_left() {
    let mut f = Fixture::new(0);
    let buffers = [f.ring.buffer(1, true), f.ring.buffer(2, true)];
    f.ring.add(&buffers);
    assert!(f.pop().unwrap());
    let writable = &mut f.chain.writable;
    let expected = [
        buffers[1].address + 1,
        buffers[1].address,
        buffers[0].address,
    ];
    for address in expected {
        assert_eq!(writable.take_last_byte(), Some(GuestAddress(address)));
    }
    assert_eq!(
        (writable.take_last_byte(), writable.is_empty()),
        (None, true)
    );
}

#[test]
fn batch_is_interrupted_for_once() {
    let mut f = Fixture::new(RING_FEATURES);
    for _ in 0..SIZE {
        let buffer = f.ring.buffer(4, true);
        f.ring.add(&[buffer]);
    }
    assert_eq!(f.serve().unwrap(), Progress::More);
    assert_eq!(f.serve().unwrap(), Progress::Idle);
    assert_eq!(f.interrupts.queue(), 1);
    assert_eq!(
        std::iter::from_fn(|| f.ring.used()).count(),
        usize::from(SIZE)
    );
    assert_eq!(
        f.ring.available_event(),
        SIZE,
        "wants to hear of the next request"
    );
}

#[test]
fn event_index_suppresses_interrupts_until_it_is_passed() {
    let mut f = Fixture::new(RING_FEATURES);
    f.ring.set_used_event(2);
    for expected in [0, 0, 1, 1] {
        let buffer = f.ring.buffer(4, true);
        f.ring.add(&[buffer]);
        assert_eq!(f.serve().unwrap(), Progress::Idle);
        assert_eq!(f.interrupts.queue(), expected);
    }
}

#[test]
fn flags_suppress_interrupts_and_notifications_without_event_index() {
    let mut f = Fixture::new(0);
    let used_flags = GuestAddress(f.ring.registers().used);
    for (flags, expected) in [(1, 0), (0, 1)] {
        f.ring.set_available_flags(flags);
        let buffer = f.ring.buffer(4, true);
        f.ring.add(&[buffer]);
        let memory = f.queue.memory().clone();
        let progress = f.queue.serve(&mut f.chain, |memory, chain| {
            let suppressed: u16 = memory.read_obj(used_flags).unwrap();
            assert_eq!(u32::from(suppressed), VRING_USED_F_NO_NOTIFY);
            Ok(chain.writable.len())
        });
        assert_eq!(progress.unwrap(), Progress::Idle);
        assert_eq!(memory.read_obj::<u16>(used_flags).unwrap(), 0);
        assert_eq!(f.interrupts.queue(), expected);
    }
}

#[test]
fn no_interrupt_without_a_completed_request() {
    let mut f = Fixture::new(0);
    assert_eq!(f.serve().unwrap(), Progress::Idle);
    assert_eq!(f.interrupts.queue(), 0);
}

#[test]
fn several_requests_are_given_back_at_one_stroke_also_over_the_wrap() {
    let mut f = Fixture::starting_at(RING_FEATURES, u16::MAX);
    let mut used = Vec::new();
    for len in 1..=3 {
        let buffer = f.ring.buffer(4, true);
        used.push((f.ring.add(&[buffer]), len));
        assert!(f.pop().unwrap());
    }
    f.queue.complete_together(&used).unwrap();
    f.queue.signal_used().unwrap();
    assert_eq!(
        std::iter::from_fn(|| f.ring.used()).collect::<Vec<_>>(),
        used
    );
    assert!(f.queue.complete_together(&[(SIZE, 0)]).is_err());
}

#[test]
fn indices_wrap() {
    let mut f = Fixture::starting_at(RING_FEATURES, u16::MAX - 2);
    for _ in 0..3 * SIZE {
        let buffer = f.ring.buffer(4, true);
        let head = f.ring.add(&[buffer]);
        assert_eq!(f.serve().unwrap(), Progress::Idle);
        assert_eq!(f.ring.used(), Some((head, 4)));
    }
    let expected = (u16::MAX - 2).wrapping_add(3 * SIZE);
    assert_eq!(
        f.queue.state(),
        QueueState {
            next_available: expected,
            next_used: expected
        }
    );
}

#[test]
fn one_call_serves_no_more_than_one_queue_full() {
    let mut f = Fixture::new(RING_FEATURES);
    let memory = f.queue.memory().clone();
    let buffer = f.ring.buffer(4, true);
    f.ring.add(&[buffer]);
    // A driver on another vCPU that offers a new request as fast as one is taken.
    let Fixture {
        ring, queue, chain, ..
    } = &mut f;
    let mut served = 0;
    let progress = queue.serve(chain, |_, _| {
        served += 1;
        ring.add(&[buffer]);
        Ok(0)
    });
    assert_eq!((progress.unwrap(), served), (Progress::More, SIZE));
    drop(memory);
}

#[test]
fn available_index_too_far_ahead_or_moved_back_is_refused() {
    let mut f = Fixture::new(0);
    f.ring.set_available_index(SIZE + 1);
    assert!(matches!(
        f.pop(),
        Err(QueueError::AvailableIndex {
            index: 17,
            next: 0,
            size: SIZE
        })
    ));
    f.ring.set_available_index(u16::MAX);
    assert!(matches!(f.pop(), Err(QueueError::AvailableIndex { .. })));
}

#[test]
fn head_outside_the_queue_is_refused() {
    let mut f = Fixture::new(0);
    f.ring.offer(SIZE);
    f.ring.publish();
    assert!(matches!(
        f.pop(),
        Err(QueueError::HeadOutsideQueue {
            head: SIZE,
            size: SIZE
        })
    ));
    assert!(matches!(
        f.queue.complete(SIZE, 0),
        Err(QueueError::HeadOutsideQueue { .. })
    ));
}

#[test]
fn head_in_flight_cannot_be_offered_again_until_it_is_given_back() {
    let mut f = Fixture::new(0);
    f.ring.descriptor(3, BUFFERS, 4, WRITE, 0);
    f.ring.offer(3);
    f.ring.offer(3);
    f.ring.publish();
    assert!(f.pop().unwrap());
    assert!(matches!(
        f.pop(),
        Err(QueueError::DuplicateHead { head: 3 })
    ));
    f.queue.complete(3, 0).unwrap();
    assert!(f.pop().unwrap());
}

#[test]
fn buffer_must_lie_in_memory_to_its_last_byte() {
    let good = [
        (0, 1),
        (LOW_LEN - 4, 4),
        (HIGH_BASE, 4),
        (HIGH_BASE + HIGH_LEN - 1, 1),
    ];
    let bad = [
        (LOW_LEN - 4, 5),
        (LOW_LEN, 1),
        (HIGH_BASE - 1, 2),
        // From one region over the hole into the other.
        (LOW_LEN - 4, 0x8_0000 + 8),
        (HIGH_BASE + HIGH_LEN - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 3, 8),
        (0, u32::MAX),
    ];
    for flags in [0, WRITE] {
        for (address, len) in good {
            let mut f = Fixture::new(0);
            f.ring.descriptor(0, address, len, flags, 0);
            f.ring.offer(0);
            f.ring.publish();
            assert!(f.pop().unwrap(), "{len} bytes at {address:#x}");
        }
        for (address, len) in bad {
            let mut f = Fixture::new(0);
            f.ring.descriptor(0, address, len, flags, 0);
            assert!(
                matches!(f.refused(), QueueError::BufferOutsideMemory { .. }),
                "{len} bytes at {address:#x}"
            );
        }
    }
}

#[test]
fn chain_that_loops_is_refused() {
    let mut f = Fixture::new(0);
    f.ring.descriptor(0, BUFFERS, 4, NEXT, 1);
    f.ring.descriptor(1, BUFFERS, 4, NEXT, 0);
    assert!(matches!(f.refused(), QueueError::ChainLoops { head: 0 }));
}

#[test]
fn chain_as_long_as_the_table_is_taken() {
    let mut f = Fixture::new(0);
    let buffers: Vec<_> = (0..SIZE).map(|_| f.ring.buffer(4, true)).collect();
    f.ring.add(&buffers);
    assert!(f.pop().unwrap());
    assert_eq!(f.chain.writable.segments(), usize::from(SIZE));
}

#[test]
fn malformed_chains_are_refused_by_name() {
    let mut f = Fixture::new(0);
    f.ring.descriptor(0, BUFFERS, 4, NEXT, SIZE);
    assert!(matches!(
        f.refused(),
        QueueError::NextOutsideTable {
            index: 16,
            entries: 16,
            ..
        }
    ));

    let mut f = Fixture::new(0);
    f.ring.descriptor(0, BUFFERS, 0, 0, 0);
    assert!(matches!(f.refused(), QueueError::EmptyBuffer { head: 0 }));

    let mut f = Fixture::new(0);
    f.ring.descriptor(0, BUFFERS, 4, NEXT | WRITE, 1);
    f.ring.descriptor(1, BUFFERS, 4, 0, 0);
    assert!(matches!(
        f.refused(),
        QueueError::ReadableAfterWritable { head: 0 }
    ));
}

#[test]
fn chain_of_4_gib_is_refused() {
    // By naming the same quarter of a GiB again and again.
    const QUARTER: u32 = 0x1000_0000;
    let memory = memory::anonymous(&[(GuestAddress(0), QUARTER as usize)]).unwrap();
    let ring = GuestRing::new(Arc::new(memory), 0, SIZE);
    for (last, fits) in [(15, true), (16, false)] {
        for index in 0..last {
            let flags = if index + 1 < last { NEXT } else { 0 };
            ring.descriptor(index, 0, QUARTER, flags, index + 1);
        }
        let table = GuestAddress(ring.registers().descriptors);
        let result = Chain::new().load(&ring.memory, table, SIZE, 0, false);
        match result {
            Ok(()) => assert!(fits),
            Err(error) => assert!(!fits && matches!(error, QueueError::ChainTooLarge { .. })),
        }
    }
}

#[test]
fn indirect_table_is_followed() {
    let mut f = Fixture::new(RING_FEATURES);
    let (give, take) = (f.ring.data(b"xyz"), f.ring.buffer(8, true));
    let head = f.ring.add_indirect(&[give, take]);
    assert!(f.pop().unwrap());
    assert_eq!((f.chain.readable.len(), f.chain.writable.len()), (3, 8));
    f.queue.complete(head, 0).unwrap();

    // Also at the end of a chain of the queue's own descriptors, whatever its direction bit says.
    f.ring
        .table_entry(BUFFERS + 0x1000, 0, BUFFERS, 7, WRITE, 0);
    f.ring.descriptor(8, BUFFERS, 5, NEXT, 9);
    f.ring
        .descriptor(9, BUFFERS + 0x1000, 16, INDIRECT | WRITE, 0);
    f.ring.offer(8);
    f.ring.publish();
    assert!(f.pop().unwrap());
    assert_eq!((f.chain.readable.len(), f.chain.writable.len()), (5, 7));
}

#[test]
fn bad_indirect_tables_are_refused() {
    let table = BUFFERS + 0x1000;
    let unexpected = |e: &QueueError| matches!(e, QueueError::UnexpectedIndirect { .. });
    let length = |e: &QueueError| matches!(e, QueueError::IndirectTableLength { .. });
    let outside = |e: &QueueError| matches!(e, QueueError::BufferOutsideMemory { .. });
    let looping = |e: &QueueError| matches!(e, QueueError::ChainLoops { .. });
    let next = |e: &QueueError| matches!(e, QueueError::NextOutsideTable { .. });
    type Check<'a> = &'a dyn Fn(&QueueError) -> bool;
    let cases: [(u64, u64, u32, u16, Check<'_>); 8] = [
        // features, address, length, further flags, expected
        (0, table, 16, 0, &unexpected),
        (RING_FEATURES, table, 16, NEXT, &unexpected),
        (RING_FEATURES, table, 0, 0, &length),
        (RING_FEATURES, table, 24, 0, &length),
        (RING_FEATURES, table, 16 * (MAX_INDIRECT + 1), 0, &length),
        (RING_FEATURES, LOW_LEN - 16, 32, 0, &outside),
        (RING_FEATURES, table, 32, 0, &looping),
        (RING_FEATURES, table, 16, 0, &next),
    ];
    for (number, (features, address, len, flags, expected)) in cases.into_iter().enumerate() {
        let mut f = Fixture::new(features);
        f.ring.table_entry(table, 0, BUFFERS, 4, NEXT, 1);
        f.ring.table_entry(table, 1, BUFFERS, 4, NEXT, 0);
        f.ring.descriptor(0, address, len, INDIRECT | flags, 1);
        f.ring.descriptor(1, BUFFERS, 4, 0, 0);
        let error = f.refused();
        assert!(expected(&error), "case {number}: {error}");
    }
    let mut f = Fixture::new(RING_FEATURES);
    f.ring.table_entry(table, 0, table, 16, INDIRECT, 0);
    f.ring.descriptor(0, table, 16, INDIRECT, 0);
    assert!(unexpected(&f.refused()), "a table in a table");
}

#[test]
fn bad_registers_are_refused() {
    let memory = guest_memory();
    let make = |registers: &QueueRegisters| {
        let interrupts = Arc::new(InterruptCounter::default());
        let interrupt = QueueInterrupt::new(interrupts, 0);
        Virtqueue::new(registers, 256, 0, memory.clone(), interrupt, None).map(|q| q.size())
    };
    let good = GuestRing::new(memory.clone(), 0, SIZE).registers();
    assert_eq!(make(&good).unwrap(), SIZE);

    for size in [0, 3, 255, 512, 0x1_0000, 0x1_0010, u32::MAX] {
        let error = make(&QueueRegisters { size, ..good }).unwrap_err();
        assert!(
            matches!(error, QueueError::Size { max: 256, .. }),
            "{error}"
        );
    }
    for (registers, align) in [
        (
            QueueRegisters {
                descriptors: RINGS + 8,
                ..good
            },
            16,
        ),
        (
            QueueRegisters {
                available: RINGS + 1,
                ..good
            },
            2,
        ),
        (
            QueueRegisters {
                used: RINGS + 2,
                ..good
            },
            4,
        ),
    ] {
        let error = make(&registers).unwrap_err();
        assert!(
            matches!(error, QueueError::Alignment { align: a, .. } if a == align),
            "{error}"
        );
    }
    for address in [
        LOW_LEN - 16,
        LOW_LEN,
        HIGH_BASE - 16,
        HIGH_BASE + HIGH_LEN,
        u64::MAX - 15,
    ] {
        for registers in [
            QueueRegisters {
                descriptors: address,
                ..good
            },
            QueueRegisters {
                available: address,
                ..good
            },
            QueueRegisters {
                used: address,
                ..good
            },
        ] {
            let error = make(&registers).unwrap_err();
            assert!(
                matches!(error, QueueError::AreaOutsideMemory { .. }),
                "{error}"
            );
        }
    }
}

/// All of the guest's memory.
fn snapshot(memory: &GuestMemory) -> (Vec<u8>, Vec<u8>) {
    let mut low = vec![0; usize::try_from(LOW_LEN).unwrap()];
    let mut high = vec![0; usize::try_from(HIGH_LEN).unwrap()];
    memory.read_slice(&mut low, GuestAddress(0)).unwrap();
    memory
        .read_slice(&mut high, GuestAddress(HIGH_BASE))
        .unwrap();
    (low, high)
}

/// The addresses at which two snapshots of the memory from `base` on differ.
fn differences(base: u64, before: &[u8], after: &[u8]) -> Vec<u64> {
    const PAGE: usize = 4096;
    let mut found = Vec::new();
    let pages = before.chunks(PAGE).zip(after.chunks(PAGE));
    for (page, (before, after)) in (base..).step_by(PAGE).zip(pages) {
        // Most pages are equal, and comparing them as a whole is quick.
        if before != after {
            let bytes = (page..).zip(before.iter().zip(after));
            found.extend(
                bytes
                    .filter(|(_, (a, b))| a != b)
                    .map(|(address, _)| address),
            );
        }
    }
    found
}

/// A descriptor that is sometimes good and sometimes anything.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![
        4 => BUFFERS..LOW_LEN,
        1 => LOW_LEN - 64..LOW_LEN + 64,
        1 => HIGH_BASE - 64..HIGH_BASE + HIGH_LEN + 64,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![6 => 0..64_u32, 2 => (1..8_u32).prop_map(|n| n * 16), 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0..8_u16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    (address, len, flags, next)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever a driver leaves in its rings, the device comes to an end, and the only bytes that
    /// change are in its used ring and in buffers that were given to it to write.
    #[test]
    fn hostile_rings_end_and_touch_nothing_else(
        event_idx in any::<bool>(),
        descriptors in proptest::collection::vec(descriptor(), usize::from(SIZE)),
        tables in proptest::collection::vec((BUFFERS..LOW_LEN - 16, descriptor()), 0..32),
        heads in proptest::collection::vec(prop_oneof![8 => 0..SIZE, 1 => any::<u16>()], 0..20),
        index in prop_oneof![4 => 0..=SIZE, 1 => any::<u16>()],
        start in any::<u16>(),
    ) {
        let mut f = Fixture::starting_at(if event_idx { RING_FEATURES } else { 0 }, start);
        for (i, (address, len, flags, next)) in (0..).zip(descriptors) {
            f.ring.descriptor(i, address, len, flags, next);
        }
        for (table, (address, len, flags, next)) in tables {
            f.ring.table_entry(table, 0, address, len, flags, next);
        }
        for head in heads {
            f.ring.offer(head);
        }
        f.ring.set_available_index(start.wrapping_add(index));

        let memory = f.queue.memory().clone();
        let before = snapshot(&memory);
        let registers = f.ring.registers();
        let used_ring = registers.used..registers.used + 6 + 8 * u64::from(SIZE);
        let mut allowed: HashSet<u64> = used_ring.collect();
        let mut requests = 0;
        // Three wakes: the queue holds one full round at most, the rest must find it empty.
        for _ in 0..3 {
            let result = f.queue.serve(&mut f.chain, |memory, chain| {
                requests += 1;
                let len = chain.writable.len();
                let slices = chain.writable.slices(memory)?;
                assert_eq!(slices.iter().map(|s| s.len() as u64).sum::<u64>(), u64::from(len));
                // From the back, at most as much as a test has time for.
                for _ in 0..4096 {
                    let Some(last) = chain.writable.take_last_byte() else { break };
                    memory.write_obj(0xee_u8, last).unwrap();
                    allowed.insert(last.0);
                }
                Ok(len)
            });
            if result.is_err() { break; }
        }
        prop_assert!(requests <= u32::from(SIZE));

        let after = snapshot(&memory);
        let mut changed = differences(0, &before.0, &after.0);
        changed.extend(differences(HIGH_BASE, &before.1, &after.1));
        for address in changed {
            prop_assert!(allowed.contains(&address), "byte at {address:#x} was changed");
        }
    }

    /// A good driver's data arrives whole, however it is cut into buffers.
    #[test]
    fn cut_does_not_matter(
        cuts in proptest::collection::vec(1..50_u32, 1..SIZE.into()),
        reads in proptest::collection::vec(1..70_usize, 1..10),
        indirect in any::<bool>(),
    ) {
        let mut f = Fixture::new(RING_FEATURES);
        let total: u32 = cuts.iter().sum();
        let data: Vec<u8> = (0..total).map(|i| i.to_le_bytes()[0]).collect();
        let mut rest = data.as_slice();
        let mut buffers: Vec<Buffer> = Vec::new();
        for cut in cuts {
            let (now, later) = rest.split_at(cut as usize);
            buffers.push(f.ring.data(now));
            rest = later;
        }
        if indirect { f.ring.add_indirect(&buffers) } else { f.ring.add(&buffers) };
        prop_assert!(f.pop().unwrap());
        let memory = f.queue.memory().clone();
        let mut got = Vec::new();
        for len in reads {
            let mut part = vec![0; len];
            let left = f.chain.readable.len() as usize;
            let fits = f.chain.readable.read(&memory, &mut part).unwrap();
            prop_assert_eq!(fits, len <= left);
            if fits { got.extend(part); }
        }
        prop_assert_eq!(&got[..], &data[..got.len()]);
        prop_assert_eq!(got.len() + f.chain.readable.len() as usize, data.len());
    }
}
