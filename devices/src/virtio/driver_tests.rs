//! What drivers do wrong, and what both transports make of it: one model, every case on each of them.

use std::os::fd::AsRawFd;

use event_manager::EventSet;
use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::block::engine::Preference;
use super::block::{Block, Engine, Options, RawFile};
use super::chain::Chain;
use super::device::{DeviceTraits, Progress, Source, VirtioDevice};
use super::queue::{QueueError, QueueState, RING_FEATURES, Virtqueue};
use super::rng::Rng;
use super::state::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET, Register};
use super::testing::{
    BUFFERS, Buffer, GuestRing, HIGH_BASE, HIGH_LEN, INDIRECT, LOW_LEN, NEXT, TestGuest, Transport,
    WRITE,
};

/// Keeps requests in flight until it is told to finish them, as a slow disk does.
struct Holder {
    queue: Option<Virtqueue>,
    chain: Chain,
    held: Vec<(u16, super::chain::Buffers)>,
    finish: EventFd,
}

impl Holder {
    /// The device, and what lets it finish all that it holds.
    fn new() -> (Self, EventFd) {
        let finish = EventFd::new(EFD_NONBLOCK).unwrap();
        let other_end = finish.try_clone().unwrap();
        let holder = Self {
            queue: None,
            chain: Chain::new(),
            held: Vec::new(),
            finish,
        };
        (holder, other_end)
    }

    fn finish(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.queue else {
            return Ok(());
        };
        for (head, mut buffers) in self.held.drain(..) {
            let len = buffers.len();
            let memory = queue.memory().clone();
            buffers.write(&memory, &vec![0xee; len as usize])?;
            queue.complete(head, len)?;
        }
        queue.signal_used()
    }
}

impl VirtioDevice for Holder {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            device_id: 42,
            features: 0,
            queue_sizes: vec![16],
            config_len: 4,
        }
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0x5a);
    }

    fn start_queue(&mut self, _index: u16, queue: Virtqueue, _features: u64) {
        self.queue = Some(queue);
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        // What is in flight is finished first, as the contract says.
        let _ = self.finish();
        self.held.clear();
        self.queue.take().map(|queue| queue.state())
    }

    fn process(&mut self, _index: u16) -> Result<Progress, QueueError> {
        let Some(queue) = &mut self.queue else {
            return Ok(Progress::Idle);
        };
        while queue.pop(&mut self.chain)? {
            let writable = std::mem::take(&mut self.chain.writable);
            self.held.push((self.chain.head(), writable));
        }
        Ok(Progress::Idle)
    }

    fn sources(&self) -> Vec<Source> {
        let fd = self.finish.as_raw_fd();
        let events = EventSet::IN;
        vec![Source { fd, events }]
    }

    fn wake(&mut self, _index: usize) -> Result<Progress, QueueError> {
        let _ = self.finish.read();
        self.finish()?;
        Ok(Progress::Idle)
    }

    fn reset(&mut self) {}
}

fn disk() -> Block {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 * 512).unwrap();
    let disk = Box::new(RawFile::new(file, false).unwrap());
    let engine = Engine::new(Preference::Synchronous);
    Block::new(disk, engine, Options::default()).unwrap()
}

/// A driver that keeps the rules gets the device to work, whatever was before.
fn works(guest: &mut TestGuest) {
    let mut ring = guest.start_all();
    let buffer = ring.buffer(8, true);
    let head = ring.add(&[buffer]);
    guest.notify(0);
    assert_eq!(ring.used(), Some((head, 8)));
    assert_eq!(guest.status() & NEEDS_RESET, 0);
}

