//! Every register, in every status, by every width: what a guest can do to a transport by single accesses, all of it,
//! held against one [`model`] of the specification for both transports.
//!
//! A sweep brings device and model into a situation, makes one access to both, and compares everything that a driver can
//! see or has set. Situations cover every device status there is; that they do is checked as well: no access leads to a
//! status that was not swept. The number of accesses is printed.

mod config_space;
mod configs;
mod mmio;
mod model;
mod pci;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Arc, MutexGuard};

use proptest::prelude::*;

use self::mmio::Mmio;
use self::model::{Model, OFFERED, QUEUES};
use self::pci::Pci;
use super::balloon::{Balloon, Options};
use super::device::VirtioDevice;
use super::state::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET, Register, SharedState,
    VirtioState,
};
use super::testing::{GuestRing, guest_memory};
use crate::bus::Bus;
use crate::memory::GuestMemory;

/// Widths of an access in bytes. A processor makes the first four; the others come from accesses that straddle ranges.
const WIDTHS: [usize; 9] = [1, 2, 4, 8, 3, 5, 6, 7, 16];
/// How far before and behind a range a sweep goes.
const MARGIN: u64 = 8;
/// What is written, cut to the width of the access.
const VALUES: [u64; 22] = [
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    0xb,
    0xf,
    0x10,
    0x40,
    0x4f,
    0x80,
    0x8f,
    0x100,
    0x1001,
    0x8000,
    0xffff,
    0x1_0000,
    0x8000_0000,
    u64::MAX,
];

/// The device that is swept, and the memory of its queues.
fn swept() -> (Box<dyn VirtioDevice>, Arc<GuestMemory>) {
    let options = Options {
        page_reporting: true,
        ..Options::default()
    };
    (Box::new(Balloon::new(options).unwrap()), guest_memory())
}

/// A real device behind a transport, and what the model says of that transport.
trait World {
    /// What the transport remembers beside the state machine.
    type Transport: Clone + Default + PartialEq + std::fmt::Debug;

    fn new() -> Self;
    fn name() -> &'static str;
    fn state(&self) -> &SharedState;
    fn memory(&self) -> &Arc<GuestMemory>;
    fn bus(&self) -> &Bus;
    /// Where the transport's registers are on the bus, and how many bytes.
    fn base() -> u64;
    fn len() -> u64;
    /// Something is at `offset`: it is swept with all values.
    fn has_registers(offset: u64) -> bool;
    /// Where a driver writes `register`, and its width.
    fn place(register: Register) -> (u64, usize);
    /// How a driver notifies `queue`.
    fn notification(queue: u16) -> (u64, Vec<u8>);
    /// By the model: what is read at `offset`.
    fn read(model: &mut Model, transport: &mut Self::Transport, offset: u64, data: &mut [u8]);
    /// By the model: takes what is written at `offset`.
    fn write(model: &mut Model, transport: &mut Self::Transport, offset: u64, data: &[u8]);
    /// By the model: passes on to the driver what the device has to say.
    fn settle(model: &Model, transport: &mut Self::Transport);
    /// Switches interrupts on, where that is the transport's business.
    fn arm(&self, transport: &mut Self::Transport);
    /// Brings the transport back to where it was when it was made.
    fn rewind(&self);
    /// Compares what is the transport's own.
    fn check(&self, transport: &mut Self::Transport);
    /// The bytes of an access to `offset` (which may lie before the range) that reach the transport.
    fn reached(offset: i64, width: usize) -> Range<usize>;
}

/// One thing on the way to a situation.
#[derive(Clone, Copy)]
enum Step {
    Write(Register, u32),
    /// Queue 0 is set up, as a driver does or with this size.
    Queue(u32),
    /// The driver breaks the rules of queue 0's ring.
    Break,
    Notify,
}

/// A status the device can be in, with what belongs to it.
struct Situation {
    name: &'static str,
    status: u32,
    steps: &'static [Step],
}

