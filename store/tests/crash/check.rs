//! What must hold of any store that is opened after a power cut.

use std::sync::Arc;

use store::medium::Medium;
use store::medium::sim::{Image, Power, Simulated};
use store::{Error, Store, Thoroughness};

use crate::workload::{Dice, State, options, snapshot};

/// Opens a store and checks everything. Returns how many states of cuts during that were checked too, if `deep`.
pub fn check(image: Image, allowed: &[State], deep: bool, what: &dyn Fn() -> String) -> u64 {
    let medium = Simulated::of(image);
    if deep {
        medium.record();
    }
    let shared: Arc<dyn Medium> = Arc::new(medium.clone());
    let store = match Store::open(Arc::clone(&shared), options()) {
        Ok(store) => store,
        Err(Error::NotAStore { .. }) if allowed.contains(&None) => {
            Store::create(shared, options()).unwrap_or_else(|error| panic!("{}: {error}", what()));
            return 0;
        }
        Err(error) => panic!("{}: {error:?}", what()),
    };
    let found = Some(store.list().unwrap());
    assert!(
        allowed.contains(&found),
        "{}: {found:?} is none of {allowed:?}",
        what()
    );
    whole(&store, what);
    let collected = store.collect(Thoroughness::All, &mut |_, _| {});
    assert_eq!(collected.unwrap().damaged, 0, "{}", what());
    assert_eq!(Some(store.list().unwrap()), found, "{}", what());
    tight(&store, what);
    whole(&store, what);
    if !deep {
        return 0;
    }
    // The store goes on.
    let parent = store.list().unwrap().last().map(|info| info.id);
    let count = store.list().unwrap().len();
    snapshot(&store, &mut Dice::new(5), parent, true).unwrap();
    assert_eq!(store.list().unwrap().len(), count + 1, "{}", what());
    let after = Some(store.list().unwrap());
    whole(&store, what);
    drop(store);
    in_recovery(&medium, &[found, after], what)
}

/// Power cuts while the store was opened and collected.
fn in_recovery(medium: &Simulated, allowed: &[State], what: &dyn Fn() -> String) -> u64 {
    let log = medium.recorded();
    let mut power = Power::new(&log);
    let mut dice = Dice::new(9);
    let mut states = 0;
    loop {
        let images = [
            power.torn(power.next_sectors() / 2),
            power.nothing(),
            power.some(&mut |below| dice.below(below)),
        ];
        for image in images {
            states += 1;
            let at = power.at();
            let what = || format!("{}, then before operation {at} of recovery", what());
            check(image, allowed, false, &what);
        }
        if !power.step() {
            return states;
        }
    }
}

/// Every chunk is there, with its hash, and every reference is counted.
fn whole(store: &Store, what: &dyn Fn() -> String) {
    let verified = store.verify(&mut |_| {}).unwrap();
    let problems = verified.problems;
    assert!(problems.is_empty(), "{}: {problems:?}", what());
}

/// Not a byte more than what is referenced: a header of 4096 bytes per segment.
fn tight(store: &Store, what: &dyn Fn() -> String) {
    let status = store.status().unwrap();
    let needed = status.referenced + status.segments * 4096;
    assert_eq!(status.stored, needed, "{}: {status:?}", what());
    assert!(status.foreign.is_empty(), "{}: {status:?}", what());
    assert_eq!(store.files().unwrap(), status.segments, "{}", what());
}