#[test]
fn broken_requests_need_a_reset_and_no_more() {
    type Break = fn(&mut GuestRing);
    let one = |ring: &mut GuestRing, address: u64, len: u32, flags: u16| {
        ring.descriptor(0, address, len, flags, 1);
        ring.offer(0);
        ring.publish();
    };
    let ways: [(&str, Break); 14] = [
        ("available index too far ahead", |ring| {
            ring.set_available_index(17);
        }),
        ("available index moved back", |ring| {
            ring.set_available_index(u16::MAX);
        }),
        ("head outside of the queue", |ring| {
            ring.offer(16);
            ring.publish();
        }),
        ("chain of one that loops", |ring| {
            ring.descriptor(0, BUFFERS, 4, NEXT, 0);
            ring.offer(0);
            ring.publish();
        }),
        ("chain of two that loops", |ring| {
            ring.descriptor(0, BUFFERS, 4, NEXT, 1);
            ring.descriptor(1, BUFFERS, 4, NEXT, 0);
            ring.offer(0);
            ring.publish();
        }),
        ("chain that leaves the table", |ring| {
            ring.descriptor(0, BUFFERS, 4, NEXT, 16);
            ring.offer(0);
            ring.publish();
        }),
        ("readable after writable", |ring| {
            ring.descriptor(0, BUFFERS, 4, NEXT | WRITE, 1);
            ring.descriptor(1, BUFFERS, 4, 0, 0);
            ring.offer(0);
            ring.publish();
        }),
        ("table in a table", |ring| {
            ring.table_entry(BUFFERS, 0, BUFFERS, 16, INDIRECT, 0);
            ring.descriptor(0, BUFFERS, 16, INDIRECT, 0);
            ring.offer(0);
            ring.publish();
        }),
        ("indirect table that loops", |ring| {
            ring.table_entry(BUFFERS, 0, BUFFERS, 16, NEXT, 0);
            ring.descriptor(0, BUFFERS, 16, INDIRECT, 0);
            ring.offer(0);
            ring.publish();
        }),
        ("indirect table in a hole", |ring| {
            ring.descriptor(0, LOW_LEN - 16, 32, INDIRECT, 0);
            ring.offer(0);
            ring.publish();
        }),
        ("empty buffer", |ring| {
            ring.descriptor(0, BUFFERS, 0, WRITE, 0);
            ring.offer(0);
            ring.publish();
        }),
        ("indirect table of part of a descriptor", |ring| {
            ring.descriptor(0, BUFFERS, 17, INDIRECT, 0);
            ring.offer(0);
            ring.publish();
        }),
        ("indirect table without an entry", |ring| {
            ring.descriptor(0, BUFFERS, 0, INDIRECT, 0);
            ring.offer(0);
            ring.publish();
        }),
        ("indirect table that is followed by more", |ring| {
            ring.descriptor(0, BUFFERS, 16, INDIRECT | NEXT, 1);
            ring.offer(0);
            ring.publish();
        }),
    ];
    let outside = [
        (LOW_LEN - 4, 5),
        (LOW_LEN, 1),
        (HIGH_BASE - 1, 2),
        (LOW_LEN - 4, 0x8_0000 + 8),
        (HIGH_BASE + HIGH_LEN - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 3, 8),
        (0, u32::MAX),
    ];
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        let check = |guest: &mut TestGuest, what: &str, break_it: &dyn Fn(&mut GuestRing)| {
            let mut ring = guest.start_all();
            guest.interrupts();
            guest.acknowledge();
            break_it(&mut ring);
            guest.notify(0);
            assert_ne!(guest.status() & NEEDS_RESET, 0, "{what} on {on:?}");
            assert_eq!(guest.interrupts(), 1, "{what} on {on:?}");
            assert_eq!(guest.acknowledge(), 2, "{what} on {on:?}");
            assert_eq!(ring.used(), None, "{what} on {on:?}");
            works(guest);
        };
        for (what, break_it) in ways {
            check(&mut guest, what, &break_it);
        }
        for (address, len) in outside {
            for flags in [0, WRITE] {
                let what = format!("{len} bytes at {address:#x}");
                check(&mut guest, &what, &|ring| one(ring, address, len, flags));
            }
        }
    }
}

#[test]
fn buffers_at_the_edges_of_memory_are_served() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        let mut ring = guest.start_all();
        for (address, len) in [
            (LOW_LEN - 4, 4),
            (HIGH_BASE, 4),
            (HIGH_BASE + HIGH_LEN - 1, 1),
        ] {
            let buffer = Buffer {
                address,
                len,
                writable: true,
            };
            let head = ring.add(&[buffer]);
            guest.notify(0);
            assert_eq!(ring.used(), Some((head, len)), "{address:#x} on {on:?}");
        }
    }
}