const UP: [Step; 6] = [
    Step::Write(Register::Status, ACKNOWLEDGE),
    Step::Write(Register::Status, ACKNOWLEDGE | DRIVER),
    Step::Write(Register::DriverFeatures, (OFFERED & 0xffff_ffff) as u32),
    Step::Write(Register::DriverFeaturesSelect, 1),
    Step::Write(Register::DriverFeatures, (OFFERED >> 32) as u32),
    Step::Write(Register::Status, FEATURES_SET),
];
const FEATURES_SET: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
const RUNNING: u32 = FEATURES_SET | DRIVER_OK;

const fn up<const N: usize>(rest: &[Step]) -> [Step; N] {
    let mut steps = [Step::Notify; N];
    let mut at = 0;
    while at < N {
        steps[at] = if at < UP.len() {
            UP[at]
        } else {
            rest[at - UP.len()]
        };
        at += 1;
    }
    steps
}

const START: Step = Step::Write(Register::Status, RUNNING);

const SITUATIONS: [Situation; 20] = {
    const fn situation(name: &'static str, status: u32, steps: &'static [Step]) -> Situation {
        Situation {
            name,
            status,
            steps,
        }
    }
    const fn status(value: u32) -> Step {
        Step::Write(Register::Status, value)
    }
    [
        situation("reset", 0, &[]),
        situation("acknowledged", ACKNOWLEDGE, &[status(ACKNOWLEDGE)]),
        situation("driver", 3, &[status(1), status(3)]),
        situation(
            "driver with features it was not offered",
            3,
            &[
                status(1),
                status(3),
                Step::Write(Register::DriverFeatures, 1),
                status(FEATURES_SET),
            ],
        ),
        situation("driver about to take features", 3, {
            const STEPS: [Step; 5] = [UP[0], UP[1], UP[2], UP[3], UP[4]];
            &STEPS
        }),
        situation("features", FEATURES_SET, &UP),
        situation("features, a queue that does not exist", FEATURES_SET, {
            const STEPS: [Step; 7] = up(&[Step::Write(Register::QueueSelect, 5)]);
            &STEPS
        }),
        situation("features, queue ready", FEATURES_SET, {
            const STEPS: [Step; 7] = up(&[Step::Queue(16)]);
            &STEPS
        }),
        situation("features, queue ready and broken", FEATURES_SET, {
            const STEPS: [Step; 8] = up(&[Step::Queue(16), Step::Break]);
            &STEPS
        }),
        situation("features, queue ready of a bad size", FEATURES_SET, {
            const STEPS: [Step; 7] = up(&[Step::Queue(3)]);
            &STEPS
        }),
        situation("running without a queue", RUNNING, {
            const STEPS: [Step; 7] = up(&[START]);
            &STEPS
        }),
        situation("running", RUNNING, {
            const STEPS: [Step; 8] = up(&[Step::Queue(16), START]);
            &STEPS
        }),
        situation("running, ring broken since", RUNNING, {
            const STEPS: [Step; 9] = up(&[Step::Queue(16), START, Step::Break]);
            &STEPS
        }),
        situation("needs reset", RUNNING | NEEDS_RESET, {
            const STEPS: [Step; 10] = up(&[Step::Queue(16), START, Step::Break, Step::Notify]);
            &STEPS
        }),
        situation("failed at once", FAILED, &[status(FAILED)]),
        situation(
            "failed after acknowledging",
            0x81,
            &[status(1), status(0x81)],
        ),
        situation(
            "failed as a driver",
            0x83,
            &[status(1), status(3), status(0x83)],
        ),
        situation("failed with features", 0x8b, {
            const STEPS: [Step; 7] = up(&[status(0x8b)]);
            &STEPS
        }),
        situation("failed while running", 0x8f, {
            const STEPS: [Step; 8] = up(&[START, status(0x8f)]);
            &STEPS
        }),
        situation("needs reset and failed", 0xcf, {
            const STEPS: [Step; 11] = up(&[
                Step::Queue(16),
                START,
                Step::Break,
                Step::Notify,
                status(0xcf),
            ]);
            &STEPS
        }),
    ]
};

