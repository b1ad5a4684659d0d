//! What is done to the store while it is recorded.

use std::sync::Arc;

use store::medium::Medium;
use store::medium::sim::{Log, Simulated};
use store::{Compression, Info, Options, PAGE, Result, Spec, Store, Thoroughness};

/// Numbers that are the same each time.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        // Splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// What the store is to show: nothing before there is one.
pub type State = Option<Vec<Info>>;

/// A call, and what the store showed before and after it.
struct Call {
    to: usize,
    before: State,
    after: State,
}

/// A workload that was done.
pub struct Recorded {
    pub log: Log,
    calls: Vec<Call>,
}

pub fn options() -> Options {
    Options {
        // A few snapshots fill a segment.
        segment: 96 << 10,
        cache: 1 << 20,
        ..Options::default()
    }
}

/// A page: one of a few that are everywhere, one that compresses, or one that does not.
fn page(dice: &mut Dice) -> [u8; PAGE] {
    let kind = dice.below(8);
    let seed = if kind < 3 {
        dice.below(6)
    } else {
        dice.below(u64::MAX)
    };
    let mut page = [0; PAGE];
    let mut noise = Dice::new(seed);
    let filled = if kind == 7 { PAGE } else { 40 };
    for byte in &mut page[..filled] {
        *byte = u8::try_from(noise.below(256)).unwrap();
    }
    page
}

/// Writes a snapshot that goes on from `parent`.
pub fn snapshot(store: &Store, dice: &mut Dice, parent: Option<u64>, commit: bool) -> Result<()> {
    let spec = Spec {
        guest: format!("guest{}", dice.below(2)),
        parent,
        time_ms: dice.below(1 << 40),
        ..Spec::default()
    };
    let compression = [Compression::Off, Compression::Fast][usize::from(dice.below(2) == 0)];
    let mut writer = store.begin_with(spec, compression)?;
    for name in ["ram", "disk:root"] {
        if dice.below(8) == 0 {
            continue;
        }
        let pages = [20, 32, 50, 1100][usize::try_from(dice.below(4)).unwrap()];
        let object = writer.object(name, pages * PAGE as u64)?;
        for _ in 0..dice.below(12) {
            let at = dice.below(pages) * PAGE as u64;
            let zero = dice.below(6) == 0;
            let bytes = if zero { [0; PAGE] } else { page(dice) };
            writer.write(object, at, &bytes)?;
        }
    }
    let blob = page(dice);
    writer.blob("devices", &blob[..777])?;
    if commit {
        writer.commit()?;
    }
    Ok(())
}

/// One thing that somebody does to a store.
pub fn step(store: &Store, dice: &mut Dice) -> Result<()> {
    let all = store.list()?;
    let some = |dice: &mut Dice| {
        let at = dice.below(all.len().max(1) as u64);
        all.get(usize::try_from(at).unwrap()).map(|info| info.id)
    };
    match dice.below(10) {
        0..=4 => {
            let parent = some(dice).filter(|_| dice.below(5) > 0);
            snapshot(store, dice, parent, true)
        }
        5 => {
            let parent = some(dice);
            snapshot(store, dice, parent, false)
        }
        6 | 7 => match some(dice) {
            Some(id) if all.len() > 1 => store.delete(id),
            _ => Ok(()),
        },
        8 => match some(dice) {
            Some(id) => store.mark(id, |labels, good| {
                labels.insert("why".to_owned(), "because".to_owned());
                *good = true;
            }),
            None => Ok(()),
        },
        _ => store.collect(Thoroughness::All, &mut |_, _| {}).map(drop),
    }
}

impl Recorded {
    pub fn new(seed: u64) -> Self {
        let medium = Simulated::default();
        medium.record();
        let shared: Arc<dyn Medium> = Arc::new(medium.clone());
        let store = Store::create(shared, options()).unwrap();
        let mut calls = vec![Call {
            to: medium.place(),
            before: None,
            after: Some(Vec::new()),
        }];
        let mut dice = Dice::new(seed);
        for _ in 0..14 {
            let before = Some(store.list().unwrap());
            step(&store, &mut dice).unwrap();
            calls.push(Call {
                to: medium.place(),
                before,
                after: Some(store.list().unwrap()),
            });
        }
        drop(store);
        let log = medium.recorded();
        Self { log, calls }
    }

    /// What the store may show if the power is cut before operation `at`.
    pub fn allowed(&self, at: usize) -> Vec<State> {
        match self.calls.iter().find(|call| at < call.to) {
            Some(call) => vec![call.before.clone(), call.after.clone()],
            None => vec![self.calls.last().unwrap().after.clone()],
        }
    }
}
