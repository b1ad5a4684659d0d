//! A disk that refuses: at every operation, once or from then on, with an error or for lack of room.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;

use store::medium::Medium;
use store::medium::sim::{Failing, Image, Simulated};
use store::{Error, Options, Store};

use crate::check::{check, whole};
use crate::workload::{Dice, Shown, State, options, snapshot, step};

const STEPS: usize = 8;

fn open(medium: &Simulated) -> Result<Store, Error> {
    let shared: Arc<dyn Medium> = Arc::new(medium.clone());
    // What is read comes from the disk.
    let options = Options {
        cache: 0,
        ..options()
    };
    Store::open(shared, options)
}

/// A store with something in it.
fn begun() -> Image {
    let medium = Simulated::default();
    let shared: Arc<dyn Medium> = Arc::new(medium.clone());
    let store = Store::create(shared, options()).unwrap();
    let mut dice = Dice::new(3);
    for parent in [None, Some(1), Some(2)] {
        snapshot(&store, &mut dice, parent, true).unwrap();
    }
    drop(store);
    medium.image()
}

/// Opens a store and works with it until something fails: what may be seen afterwards. `states` are what the steps come
/// to on a disk that works.
fn work(medium: &Simulated, seed: u64, states: &[State]) -> Option<(Vec<State>, Error)> {
    let store = match open(medium) {
        Ok(store) => store,
        Err(error) => return Some((vec![states[0].clone()], error)),
    };
    let mut dice = Dice::new(seed);
    for now in 0..STEPS {
        let Err(error) = step(&store, &mut dice) else {
            continue;
        };
        // A commit whose last sync failed may be durable all the same.
        let mut allowed = states[now..=now + 1].to_vec();
        // It may go on, or it says that it cannot.
        let goes_on = snapshot(&store, &mut dice, None, true);
        match goes_on {
            Ok(()) => allowed = vec![Some(Shown::of(&store))],
            Err(error) => {
                assert!(!error.to_string().is_empty());
                // Who has it open, and whose disk can still be read, has all of it.
                let what = || format!("seed {seed}, read after {error:?}");
                let shown = Some(Shown::of(&store));
                assert!(allowed.contains(&shown), "{}: {shown:?}", what());
                whole(&store, &what);
            }
        }
        return Some((allowed, error));
    }
    None
}

/// What each step comes to if nothing fails.
fn undisturbed(image: &Image, seed: u64) -> Vec<State> {
    let medium = Simulated::of(image.clone());
    let store = open(&medium).unwrap();
    let mut dice = Dice::new(seed);
    let mut states = vec![Some(Shown::of(&store))];
    for _ in 0..STEPS {
        step(&store, &mut dice).unwrap();
        states.push(Some(Shown::of(&store)));
    }
    states
}

#[test]
fn a_disk_that_fails_at_any_operation_hurts_nothing_that_was_committed() {
    let image = begun();
    let mut count = 0_u64;
    let mut adopted = false;
    for seed in 0..3 {
        let states = undisturbed(&image, seed);
        adopted |= (states.iter().flatten()).any(|shown| !shown.images.is_empty());
        for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
            for once in [true, false] {
                let mut after = 0;
                loop {
                    let medium = Simulated::of(image.clone());
                    medium.fail(Some(Failing { after, once, kind }));
                    let Some((allowed, error)) = work(&medium, seed, &states) else {
                        break;
                    };
                    medium.fail(None);
                    let what = || format!("seed {seed}, {kind:?} at operation {after}: {error:?}");
                    if kind == ErrorKind::StorageFull {
                        assert!(matches!(error, Error::Full { .. }), "{}", what());
                        assert!(error.to_string().contains("full"), "{error}");
                    }
                    check(medium.image(), &allowed, false, &what);
                    count += 1;
                    after += 1;
                }
            }
        }
    }
    writeln!(
        io::stdout(),
        "counted: {count} failures of the disk under the store"
    )
    .unwrap();
    assert!(count > 1000);
    assert!(adopted, "another seed would do");
}