#[test]
fn head_offered_twice_while_in_flight_needs_a_reset() {
    for &on in Transport::ALL {
        let (device, finish) = Holder::new();
        let mut guest = TestGuest::new(on, device);
        let mut ring = guest.start_all();
        let buffer = ring.buffer(8, true);
        let head = ring.add(&[buffer]);
        guest.notify(0);
        assert_eq!(ring.used(), None, "it is in flight");
        ring.offer(head);
        ring.publish();
        guest.ring_anyway(0);
        assert_ne!(guest.status() & NEEDS_RESET, 0, "{on:?}");
        // The one that was in flight is given back once, by the stop, and not again.
        assert_eq!(ring.used(), Some((head, 8)));
        finish.write(1).unwrap();
        guest.run();
        assert_eq!(ring.used(), None, "{on:?}");
    }
}

#[test]
fn indices_wrap_without_a_stumble() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        let mut ring = guest.start_all();
        let buffer = ring.buffer(1, true);
        let mut served = 0_u32;
        while served < 0x1_0000 + 64 {
            for _ in 0..16 {
                ring.add(&[buffer]);
            }
            guest.notify(0);
            served += u32::try_from(std::iter::from_fn(|| ring.used()).count()).unwrap();
        }
        assert_eq!(served, 0x1_0000 + 64, "{on:?}");
        assert_eq!(guest.status() & NEEDS_RESET, 0);
    }
}

#[test]
fn reset_with_requests_in_flight_leaves_the_new_driver_alone() {
    for &on in Transport::ALL {
        let (device, finish) = Holder::new();
        let mut guest = TestGuest::new(on, device);
        for _ in 0..3 {
            let mut ring = guest.start_all();
            let buffers = [(); 4].map(|()| ring.buffer(8, true));
            for buffer in buffers {
                ring.add(&[buffer]);
            }
            guest.notify(0);
            ring.add(&[buffers[0]]);
            // Rung for, but reset before the device thread came to it.
            guest.ring(0);
            guest.reset();
            assert_eq!(guest.status(), 0);
            assert_eq!(
                guest.acknowledge() & !1,
                0,
                "no word about the configuration"
            );
            // The old driver's memory now belongs to somebody else: nothing more is written there.
            let old: Vec<_> = std::iter::from_fn(|| ring.used()).collect();
            assert_eq!(old.len(), 4, "{on:?}");
            for buffer in buffers {
                guest
                    .memory
                    .write_slice(&[0x11; 8], GuestAddress(buffer.address))
                    .unwrap();
            }
            finish.write(1).unwrap();
            guest.run();
            assert_eq!(ring.used(), None, "{on:?}");
            for buffer in buffers {
                assert_eq!(ring.contents(buffer), [0x11; 8], "{on:?}");
            }
            guest.interrupts();
        }
        let mut ring = guest.start_all();
        let buffer = ring.buffer(8, true);
        let head = ring.add(&[buffer]);
        guest.notify(0);
        finish.write(1).unwrap();
        guest.run();
        assert_eq!(ring.used(), Some((head, 8)));
        assert_eq!(guest.interrupts(), 1);
    }
}

#[test]
fn doorbell_rung_by_the_kernel_is_as_good_as_the_register() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        let mut ring = guest.start_all();
        let buffer = ring.buffer(8, true);
        let head = ring.add(&[buffer]);
        guest.doorbell(0).write(1).unwrap();
        guest.run();
        assert_eq!(ring.used(), Some((head, 8)));
    }
}

#[test]
fn notification_of_a_queue_that_does_not_exist_is_refused() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        guest.start_all();
        for index in [1, 2, 0x7ff] {
            guest.ring(index);
        }
        guest.run();
        assert_eq!(guest.state().refused_writes(), 3);
        assert_eq!(guest.status() & (DRIVER_OK | NEEDS_RESET), DRIVER_OK);
    }
}

