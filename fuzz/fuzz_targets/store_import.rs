//! A file that says that it is an exported snapshot: sizes, pages and hashes that lie. Whatever becomes of it, the store is
//! whole afterwards.
#![no_main]

use std::cell::RefCell;
use std::sync::Arc;

use store::medium::sim::Simulated;
use store::{Options, PAGE, Spec, Store};

/// Bytes of the hash at the end.
const DIGEST: usize = 32;

fn store() -> Store {
    Store::create(Arc::new(Simulated::default()), Options::default()).expect("a store")
}

/// Exported snapshots, without their hashes.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for pages in [0, 1, 3, 40] {
        let store = store();
        let mut writer = store.begin(Spec::default()).expect("a writer");
        let ram = writer.object("ram", 1 << 20).expect("an object");
        for page in 0..pages {
            let bytes = [u8::try_from(page).unwrap_or(0) + 1; PAGE];
            writer
                .write(ram, page * 5 * PAGE as u64, &bytes)
                .expect("a page");
        }
        let id = writer.commit().expect("a snapshot").id;
        let mut file = Vec::new();
        store.export(id, &mut file, &mut |_, _| {}).expect("a file");
        file.truncate(file.len() - DIGEST);
        seeds.push(file);
    }
    seeds
}

/// Runs `work` on a store that is empty before and after. Making one takes longer than an import; what imports have left
/// in its files goes with the next.
fn with_store(work: impl FnOnce(&Store)) {
    const USES: u32 = 256;
    thread_local! {
        static STORE: RefCell<Option<(Store, u32)>> = const { RefCell::new(None) };
    }
    STORE.with_borrow_mut(|kept| {
        let (store, uses) = kept.get_or_insert_with(|| (store(), 0));
        work(store);
        *uses += 1;
        if *uses == USES {
            *kept = None;
        }
    });
}

fn import(store: &Store, file: &[u8]) {
    let count = || store.list().expect("a list").len();
    let check = || {
        let problems = store.verify(&mut |_| {}).expect("a look at everything");
        assert!(problems.problems.is_empty(), "{:?}", problems.problems);
    };
    match store.import(&mut &*file, &mut |_| {}) {
        Ok(info) => {
            let snapshot = store.snapshot(info.id).expect("the snapshot");
            for object in &info.objects {
                let object = snapshot.object(&object.name).expect("the object");
                for page in object.occupied(0, 64).expect("pages") {
                    assert!(object.page(page, &mut [0; PAGE]).expect("a page"));
                }
            }
            drop(snapshot);
            assert_eq!(count(), 1);
            check();
            store.delete(info.id).expect("a snapshot to delete");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    assert_eq!(count(), 0);
    check();
}

fuzz::fuzz_target!(init: fuzz::begin(seeds), |data: &[u8]| {
    // With the right hash, or nothing would ever get behind it.
    let file = [data, blake3::hash(data).as_bytes()].concat();
    with_store(|store| import(store, &file));
});
