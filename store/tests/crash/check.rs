//! What must hold of any store that is opened after a power cut.

use std::sync::Arc;

use store::medium::Medium;
use store::medium::sim::{Image, Power, Simulated};
use store::{BlockDevice, Digest, Error, Store, Thoroughness};

use crate::workload::{Dice, Shown, State, attach, options, snapshot};

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
    let found = Shown::of(&store);
    assert!(
        allowed.contains(&Some(found.clone())),
        "{}: {found:?} is none of {allowed:?}",
        what()
    );
    whole(&store, what);
    // Nobody has attached images yet: those on which nothing stands go.
    let collected = store.collect(Thoroughness::All, &mut |_, _| {});
    assert_eq!(collected.unwrap().damaged, 0, "{}", what());
    let after = Shown::of(&store);
    assert_eq!(after.snapshots, found.snapshots, "{}", what());
    let images = after.images.iter();
    let used = images.filter(|image| used(&store, image));
    assert_eq!(used.count(), after.images.len(), "{}", what());
    tight(&store, what);
    attach(&store);
    whole(&store, what);
    disks(&store, what);
    if !deep {
        return 0;
    }
    // The store goes on.
    let parent = store.list().unwrap().last().map(|info| info.id);
    let count = store.list().unwrap().len();
    snapshot(&store, &mut Dice::new(5), parent, true).unwrap();
    assert_eq!(store.list().unwrap().len(), count + 1, "{}", what());
    let last = Shown::of(&store);
    whole(&store, what);
    drop(store);
    in_recovery(&medium, &[Some(found), Some(after), Some(last)], what)
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
pub fn whole(store: &Store, what: &dyn Fn() -> String) {
    let verified = store.verify(&mut |_| {}).unwrap();
    let problems = verified.problems;
    assert!(problems.is_empty(), "{}: {problems:?}", what());
}

/// Whether anything stands on an image.
fn used(store: &Store, image: &Digest) -> bool {
    let disks = store.disks().unwrap();
    let snapshots = store.list().unwrap();
    let mut objects = snapshots.iter().flat_map(|info| &info.objects);
    disks.iter().any(|disk| disk.image.as_ref() == Some(image))
        || objects.any(|object| object.image.as_ref() == Some(image))
}

/// Every disk opens and can be read, to the end.
fn disks(store: &Store, what: &dyn Fn() -> String) {
    for info in store.disks().unwrap() {
        let read = store.open_disk(&info.name).and_then(|disk| {
            let mut bytes = vec![0; usize::try_from(info.len).unwrap()];
            disk.read_at(0, &mut bytes)
        });
        read.unwrap_or_else(|error| panic!("{}: {info:?}: {error}", what()));
    }
}

/// Not a byte more than what is referenced: a header of 4096 bytes per segment.
fn tight(store: &Store, what: &dyn Fn() -> String) {
    let status = store.status().unwrap();
    let needed = status.referenced + status.segments * 4096;
    assert_eq!(status.stored, needed, "{}: {status:?}", what());
    assert!(status.foreign.is_empty(), "{}: {status:?}", what());
    assert_eq!(store.files().unwrap(), status.segments, "{}", what());
}