#[test]
fn driver_that_negotiates_nothing_twice_or_too_late_changes_nothing() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        assert!(!guest.negotiate(0), "a driver from before virtio 1.0");
        assert_eq!(guest.status(), ACKNOWLEDGE | DRIVER);
        assert!(!guest.add_status(DRIVER_OK), "no features, no start");
        assert!(!guest.negotiate(RING_FEATURES | 1 << 40), "not offered");

        assert!(guest.negotiate(RING_FEATURES));
        let taken = |guest: &TestGuest| {
            let mut state = guest.state();
            state.write(Register::DriverFeaturesSelect, 0);
            let low = state.read(Register::DriverFeatures);
            state.write(Register::DriverFeaturesSelect, 1);
            u64::from(state.read(Register::DriverFeatures)) << 32 | u64::from(low)
        };
        guest.write_features(1 << VIRTIO_F_VERSION_1);
        assert_eq!(taken(&guest), RING_FEATURES, "features are taken once");
        let mut ring = guest.start(RING_FEATURES, 16);
        guest.write_features(0);
        assert_eq!(taken(&guest), RING_FEATURES);
        guest.add_status(FEATURES_OK);
        let buffer = ring.buffer(8, true);
        let head = ring.add_indirect(&[buffer]);
        guest.notify(0);
        assert_eq!(ring.used(), Some((head, 8)), "with the features it took");
    }
}

