//! Snapshots: what was written is what is read, whatever is deleted and collected meanwhile; what is damaged is refused.

#![expect(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "small numbers, and a test that cannot go on has failed"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use store::medium::sim::Simulated;
use store::medium::{Directory, Medium};
use store::{Compression, Error, Options, PAGE, Spec, Store, Thoroughness};

fn create(medium: &Simulated) -> Store {
    Store::create(Arc::new(medium.clone()), Options::default()).unwrap()
}

fn open(medium: &Simulated) -> Result<Store, Error> {
    Store::open(Arc::new(medium.clone()), Options::default())
}

fn child(parent: Option<u64>) -> Spec {
    Spec {
        guest: "web".to_owned(),
        parent,
        ..Spec::default()
    }
}

fn page(seed: u16) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    if seed.is_multiple_of(3) {
        blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof()
            .fill(&mut page);
    } else if seed % 16 != 1 {
        page[usize::from(seed) % PAGE] = 1;
        page[0] = seed as u8;
    }
    page
}

fn content(store: &Store, id: u64, object: &str) -> Vec<u8> {
    let object = store.snapshot(id).unwrap().object(object).unwrap();
    let mut bytes = vec![0; object.info().len as usize];
    object.read(0, &mut bytes).unwrap();
    bytes
}

/// A snapshot with `pages` pages of RAM that say who they are.
fn simple(store: &Store, pages: u16) -> u64 {
    let mut writer = store.begin(child(None)).unwrap();
    let ram = writer
        .object("ram", u64::from(pages) * PAGE as u64)
        .unwrap();
    for at in 0..pages {
        writer
            .write(ram, u64::from(at) * PAGE as u64, &page(at * 3 + 3))
            .unwrap();
    }
    writer.commit().unwrap().id
}

#[derive(Clone, Debug)]
enum Step {
    /// Parent, size in pages, pages.
    Take(usize, u16, Vec<(u16, u16)>),
    Delete(usize),
    Collect(bool),
    Reopen,
    Transfer(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sizes = prop_oneof![
        Just(5_u16),
        Just(32),
        Just(33),
        Just(40),
        Just(1024),
        Just(1100)
    ];
    let edits = prop::collection::vec((any::<u16>(), 0_u16..200), 0..24);
    let step = prop_oneof![
        6 => (any::<usize>(), sizes, edits).prop_map(|(parent, size, edits)| Step::Take(parent, size, edits)),
        3 => any::<usize>().prop_map(Step::Delete),
        1 => any::<bool>().prop_map(Step::Collect),
        1 => Just(Step::Reopen),
        1 => any::<usize>().prop_map(Step::Transfer),
    ];
    prop::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn snapshots_are_copies_whatever_happens_to_others(steps in steps()) {
        let medium = Simulated::default();
        let mut store = create(&medium);
        let mut model: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for step in steps {
            let some = |at: usize| {
                let ids: Vec<u64> = model.keys().copied().collect();
                // One more than there are: none.
                ids.get(at % (ids.len() + 1)).copied()
            };
            match step {
                Step::Take(parent, size, edits) => {
                    let parent = some(parent);
                    let mut bytes = parent.map_or(Vec::new(), |id| model[&id].clone());
                    bytes.resize(usize::from(size) * PAGE, 0);
                    let mut writer = store.begin(child(parent)).unwrap();
                    let ram = writer.object("ram", bytes.len() as u64).unwrap();
                    for (at, seed) in edits {
                        let at = usize::from(at % size) * PAGE;
                        bytes[at..at + PAGE].copy_from_slice(&page(seed));
                        writer.write(ram, at as u64, &page(seed)).unwrap();
                    }
                    let info = writer.commit().unwrap();
                    prop_assert_eq!(info.parent, parent);
                    model.insert(info.id, bytes);
                }
                Step::Delete(at) => {
                    if let Some(id) = some(at) {
                        store.delete(id).unwrap();
                        model.remove(&id);
                    }
                }
                Step::Collect(all) => {
                    let how = if all { Thoroughness::All } else { Thoroughness::Worthwhile };
                    store.collect(how, &mut |_, _| {}).unwrap();
                }
                Step::Reopen => {
                    drop(store);
                    store = open(&medium).unwrap();
                }
                Step::Transfer(at) => {
                    if let Some(id) = some(at) {
                        let mut file = Vec::new();
                        store.export(id, &mut file, &mut |_, _| {}).unwrap();
                        let info = store.import(&mut file.as_slice(), &mut |_| {}).unwrap();
                        let bytes = model[&id].clone();
                        model.insert(info.id, bytes);
                    }
                }
            }
        }
        let ids: Vec<u64> = store.list().unwrap().iter().map(|info| info.id).collect();
        prop_assert_eq!(ids, model.keys().copied().collect::<Vec<_>>());
        for (id, bytes) in &model {
            prop_assert!(content(&store, *id, "ram") == *bytes);
        }
        // What a comparison finds is what differs.
        for (old, new) in model.keys().zip(model.keys().skip(1)) {
            let mut changed = Vec::new();
            for range in store.diff(*old, *new).unwrap() {
                changed.extend(range.offset / PAGE as u64..(range.offset + range.len) / PAGE as u64);
            }
            let (old, new) = (model[old].chunks(PAGE), model[new].chunks(PAGE));
            let zero = [0; PAGE];
            let pages = old.len().max(new.len());
            let pad = |pages_of: std::slice::Chunks<'_, u8>| {
                let mut all: Vec<Vec<u8>> = pages_of.map(<[u8]>::to_vec).collect();
                all.resize(pages, zero.to_vec());
                all
            };
            let (old, new) = (pad(old), pad(new));
            let differ = (0..pages).filter(|at| old[*at] != new[*at]).map(|at| at as u64);
            prop_assert_eq!(changed, differ.collect::<Vec<_>>());
        }
        let verified = store.verify(&mut |_| {}).unwrap();
        prop_assert!(verified.problems.is_empty(), "{:?}", verified.problems);
        for id in model.keys() {
            store.delete(*id).unwrap();
        }
        store.collect(Thoroughness::All, &mut |_, _| {}).unwrap();
        let status = store.status().unwrap();
        prop_assert_eq!((status.segments, status.stored, status.referenced), (0, 0, 0));
    }