/// Device and model side by side.
struct Pair<W: World> {
    world: W,
    model: Model,
    transport: W::Transport,
    /// Statuses seen.
    seen: BTreeSet<u32>,
}

impl<W: World> Pair<W> {
    fn new() -> Self {
        Self {
            world: W::new(),
            model: Model::new(),
            transport: W::Transport::default(),
            seen: BTreeSet::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, VirtioState> {
        self.world.state().lock().unwrap()
    }

    /// Goes back to the start and to `situation`.
    fn enter(&mut self, situation: &Situation, armed: bool) {
        self.world.rewind();
        GuestRing::new(self.world.memory().clone(), 0, 16).set_available_index(0);
        let refused = self.state().refused_writes();
        self.model = Model {
            refused,
            ..Model::new()
        };
        self.transport = W::Transport::default();
        if armed {
            self.world.arm(&mut self.transport);
        }
        for step in situation.steps {
            self.step(*step);
        }
        self.check();
        assert_eq!(self.model.status, situation.status, "{}", situation.name);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(register, value) => self.set(register, value),
            Step::Queue(size) => {
                let mut registers = GuestRing::new(self.world.memory().clone(), 0, 16).registers();
                registers.size = size;
                self.set(Register::QueueSelect, 0);
                self.set(Register::QueueSize, registers.size);
                let low = |address: u64| u32::try_from(address).unwrap();
                self.set(Register::QueueDescriptorsLow, low(registers.descriptors));
                self.set(Register::QueueAvailableLow, low(registers.available));
                self.set(Register::QueueUsedLow, low(registers.used));
                self.set(Register::QueueReady, 1);
            }
            Step::Break => {
                let ring = GuestRing::new(self.world.memory().clone(), 0, 16);
                ring.set_available_index(u16::MAX);
                self.model.broken_ring = true;
            }
            Step::Notify => {
                let (offset, data) = W::notification(0);
                self.write(i64::try_from(offset).unwrap(), &data);
            }
        }
    }

    fn set(&mut self, register: Register, value: u32) {
        let (offset, width) = W::place(register);
        let data = &value.to_le_bytes()[..width];
        self.write(i64::try_from(offset).unwrap(), data);
    }

    /// One write to both.
    fn write(&mut self, offset: i64, data: &[u8]) {
        let reached = W::reached(offset, data.len());
        if !reached.is_empty() {
            let at = offset.max(0).unsigned_abs();
            W::write(&mut self.model, &mut self.transport, at, &data[reached]);
        }
        let address = W::base().wrapping_add_signed(offset);
        self.world.bus().write(address, data);
        self.settle();
    }

    /// One read of both, compared.
    fn read(&mut self, offset: i64, width: usize) {
        let (mut expected, mut data) = ([0xff; 16], [0x5a; 16]);
        let reached = W::reached(offset, width);
        if !reached.is_empty() {
            let at = offset.max(0).unsigned_abs();
            let expected = &mut expected[reached];
            W::read(&mut self.model, &mut self.transport, at, expected);
        }
        let address = W::base().wrapping_add_signed(offset);
        self.world.bus().read(address, &mut data[..width]);
        assert_eq!(data[..width], expected[..width], "read");
    }

    /// Lets the device thread work, where the model says that a doorbell was rung.
    fn settle(&mut self) {
        let rung = std::mem::take(&mut self.model.rung);
        for queue in (0..QUEUES).filter(|queue| rung & 1 << queue != 0) {
            self.model.work(queue);
        }
        W::settle(&self.model, &mut self.transport);
        if rung != 0 {
            assert_eq!(self.answer_doorbells(), rung, "doorbells rung");
        }
    }

    /// Does the device thread's work, and says which doorbells had been rung.
    fn answer_doorbells(&self) -> u32 {
        let doorbells = self.state().doorbells();
        let answer = || {
            let mut rung = 0;
            for (queue, doorbell) in (0..).zip(doorbells.iter()) {
                if doorbell.read().is_ok() {
                    rung |= 1 << queue;
                    self.state().process_queue(queue);
                }
            }
            rung
        };
        let first = answer();
        // A queue whose turn was over, because this thread had to wait for a processor, rings for itself.
        while answer() & first != 0 {}
        first
    }

    /// Compares everything.
    fn check(&mut self) {
        assert_eq!(self.answer_doorbells(), 0, "nothing else rings");
        self.world.check(&mut self.transport);
        let mut state = self.state();
        assert_eq!(state.refused_writes(), self.model.refused, "refused");
        let mut real = Model {
            status: state.read(Register::Status),
            device_page: state.read(Register::DeviceFeaturesSelect),
            driver_page: state.read(Register::DriverFeaturesSelect),
            selected: state.read(Register::QueueSelect),
            ..self.model.clone()
        };
        state.write(Register::DriverFeaturesSelect, 1);
        let high = u64::from(state.read(Register::DriverFeatures));
        state.write(Register::DriverFeaturesSelect, 0);
        real.features = high << 32 | u64::from(state.read(Register::DriverFeatures));
        state.write(Register::DriverFeaturesSelect, real.driver_page);
        for (index, queue) in (0..).zip(&mut real.queues) {
            state.write(Register::QueueSelect, index);
            let wide = |low, high| u64::from(state.read(high)) << 32 | u64::from(state.read(low));
            queue.size = state.read(Register::QueueSize);
            queue.ready = state.read(Register::QueueReady) == 1;
            queue.descriptors = wide(
                Register::QueueDescriptorsLow,
                Register::QueueDescriptorsHigh,
            );
            queue.available = wide(Register::QueueAvailableLow, Register::QueueAvailableHigh);
            queue.used = wide(Register::QueueUsedLow, Register::QueueUsedHigh);
        }
        state.write(Register::QueueSelect, real.selected);
        state.read_config(0, &mut real.config);
        assert_eq!(real, self.model);
        drop(state);
        self.seen.insert(self.model.status);
    }
}

/// The values of `width` bytes to write; `all` of them or the telling ones.
fn values(width: usize, all: bool) -> Vec<Vec<u8>> {
    let values: &[u64] = if all { &VALUES } else { &[u64::MAX] };
    let mut list: Vec<Vec<u8>> = values
        .iter()
        .map(|value| value.to_le_bytes().repeat(2)[..width].to_vec())
        .collect();
    list.sort();
    list.dedup();
    list
}

/// Every byte the status register can be given, and more than a byte where it is wider.
fn statuses(width: usize) -> Vec<Vec<u8>> {
    let wide = [0x100, 0x10f, 0x8000_000f, u32::MAX];
    let mut list: Vec<Vec<u8>> = (0..=0xff)
        .chain(wide)
        .map(|value: u32| value.to_le_bytes()[..width].to_vec())
        .collect();
    list.sort();
    list.dedup();
    list
}

/// Makes every access in every situation; says how many.
fn sweep<W: World>() -> u64 {
    let mut cases = 0;
    let mut pair = Pair::<W>::new();
    let all = [1, 2, 4, 8, 3, 5, 6, 7, 16].map(|width| (width, values(width, true)));
    let few = [1, 2, 4, 8, 3, 5, 6, 7, 16].map(|width| (width, values(width, false)));
    let (status_at, status_width) = W::place(Register::Status);
    let status_values = statuses(status_width);
    let margin = i64::try_from(MARGIN).unwrap();
    let end = i64::try_from(W::len() + MARGIN).unwrap();
    for (index, situation) in SITUATIONS.iter().enumerate() {
        pair.enter(situation, index % 2 == 1);
        let mut before = (pair.model.clone(), pair.transport.clone());
        for offset in -margin..end {
            let near =
                (0..16).any(|ahead| u64::try_from(offset + ahead).is_ok_and(W::has_registers));
            for (width, values) in if near { &all } else { &few } {
                let status = u64::try_from(offset) == Ok(status_at) && *width == status_width;
                let values = if status { &status_values } else { values };
                let reads = std::iter::once(None);
                for write in reads.chain(values.iter().map(Some)) {
                    let access = std::panic::AssertUnwindSafe(|| {
                        match write {
                            None => pair.read(offset, *width),
                            Some(data) => pair.write(offset, data),
                        }
                        let refused = pair.state().refused_writes();
                        assert_eq!(refused, pair.model.refused, "refused");
                        let changed = {
                            before.0.refused = pair.model.refused;
                            (&before.0, &before.1) != (&pair.model, &pair.transport)
                        };
                        if changed {
                            pair.check();
                            pair.enter(situation, index % 2 == 1);
                            before = (pair.model.clone(), pair.transport.clone());
                        }
                    });
                    if let Err(panic) = std::panic::catch_unwind(access) {
                        let on = W::name();
                        let what =
                            write.map_or_else(|| "a read".to_owned(), |data| format!("{data:x?}"));
                        let name = situation.name;
                        report(&format!(
                            "{on}: {what} of {width} bytes at {offset:#x}, situation: {name}"
                        ));
                        std::panic::resume_unwind(panic);
                    }
                    cases += 1;
                }
            }
            if near || offset % 64 == 0 {
                pair.check();
            }
        }
        pair.check();
    }
    let swept: BTreeSet<u32> = SITUATIONS
        .iter()
        .map(|situation| situation.status)
        .collect();
    assert_eq!(
        pair.seen, swept,
        "every status that can be reached is swept"
    );
    cases
}

/// Past libtest's capture: the numbers are for whoever runs the tests.
pub fn report(line: &str) {
    writeln!(io::stdout(), "counted: {line}").unwrap();
}

#[test]
fn every_register_in_every_status_by_every_width_is_as_the_model_on_mmio() {
    let cases = sweep::<Mmio>();
    report(&format!("{cases} register accesses on MMIO"));
}

#[test]
fn every_register_in_every_status_by_every_width_is_as_the_model_on_pci() {
    let cases = sweep::<Pci>();
    report(&format!("{cases} register accesses on PCI"));
}

/// Any accesses one after the other: where, how wide, and what is written.
fn accesses(len: u64) -> impl Strategy<Value = Vec<(u64, usize, Option<u64>)>> {
    let value = prop_oneof![proptest::sample::select(&VALUES[..]), any::<u64>()];
    let near = prop_oneof![0..0x120_u64, 0x3000..0x3070_u64, 0x6000..0x6020_u64, 0..len];
    let offset = prop_oneof![3 => near.clone().prop_map(|at| at & !3), 1 => near];
    let width = prop_oneof![3 => Just(4_usize), 1 => proptest::sample::select(&WIDTHS[..])];
    proptest::collection::vec(
        (offset, width, proptest::option::weighted(0.8, value)),
        1..60,
    )
}

fn follow<W: World>(situation: usize, accesses: &[(u64, usize, Option<u64>)]) {
    let mut pair = Pair::<W>::new();
    pair.enter(&SITUATIONS[situation], situation % 3 == 1);
    for (offset, width, write) in accesses {
        let offset = i64::try_from(offset % W::len()).unwrap();
        match write {
            None => pair.read(offset, *width),
            Some(value) => {
                let data = value.to_le_bytes().repeat(2);
                pair.write(offset, &data[..*width]);
            }
        }
        pair.check();
    }
}

proptest! {
    /// Not only one access: any number, from anywhere.
    #[test]
    fn sequences_of_accesses_are_as_the_model(
        situation in 0..SITUATIONS.len(),
        accesses in accesses(0x8000),
    ) {
        follow::<Mmio>(situation, &accesses);
        follow::<Pci>(situation, &accesses);
    }
}
