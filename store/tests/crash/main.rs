//! Power cuts: a workload of snapshots, deletions and garbage collection is recorded, and what each power cut could
//! leave is opened and looked at.
//!
//! After every cut: each snapshot whose commit had returned is there and whole, the one that was being committed is
//! there whole or not at all, and after garbage has been collected not one byte is stored that nothing refers to.
//!
//! `DARUMA_CRASH_STATES` sets how many states are wanted.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod check;
mod faults;
mod workload;

use std::collections::HashSet;
use std::io::{self, Write};
use std::thread;

use store::medium::sim::Power;

use self::check::check;
use self::workload::{Dice, Recorded};

/// States of the ordinary run.
const STATES: u64 = 100_000;
/// Subsets of what is pending, per cut.
const SUBSETS: u64 = 24;
const THREADS: u64 = 2;

#[derive(Default)]
struct Tally {
    states: u64,
    same: u64,
    cuts: u64,
    in_recovery: u64,
    workloads: u64,
    /// Workloads with snapshots that stand on images.
    on_images: u64,
}

/// All states of one workload.
fn run(seed: u64, tally: &mut Tally) {
    let recorded = Recorded::new(seed);
    let mut seen = HashSet::new();
    let mut dice = Dice::new(seed ^ 0xdead);
    let mut power = Power::new(&recorded.log);
    loop {
        tally.cuts += 1;
        let at = power.at();
        let allowed = recorded.allowed(at);
        let torn = (0..power.next_sectors()).map(|sectors| power.torn(sectors));
        let mut images: Vec<_> = torn.collect();
        images.push(power.nothing());
        for _ in 0..SUBSETS.min(1 << power.pending().min(20)) {
            images.push(power.some(&mut |below| dice.below(below)));
        }
        for image in images {
            if !seen.insert(image.fingerprint()) {
                tally.same += 1;
                continue;
            }
            tally.states += 1;
            let deep = tally.states.is_multiple_of(256);
            let what = || format!("workload {seed}, cut before operation {at}");
            tally.in_recovery += check(image, &allowed, deep, &what);
        }
        if !power.step() {
            break;
        }
    }
    tally.workloads += 1;
    tally.on_images += u64::from(recorded.on_images());
}

#[test]
fn every_power_cut_leaves_whole_snapshots_and_nothing_else() {
    let wanted: u64 = std::env::var("DARUMA_CRASH_STATES")
        .map_or(STATES, |text| text.parse().expect("a number of states"));
    let parts: Vec<Tally> = thread::scope(|scope| {
        let run_some = |thread: u64| {
            let mut tally = Tally::default();
            let mut seed = thread;
            while tally.states + tally.in_recovery < wanted / THREADS {
                run(seed, &mut tally);
                seed += THREADS;
            }
            tally
        };
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || run_some(thread)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let sum = |part: fn(&Tally) -> u64| parts.iter().map(part).sum::<u64>();
    let (states, recovery) = (sum(|tally| tally.states), sum(|tally| tally.in_recovery));
    assert!(states + recovery >= wanted);
    let on_images = sum(|tally| tally.on_images);
    assert!(on_images > 0);
    // Not by `println`, which the test harness takes.
    writeln!(
        io::stdout(),
        "counted: {} crash states of the store ({} power cuts in {} workloads, {on_images} of \
         them with snapshots on images, {} of the states in recovery; {} more were equal to others)",
        states + recovery,
        sum(|tally| tally.cuts),
        sum(|tally| tally.workloads),
        recovery,
        sum(|tally| tally.same),
    )
    .unwrap();
}