    #[test]
    fn an_imported_file_that_lies_makes_no_snapshot(at: prop::sample::Index, mask in 1_u8.., cut: bool) {
        let store = create(&Simulated::default());
        let id = simple(&store, 3);
        let mut file = Vec::new();
        store.export(id, &mut file, &mut |_, _| {}).unwrap();
        let at = at.index(file.len());
        if cut {
            file.truncate(at);
        } else {
            file[at] ^= mask;
        }
        let imported = store.import(&mut file.as_slice(), &mut |_| {});
        prop_assert!(imported.is_err());
        prop_assert_eq!(store.list().unwrap().len(), 1);
        let verified = store.verify(&mut |_| {}).unwrap();
        prop_assert!(verified.problems.is_empty());
    }
}

#[test]
fn any_flipped_bit_of_a_chunk_is_refused_by_name_or_does_not_matter() {
    let medium = Simulated::default();
    let store = create(&medium);
    let id = simple(&store, 40);
    let expected = content(&store, id, "ram");
    drop(store);
    let size = medium.image().bytes("segment-00000001").unwrap().len() as u64;
    let mut refused = 0;
    // Everything that is read: from the first record on.
    for offset in (4096..size).step_by(101) {
        medium.flip("segment-00000001", offset, 0x10);
        let store = open(&medium).unwrap();
        let object = store.snapshot(id).unwrap().object("ram").unwrap();
        let mut bytes = vec![0; expected.len()];
        match object.read(0, &mut bytes) {
            // A hint, or a byte that nobody reads.
            Ok(()) => assert!(bytes == expected, "{offset}"),
            Err(error) => {
                refused += 1;
                let text = error.to_string();
                assert!(text.starts_with("Snapshot 1, ram, offset 0x"), "{text}");
                let verified = store.verify(&mut |_| {}).unwrap();
                assert!(!verified.problems.is_empty(), "{offset}");
            }
        }
        medium.flip("segment-00000001", offset, 0x10);
    }
    assert!(refused > 1000);
    assert!(
        open(&medium)
            .unwrap()
            .verify(&mut |_| {})
            .unwrap()
            .problems
            .is_empty()
    );
}

#[test]
fn a_further_snapshot_costs_what_changed_at_any_depth() {
    let store = create(&Simulated::default());
    let mut parent = simple(&store, 3000);
    let mut growth = Vec::new();
    for depth in 0..200_u16 {
        let before = store.status().unwrap().referenced;
        let mut writer = store
            .begin_with(child(Some(parent)), Compression::Off)
            .unwrap();
        let ram = writer.object("ram", 3000 * PAGE as u64).unwrap();
        writer
            .write(
                ram,
                u64::from(depth * 7) * PAGE as u64,
                &page(depth * 3 + 30_000),
            )
            .unwrap();
        parent = writer.commit().unwrap().id;
        growth.push(store.status().unwrap().referenced - before);
    }
    // A page and the three nodes above it, each with its record.
    let most = PAGE as u64 + 3 * (8 + 32 * 40) + 4 * 40;
    assert!(growth.iter().all(|bytes| *bytes <= most), "{growth:?}");
}