/// A status a driver can reach, and how.
type Reach = (&'static str, fn(&mut TestGuest));

const STATUSES: [Reach; 7] = [
    ("reset", |_| {}),
    ("ACKNOWLEDGE", |guest| {
        guest.add_status(ACKNOWLEDGE);
    }),
    ("DRIVER", |guest| {
        guest.add_status(ACKNOWLEDGE | DRIVER);
    }),
    ("FEATURES_OK", |guest| {
        let features = guest.offered();
        guest.negotiate(features);
    }),
    ("DRIVER_OK", |guest| {
        guest.start_all();
    }),
    ("NEEDS_RESET", |guest| {
        guest.start_all().set_available_index(u16::MAX);
        guest.notify(0);
    }),
    ("FAILED", |guest| {
        guest.start_all();
        guest.add_status(FAILED);
    }),
];

const QUEUE_REGISTERS: [Register; 8] = [
    Register::QueueSize,
    Register::QueueReady,
    Register::QueueDescriptorsLow,
    Register::QueueDescriptorsHigh,
    Register::QueueAvailableLow,
    Register::QueueAvailableHigh,
    Register::QueueUsedLow,
    Register::QueueUsedHigh,
];

/// What is behind the registers of queue 0.
fn queue_registers(guest: &TestGuest) -> [u32; 8] {
    let mut state = guest.state();
    state.write(Register::QueueSelect, 0);
    QUEUE_REGISTERS.map(|register| state.read(register))
}

#[test]
fn queue_registers_change_in_no_status_but_features_ok() {
    for &on in Transport::ALL {
        for (status, reach) in STATUSES {
            for register in QUEUE_REGISTERS {
                for value in [0, 1, 2, 8, 0x1000, 0xffff, u32::MAX] {
                    let mut guest = TestGuest::new(on, Rng::new());
                    reach(&mut guest);
                    let before = queue_registers(&guest);
                    guest.write(register, value);
                    guest.run();
                    let frozen = status != "FEATURES_OK";
                    assert!(
                        !frozen || queue_registers(&guest) == before,
                        "{register:?} = {value:#x} in status {status} on {on:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn device_works_after_a_reset_from_every_status() {
    for &on in Transport::ALL {
        for (_, reach) in STATUSES {
            let mut guest = TestGuest::new(on, Rng::new());
            reach(&mut guest);
            works(&mut guest);
        }
    }
}

/// One thing a driver does.
#[derive(Clone, Debug)]
enum Step {
    Write(Register, u32),
    Queue { size: u16, ready: bool, skew: u8 },
    Offer { len: u32, writable: bool },
    AvailableIndex(u16),
    Ring(u16),
    WriteConfig(u64, u8),
    Start,
}

/// Registers and values that both transports can carry: one has fields of 8 and 16 bits.
fn step() -> impl Strategy<Value = Step> {
    use Register as R;
    let word = prop_oneof![3 => 0..4_u32, 1 => any::<u32>()];
    let short = prop_oneof![3 => 0..4_u32, 1 => 0..0x1_0000_u32];
    let status =
        proptest::sample::select(vec![0, 1, 2, 3, 8, 11, 15, 0x4f, 0x80, 0x8f, 0x10, 0xff]);
    let words = proptest::sample::select(vec![
        R::DeviceFeaturesSelect,
        R::DeviceFeatures,
        R::DriverFeaturesSelect,
        R::DriverFeatures,
        R::QueueDescriptorsLow,
        R::QueueDescriptorsHigh,
        R::QueueAvailableLow,
        R::QueueAvailableHigh,
        R::QueueUsedLow,
        R::QueueUsedHigh,
    ]);
    let shorts = proptest::sample::select(vec![R::QueueSelect, R::QueueSize]);
    prop_oneof![
        4 => (words, word).prop_map(|(register, value)| Step::Write(register, value)),
        2 => (shorts, short).prop_map(|(register, value)| Step::Write(register, value)),
        4 => status.prop_map(|value| Step::Write(R::Status, value)),
        1 => Just(Step::Write(R::QueueReady, 1)),
        2 => (proptest::sample::select(vec![0_u16, 1, 3, 16, 256, 512]), any::<bool>(), 0..3_u8)
            .prop_map(|(size, ready, skew)| Step::Queue { size, ready, skew }),
        3 => (0..600_u32, any::<bool>()).prop_map(|(len, writable)| Step::Offer { len, writable }),
        1 => any::<u16>().prop_map(Step::AvailableIndex),
        3 => (0..3_u16).prop_map(Step::Ring),
        1 => (0..40_u64, any::<u8>()).prop_map(|(offset, byte)| Step::WriteConfig(offset, byte)),
        2 => Just(Step::Start),
    ]
}

/// Does `step` and says what a driver can see of the device afterwards, and what is behind it.
fn take(guest: &mut TestGuest, ring: &mut GuestRing, step: &Step) -> (Vec<u32>, u64, Vec<u8>) {
    match *step {
        Step::Write(register, value) => guest.write(register, value),
        Step::Queue { size, ready, skew } => {
            let mut registers = ring.registers();
            registers.size = size.into();
            registers.ready = ready;
            registers.used += u64::from(skew);
            guest.set_queue(0, &registers);
        }
        Step::Offer { len, writable } => {
            let buffer = Buffer {
                address: BUFFERS,
                len,
                writable,
            };
            ring.add(&[buffer]);
        }
        Step::AvailableIndex(index) => ring.set_available_index(index),
        Step::Ring(index) => guest.ring(index),
        Step::WriteConfig(offset, byte) => guest.write_config(offset, &[byte]),
        Step::Start => {
            let features = guest.offered();
            guest.negotiate(features);
            *ring = GuestRing::new(guest.memory.clone(), 0, 16);
            guest.set_queue(0, &ring.registers());
            guest.add_status(DRIVER_OK);
        }
    }
    guest.run();
    let mut config = vec![0; 64];
    guest.read_config(0, &mut config);
    let mut seen: Vec<u32> = [
        Register::Status,
        Register::DeviceFeatures,
        Register::QueueReady,
        Register::ConfigGeneration,
    ]
    .map(|register| guest.read(register))
    .to_vec();
    let interrupts = guest.interrupts();
    let state = guest.state();
    seen.extend(
        [
            Register::DeviceFeaturesSelect,
            Register::DriverFeaturesSelect,
            Register::DriverFeatures,
            Register::QueueSelect,
        ]
        .iter()
        .chain(&QUEUE_REGISTERS)
        .map(|&register| state.read(register)),
    );
    drop(state);
    while let Some((head, len)) = ring.used() {
        seen.extend([head.into(), len]);
    }
    (seen, interrupts, config)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever a driver does, and in whatever order: both transports come to the same state and interrupt alike, and
    /// a reset gets the device to work.
    #[test]
    fn transports_agree_on_everything_behind_them(steps in proptest::collection::vec(step(), 1..40)) {
        let mut guests: Vec<_> = Transport::ALL
            .iter()
            .map(|&on| {
                let guest = TestGuest::new(on, disk());
                let ring = GuestRing::new(guest.memory.clone(), 0, 16);
                (guest, ring)
            })
            .collect();
        for step in &steps {
            let seen: Vec<_> = guests
                .iter_mut()
                .map(|(guest, ring)| take(guest, ring, step))
                .collect();
            for other in &seen[1..] {
                prop_assert_eq!(other, &seen[0], "after {:?}", step);
            }
        }
        for (guest, _) in &mut guests {
            let mut ring = guest.start_all();
            let header = ring.data(&[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let end = ring.buffer(1, true);
            let head = ring.add(&[header, end]);
            guest.notify(0);
            prop_assert_eq!(ring.used(), Some((head, 1)));
        }
    }
}
