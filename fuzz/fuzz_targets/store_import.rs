//! A file that says that it is an exported snapshot: sizes, pages and hashes that lie. Whatever becomes of it, the store is
//! whole afterwards.
#![no_main]

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use store::medium::sim::Simulated;
use store::{Base, BlockDevice, Digest, Image, Options, PAGE, Spec, Store};

/// Bytes of the hash at the end.
const DIGEST: usize = 32;
/// Bytes of the image.
const IMAGE: u64 = 20 * PAGE as u64 + 100;

/// An image that every store here knows: a page of zeros, others, and a part of one.
struct Known;

impl Image for Known {
    fn size(&self) -> io::Result<u64> {
        Ok(IMAGE)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        for (at, byte) in (offset..).zip(bytes) {
            *byte = if at < PAGE as u64 { 0 } else { 5 };
        }
        Ok(())
    }
}

fn store() -> (Store, Digest) {
    let store = Store::create(Arc::new(Simulated::default()), Options::default());
    let store = store.expect("a store");
    let info = store.adopt(Arc::new(Known), &mut |_, _| {});
    (store, info.expect("an image").id)
}

/// A snapshot of a disk on the image.
fn on_image() -> Vec<u8> {
    let (store, image) = store();
    let disk = store.create_disk("root", IMAGE + 9 * PAGE as u64, Base::Image(image));
    let disk = disk.expect("a disk");
    disk.write_at(9 * PAGE as u64, &[7; 20_000])
        .expect("a write");
    disk.discard(2 * PAGE as u64, PAGE as u64).expect("zeros");
    let frozen = Arc::new(disk.freeze().expect("a frozen disk"));
    let mut writer = store.begin(Spec::default()).expect("a writer");
    writer.disk("disk:root", &frozen).expect("an object");
    exported(&store, writer.commit().expect("a snapshot").id)
}

/// A snapshot's file, without its hash.
fn exported(store: &Store, id: u64) -> Vec<u8> {
    let mut file = Vec::new();
    store.export(id, &mut file, &mut |_, _| {}).expect("a file");
    file.truncate(file.len() - DIGEST);
    file
}

/// Exported snapshots.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![on_image()];
    for pages in [0, 1, 3, 40] {
        let (store, _) = store();
        let mut writer = store.begin(Spec::default()).expect("a writer");
        let ram = writer.object("ram", 1 << 20).expect("an object");
        for page in 0..pages {
            let bytes = [u8::try_from(page).unwrap_or(0) + 1; PAGE];
            writer
                .write(ram, page * 5 * PAGE as u64, &bytes)
                .expect("a page");
        }
        let id = writer.commit().expect("a snapshot").id;
        seeds.push(exported(&store, id));
    }
    seeds
}

/// Runs `work` on a store without snapshots, before and after. Making one takes longer than an import; what imports have left
/// in its files goes with the next.
fn with_store(work: impl FnOnce(&Store)) {
    const USES: u32 = 256;
    thread_local! {
        static STORE: RefCell<Option<(Store, u32)>> = const { RefCell::new(None) };
    }
    STORE.with_borrow_mut(|kept| {
        let (store, uses) = kept.get_or_insert_with(|| (store().0, 0));
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