#[test]
fn pages_of_disks_and_memory_are_the_same_chunks() {
    let store = create(&Simulated::default());
    simple(&store, 64);
    let before = store.status().unwrap().referenced;
    let mut writer = store.begin(child(None)).unwrap();
    let disk = writer.object("disk:root", 1 << 30).unwrap();
    for at in 0..64_u16 {
        let offset = (1 << 20) + u64::from(at) * 2 * PAGE as u64;
        writer.write(disk, offset, &page(at * 3 + 3)).unwrap();
    }
    writer.commit().unwrap();
    // Nodes only.
    assert!(store.status().unwrap().referenced - before < 64 * 100);
}

#[test]
fn zeros_cost_nothing() {
    let store = create(&Simulated::default());
    let mut writer = store.begin(child(None)).unwrap();
    let ram = writer.object("ram", 1 << 40).unwrap();
    writer.write(ram, 77 << 20, &vec![0; 1 << 20]).unwrap();
    let info = writer.commit().unwrap();
    assert_eq!(store.status().unwrap().stored, 0);
    let ram = store.snapshot(info.id).unwrap().object("ram").unwrap();
    assert!(!ram.page(5, &mut [1; PAGE]).unwrap());
    assert!(ram.occupied(0, 9).unwrap().is_empty());
}

#[test]
fn what_is_open_or_being_written_is_not_deleted() {
    let store = create(&Simulated::default());
    let id = simple(&store, 3);
    let snapshot = store.snapshot(id).unwrap();
    assert!(matches!(store.delete(id), Err(Error::Busy { .. })));
    drop(snapshot);
    let writer = store.begin(child(Some(id))).unwrap();
    assert!(matches!(store.delete(id), Err(Error::Busy { .. })));
    assert!(matches!(
        store.collect(Thoroughness::All, &mut |_, _| {}),
        Err(Error::Busy { .. })
    ));
    drop(writer);
    store.delete(id).unwrap();
    assert!(matches!(store.delete(id), Err(Error::NoSnapshot { .. })));
    assert!(matches!(
        store.begin(child(Some(id))),
        Err(Error::NoSnapshot { .. })
    ));
}

#[test]
fn writes_that_do_not_fit_are_refused() {
    let store = create(&Simulated::default());
    let mut writer = store.begin(child(None)).unwrap();
    let ram = writer.object("ram", 10_000).unwrap();
    writer.write(ram, 8192, &[1; PAGE]).unwrap();
    for (offset, len) in [
        (1, PAGE),
        (0, 100),
        (3 * PAGE as u64, PAGE),
        (u64::MAX - 4095, PAGE),
    ] {
        let refused = writer.write(ram, offset, &vec![0; len]);
        assert!(
            matches!(refused, Err(Error::Range { .. })),
            "{offset} {len}"
        );
    }
    for (name, len) in [("ram", 1), ("", 1), ("x", u64::MAX), (&"x".repeat(256), 1)] {
        assert!(
            matches!(writer.object(name, len), Err(Error::Unusable { .. })),
            "{name}"
        );
    }
}

#[test]
fn what_is_no_store_is_said_to_be_none() {
    let medium = Simulated::default();
    let error = open(&medium).unwrap_err().to_string();
    assert_eq!(error, "No store here: the directory is empty");
    let mut image = medium.image();
    image.put("holiday.jpg", b"\xff\xd8");
    let error = open(&Simulated::of(image)).unwrap_err().to_string();
    assert_eq!(
        error,
        "No store here: there is no file daruma-store among 1 others"
    );
    create(&medium);
    let again = Store::create(Arc::new(medium), Options::default());
    assert!(matches!(again, Err(Error::Exists)));
}

#[test]
fn a_newer_store_and_one_of_another_machine_are_refused() {
    let medium = Simulated::default();
    drop(create(&medium));
    let options = Options {
        machine: "cellar".to_owned(),
        ..Options::default()
    };
    let opened = Store::open(Arc::new(medium.clone()), options.clone());
    let error = opened.unwrap_err().to_string();
    assert_eq!(
        error,
        "The store belongs to machine \"\" and this is \"cellar\": adopt it to go on"
    );
    let adopt = Options {
        adopt: true,
        ..options.clone()
    };
    drop(Store::open(Arc::new(medium.clone()), adopt).unwrap());
    drop(Store::open(Arc::new(medium.clone()), options).unwrap());
    medium.flip("daruma-store", 16, 2);
    let error = open(&medium).unwrap_err().to_string();
    assert_eq!(
        error,
        "The store has format 3 and this program reads up to 2: use a newer program"
    );
}

#[test]
fn a_copy_in_part_is_refused_by_the_name_of_what_is_missing() {
    let medium = Simulated::default();
    let store = create(&medium);
    simple(&store, 40);
    store.create_disk("root", 1 << 20, None).unwrap();
    drop(store);
    for name in ["index", "segment-00000001", "layer-00000001"] {
        let mut image = medium.image();
        image.take(name);
        let error = open(&Simulated::of(image)).unwrap_err();
        assert!(matches!(error, Error::Partial { .. }), "{error}");
        assert!(error.to_string().starts_with(name), "{error}");
    }
    let mut image = medium.image();
    let bytes = image.bytes("segment-00000001").unwrap();
    image.take("segment-00000001");
    image.put("segment-00000001", &bytes[..bytes.len() - 1]);
    let error = open(&Simulated::of(image)).unwrap_err().to_string();
    assert!(error.contains("the store is a partial copy"), "{error}");
    // An index that is cut off.
    let mut image = medium.image();
    let bytes = image.bytes("index").unwrap();
    for len in [0, 100, 4096, bytes.len() / 2] {
        image.take("index");
        image.put("index", &bytes[..len]);
        let opened = open(&Simulated::of(image.clone()));
        assert!(!opened.unwrap_err().to_string().is_empty(), "{len}");
    }
}

#[test]
fn foreign_files_are_reported_and_left_and_foreign_segments_refused() {
    let medium = Simulated::default();
    let store = create(&medium);
    simple(&store, 40);
    drop(store);
    let other = Simulated::default();
    let store = create(&other);
    simple(&store, 40);
    drop(store);
    let mut image = medium.image();
    image.put("notes.txt", b"mine");
    let medium = Simulated::of(image);
    let store = open(&medium).unwrap();
    assert_eq!(store.status().unwrap().foreign, ["notes.txt"]);
    drop(store);
    assert_eq!(medium.image().bytes("notes.txt").unwrap(), b"mine");
    let mut image = medium.image();
    image.take("segment-00000001");
    image.put(
        "segment-00000001",
        &other.image().bytes("segment-00000001").unwrap(),
    );
    let error = open(&Simulated::of(image)).unwrap_err().to_string();
    assert!(error.contains("it belongs to another store"), "{error}");
}

#[test]
fn a_read_only_store_is_read_and_not_written() {
    let medium = Simulated::default();
    let store = create(&medium);
    let id = simple(&store, 40);
    let expected = content(&store, id, "ram");
    drop(store);
    medium.set_read_only();
    let store = open(&medium).unwrap();
    assert!(content(&store, id, "ram") == expected);
    assert!(store.verify(&mut |_| {}).unwrap().problems.is_empty());
    let refused = [
        store.begin(child(None)).map(drop),
        store.delete(id),
        store.mark(id, |_, good| *good = true),
        store.collect(Thoroughness::All, &mut |_, _| {}).map(drop),
        store.create_disk("root", 1, None).map(drop),
    ];
    for result in refused {
        assert!(matches!(result, Err(Error::ReadOnly { .. })), "{result:?}");
    }
}

#[test]
fn a_directory_has_one_writer_and_keeps_what_is_marked() {
    let folder = tempfile::tempdir().unwrap();
    let medium =
        || Directory::open(folder.path()).map(|medium| Arc::new(medium) as Arc<dyn Medium>);
    let store = Store::create(medium().unwrap(), Options::default()).unwrap();
    let error = medium().unwrap_err();
    assert_eq!(error.to_string(), "another process has this store open");
    let id = simple(&store, 100);
    store
        .mark(id, |labels, good| {
            labels.insert("why".to_owned(), "before the upgrade".to_owned());
            *good = true;
        })
        .unwrap();
    let expected = content(&store, id, "ram");
    drop(store);
    let store = Store::open(medium().unwrap(), Options::default()).unwrap();
    assert!(content(&store, id, "ram") == expected);
    let info = store.info(id).unwrap();
    assert!(info.good && info.labels["why"] == "before the upgrade");
    drop(store);
    let reader = Arc::new(Directory::open_read_only(folder.path()).unwrap());
    let store = Store::open(reader, Options::default()).unwrap();
    assert!(content(&store, id, "ram") == expected);
}
