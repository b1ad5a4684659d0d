//! Disks on images that stay where they are: what is read is what was adopted with what was written on top, or an error.

#![expect(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "small numbers, and a test that cannot go on has failed"
)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use store::medium::sim::Simulated;
use store::medium::{Directory, Medium};
use store::{
    Base, BlockDevice, Changed, Digest, Disk, Error, Image, Options, PAGE, Spec, Store,
    Thoroughness, image_list,
};

const SECTOR: usize = 512;
/// Two groups of digests and a bit, with a broken last page.
const LEN: usize = 300 * PAGE + 1000;
/// Of a disk: there is something behind the image.
const DISK: usize = 320 * PAGE + SECTOR;
const NAME: &str = "disk:root";

/// An image in memory that counts what is read of it.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    read: AtomicU64,
}

impl Memory {
    fn of(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            read: AtomicU64::new(0),
        })
    }
}

impl Image for Memory {
    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let all = self.bytes.lock().unwrap();
        let part = all
            .get(offset as usize..)
            .and_then(|all| all.get(..bytes.len()));
        bytes.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        self.read.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Ok(())
    }
}

/// What an image holds: pages, pages of zeros, and a long hole.
fn bytes(seed: u8) -> Vec<u8> {
    let byte = |at: usize| match at / PAGE {
        page if page % 5 == 3 || (140..270).contains(&page) => 0,
        page => (page as u8).wrapping_mul(31) ^ (at / 97) as u8 ^ seed | 1,
    };
    (0..LEN).map(byte).collect()
}

/// As a disk of [`DISK`] bytes shows it.
fn shown(seed: u8) -> Vec<u8> {
    let mut shown = bytes(seed);
    shown.resize(DISK, 0);
    shown
}

fn open(medium: &Simulated) -> Store {
    let shared: Arc<dyn Medium> = Arc::new(medium.clone());
    Store::open(Arc::clone(&shared), Options::default())
        .or_else(|_| Store::create(shared, Options::default()))
        .unwrap()
}

fn adopt(store: &Store, seed: u8) -> (Digest, Arc<Memory>) {
    let image = Memory::of(bytes(seed));
    let info = store
        .adopt(Arc::clone(&image) as _, &mut |_, _| {})
        .unwrap();
    assert_eq!(info.len, LEN as u64);
    (info.id, image)
}

fn disk_on(store: &Store, id: Digest) -> Disk {
    store
        .create_disk("root", DISK as u64, Base::Image(id))
        .unwrap()
}

fn all(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; DISK];
    disk.read_at(0, &mut bytes).unwrap();
    bytes
}

fn snapshot(store: &Store, disk: &Disk, parent: Option<u64>) -> u64 {
    let frozen = Arc::new(disk.freeze().unwrap());
    let spec = Spec {
        parent,
        ..Spec::default()
    };
    let mut writer = store.begin(spec).unwrap();
    writer.disk(NAME, &frozen).unwrap();
    writer.commit().unwrap().id
}

fn content(store: &Store, id: u64) -> Vec<u8> {
    let mut bytes = vec![0; DISK];
    let object = store.snapshot(id).unwrap().object(NAME).unwrap();
    object.read(0, &mut bytes).unwrap();
    // Page by page, it is the same, and what is occupied is what is not zero.
    let mut occupied = Vec::new();
    loop {
        let from = occupied.last().map_or(0, |last| last + 1);
        let some = object.occupied(from, 7).unwrap();
        if some.is_empty() {
            break;
        }
        occupied.extend(some);
    }
    for (page, expected) in bytes.chunks(PAGE).enumerate() {
        let mut found = [1; PAGE];
        let something = object.page(page as u64, &mut found).unwrap();
        assert!(found[..expected.len()] == *expected, "page {page}");
        assert!(found[expected.len()..].iter().all(|byte| *byte == 0));
        assert_eq!(
            something,
            expected.iter().any(|byte| *byte != 0),
            "page {page}"
        );
        assert_eq!(something, occupied.contains(&(page as u64)), "page {page}");
    }
    bytes
}

fn whole(store: &Store) {
    let problems = store.verify(&mut |_| {}).unwrap().problems;
    assert!(problems.is_empty(), "{problems:?}");
}

/// Where two arrays differ, in pages.
fn difference(old: &[u8], new: &[u8]) -> Vec<u64> {
    let pages = old.chunks(PAGE).zip(new.chunks(PAGE)).zip(0..);
    let pages = pages.filter(|((old, new), _)| old != new);
    pages.map(|(_, page)| page).collect()
}

fn pages(changed: &[Changed]) -> Vec<u64> {
    let page = PAGE as u64;
    let pages = changed.iter();
    pages
        .flat_map(|range| range.offset / page..(range.offset + range.len) / page)
        .collect()
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize, u8),
    /// What the image has there.
    WriteBack(usize, usize),
    Discard(usize, usize),
    Snapshot,
    Restore(usize),
    Reopen,
    Move,
    Delete(usize),
    Collect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sectors = DISK / SECTOR;
    let range = (0..sectors, 1_usize..60).prop_map(move |(at, len)| (at, len.min(sectors - at)));
    let step = prop_oneof![
        6 => (range.clone(), any::<u8>()).prop_map(|((at, len), byte)| Step::Write(at, len, byte)),
        2 => range.clone().prop_map(|(at, len)| Step::WriteBack(at, len)),
        2 => range.prop_map(|(at, len)| Step::Discard(at, len)),
        3 => Just(Step::Snapshot),
        1 => any::<usize>().prop_map(Step::Restore),
        1 => Just(Step::Reopen),
        1 => Just(Step::Move),
        1 => any::<usize>().prop_map(Step::Delete),
        1 => Just(Step::Collect),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_disk_on_an_image_is_an_array_of_bytes_and_snapshots_are_copies(steps in steps()) {
        let medium = Simulated::default();
        let mut store = open(&medium);
        let (id, mut image) = adopt(&store, 1);
        let base = shown(1);
        let mut expected = base.clone();
        let mut disk = disk_on(&store, id);
        let mut copies: Vec<(u64, Vec<u8>)> = Vec::new();
        // What the disk stands on.
        let mut under = None;
        for step in steps {
            match step {
                Step::Write(at, len, byte) => {
                    let range = at * SECTOR..(at + len) * SECTOR;
                    expected[range.clone()].fill(byte);
                    disk.write_at(range.start as u64, &expected[range]).unwrap();
                }
                Step::WriteBack(at, len) => {
                    let range = at * SECTOR..(at + len) * SECTOR;
                    expected[range.clone()].copy_from_slice(&base[range.clone()]);
                    disk.write_at(range.start as u64, &base[range]).unwrap();
                }
                Step::Discard(at, len) => {
                    expected[at * SECTOR..(at + len) * SECTOR].fill(0);
                    disk.discard((at * SECTOR) as u64, (len * SECTOR) as u64).unwrap();
                }
                Step::Snapshot => {
                    let id = snapshot(&store, &disk, under);
                    under = Some(id);
                    copies.push((id, expected.clone()));
                }
                Step::Restore(which) if !copies.is_empty() => {
                    let (id, copy) = &copies[which % copies.len()];
                    drop(disk);
                    disk = store.create_disk("root", DISK as u64, Some((*id, NAME))).unwrap();
                    expected.clone_from(copy);
                    under = Some(*id);
                }
                Step::Reopen => {
                    disk.flush().unwrap();
                    drop(disk);
                    drop(store);
                    store = open(&medium);
                    let refused = store.open_disk("root");
                    assert!(matches!(refused, Err(Error::Detached { .. })));
                    store.attach(&id, Arc::clone(&image) as _).unwrap();
                    disk = store.open_disk("root").unwrap();
                }
                Step::Move => {
                    image = Memory::of(bytes(1));
                    store.attach(&id, Arc::clone(&image) as _).unwrap();
                }
                Step::Delete(which) if !copies.is_empty() => {
                    let which = which % copies.len();
                    if Some(copies[which].0) != under {
                        store.delete(copies.remove(which).0).unwrap();
                    }
                }
                Step::Collect => {
                    store.collect(Thoroughness::All, &mut |_, _| {}).unwrap();
                }
                Step::Restore(_) | Step::Delete(_) => {}
            }
            prop_assert!(all(&disk) == expected);
        }
        for (id, copy) in &copies {
            prop_assert!(content(&store, *id) == *copy);
        }
        for pair in copies.windows(2) {
            let changed = store.diff(pair[0].0, pair[1].0).unwrap();
            prop_assert_eq!(pages(&changed), difference(&pair[0].1, &pair[1].1));
        }
        whole(&store);
        // Take one elsewhere.
        if let Some((id, copy)) = copies.last() {
            let mut file = Vec::new();
            store.export(*id, &mut file, &mut |_, _| {}).unwrap();
            let other = open(&Simulated::default());
            let refused = other.import(&mut &*file, &mut |_| {});
            assert!(matches!(refused, Err(Error::NoImage { .. })));
            adopt(&other, 1);
            let made = other.import(&mut &*file, &mut |_| {}).unwrap();
            prop_assert!(content(&other, made.id) == *copy);
            whole(&other);
        }
        // Nothing stays of nothing.
        drop(disk);
        store.remove_disk("root").unwrap();
        for (id, _) in copies {
            store.delete(id).unwrap();
        }
        prop_assert_eq!(store.collect(Thoroughness::All, &mut |_, _| {}).unwrap().images, 0);
        store.detach(&id);
        prop_assert_eq!(store.collect(Thoroughness::All, &mut |_, _| {}).unwrap().images, 1);
        let status = store.status().unwrap();
        prop_assert_eq!((status.images, status.segments, status.foreign.len()), (0, 0, 0));
        prop_assert_eq!(store.files().unwrap(), 0);
    }

    #[test]
    fn a_list_with_any_changed_byte_is_refused(at: usize, mask in 1_u8..) {
        let image = Memory::of(bytes(1));
        let mut list = image_list(&*image, &mut |_, _| {}).unwrap();
        let at = at % list.len();
        list[at] ^= mask;
        let store = open(&Simulated::default());
        match store.adopt_with(image, &list) {
            Ok(_) => prop_assert!((56..PAGE).contains(&at) || (PAGE + 96..2 * PAGE).contains(&at)),
            Err(error) => prop_assert!(error.to_string().contains("list of the image's digests"), "{}", error),
        }
    }

    #[test]
    fn what_is_no_list_is_refused(list in prop::collection::vec(any::<u8>(), 0..3 * PAGE), forged: bool, len: u64) {
        let mut list = list;
        if forged && list.len() > 56 {
            list[..16].copy_from_slice(b"DRMAIMG\x1a\x01\0\0\0\0\0\0\0");
            list[16..24].copy_from_slice(&len.to_le_bytes());
        }
        let store = open(&Simulated::default());
        prop_assert!(store.adopt_with(Memory::of(bytes(1)), &list).is_err());
    }
}

#[test]
fn the_same_image_is_the_same_id_and_a_list_saves_reading_it() {
    let medium = Simulated::default();
    let store = open(&medium);
    let mut seen = Vec::new();
    let image = Memory::of(bytes(1));
    let info = store
        .adopt(Arc::clone(&image) as _, &mut |done, all| {
            seen.push((done, all));
        })
        .unwrap();
    assert_eq!(seen.last(), Some(&(LEN as u64, LEN as u64)));
    assert_eq!(adopt(&store, 1).0, info.id);
    assert_ne!(adopt(&store, 2).0, info.id);
    assert_eq!(store.status().unwrap().images, 2);

    let list = image_list(&*image, &mut |_, _| {}).unwrap();
    let other = open(&Simulated::default());
    let given = Memory::of(bytes(1));
    let adopted = other.adopt_with(Arc::clone(&given) as _, &list).unwrap();
    assert_eq!(adopted.id, info.id);
    assert_eq!(given.read.load(Ordering::SeqCst), 0);
    assert!(all(&disk_on(&other, info.id)) == shown(1));
    assert_eq!(other.images().unwrap(), [(adopted, true)]);
    // Once more, and the list is not written again.
    let again = other.adopt_with(given, &list).unwrap();
    assert_eq!(other.images().unwrap(), [(again, true)]);
    let wrong = other.adopt_with(Memory::of(vec![1; LEN + 1]), &list);
    assert!(matches!(wrong, Err(Error::OtherImage { .. })));
}

#[test]
fn an_image_that_was_changed_is_an_error_and_never_wrong_data() {
    let store = open(&Simulated::default());
    let (id, image) = adopt(&store, 1);
    let disk = disk_on(&store, id);
    disk.write_at(7 * PAGE as u64, &[9; PAGE]).unwrap();
    let first = snapshot(&store, &disk, None);
    image.bytes.lock().unwrap()[11 * PAGE + 5] ^= 1;
    // What nobody reads of the image may be what it wants: below a written block, and where it was zero.
    image.bytes.lock().unwrap()[7 * PAGE] ^= 1;
    image.bytes.lock().unwrap()[150 * PAGE] ^= 1;
    let mut page = [0; PAGE];
    for (at, good) in [(7, true), (10, true), (11, false), (12, true), (150, true)] {
        let read = disk.read_at(at * PAGE as u64, &mut page);
        assert_eq!(read.is_ok(), good, "{at}");
        if let Err(error) = read {
            let text = error.to_string();
            assert!(matches!(error, Error::Image { offset, .. } if offset == at * PAGE as u64));
            assert!(
                text.contains(&id.to_string()) && text.contains("0xb000"),
                "{text}"
            );
        } else {
            assert!(page[..] == all_but(7, 9)[at as usize * PAGE..][..PAGE]);
        }
    }
    let object = store.snapshot(first).unwrap().object(NAME).unwrap();
    assert!(matches!(
        object.page(11, &mut page),
        Err(Error::Image { .. })
    ));
    assert!(object.read(0, &mut vec![0; 12 * PAGE]).is_err());
    let verified = store.verify(&mut |_| {}).unwrap();
    // One per group of pages is told.
    assert_eq!(verified.problems.len(), 1, "{:?}", verified.problems);
    assert!(verified.problems[0].to_string().contains("0x7000"));
    // A write that needs what is below it fails too, and a whole block does not.
    assert!(disk.write_at(11 * PAGE as u64 + 5, &[1]).is_err());
    disk.write_at(11 * PAGE as u64, &[1; PAGE]).unwrap();
}

fn all_but(page: usize, byte: u8) -> Vec<u8> {
    let mut bytes = shown(1);
    bytes[page * PAGE..(page + 1) * PAGE].fill(byte);
    bytes
}

#[test]
fn who_has_not_said_where_an_image_is_hears_which_and_what_to_do() {
    let medium = Simulated::default();
    let store = open(&medium);
    let (id, image) = adopt(&store, 1);
    let disk = disk_on(&store, id);
    let first = snapshot(&store, &disk, None);
    drop(disk);
    drop(store);
    let store = open(&medium);
    let error = store.open_disk("root").map(drop).unwrap_err().to_string();
    assert!(
        error.contains(&id.to_string()) && error.contains("is not attached"),
        "{error}"
    );
    let object = store.snapshot(first).unwrap().object(NAME).unwrap();
    let read = object.page(0, &mut [0; PAGE]);
    assert!(matches!(read, Err(Error::Detached { .. })));
    let verified = store.verify(&mut |_| {}).unwrap();
    assert!(verified.problems.is_empty());
    assert_eq!((verified.images, verified.detached), (0, vec![id]));
    assert!(!store.images().unwrap()[0].1);
    // Without it, it can be taken elsewhere: nothing of it is.
    store
        .export(first, &mut Vec::new(), &mut |_, _| {})
        .unwrap();

    let short = store.attach(&id, Memory::of(vec![1; LEN - 1])).unwrap_err();
    assert!(
        short
            .to_string()
            .contains(&format!("it has {} bytes", LEN - 1)),
        "{short}"
    );
    let unknown = Digest([5; 32]);
    let missing = store.attach(&unknown, Arc::clone(&image) as _).unwrap_err();
    assert!(matches!(missing, Error::NoImage { .. }));
    let none = store.create_disk("other", DISK as u64, Base::Image(unknown));
    assert!(matches!(none.map(drop), Err(Error::NoImage { .. })));
    store.attach(&id, image).unwrap();
    assert!(all(&store.open_disk("root").unwrap()) == shown(1));
    let verified = store.verify(&mut |_| {}).unwrap();
    assert_eq!((verified.images, verified.detached), (1, Vec::new()));
}

#[test]
fn a_disk_that_is_smaller_than_its_image_is_refused() {
    let store = open(&Simulated::default());
    let (id, _image) = adopt(&store, 1);
    let made = store.create_disk("small", LEN as u64 - 1, Base::Image(id));
    assert!(matches!(made.map(drop), Err(Error::Unusable { .. })));
    let first = snapshot(&store, &disk_on(&store, id), None);
    let made = store.create_disk("small", LEN as u64 - 1, Some((first, NAME)));
    assert!(matches!(made.map(drop), Err(Error::Unusable { .. })));
    let parent = Some(first);
    let spec = Spec {
        parent,
        ..Spec::default()
    };
    let mut writer = store.begin(spec).unwrap();
    let object = writer.object(NAME, LEN as u64 - 1);
    assert!(matches!(object, Err(Error::Unusable { .. })));
    assert!(
        store
            .disks()
            .unwrap()
            .iter()
            .all(|disk| disk.name == "root")
    );
}

#[test]
fn an_image_stays_as_long_as_anything_stands_on_it() {
    let medium = Simulated::default();
    let store = open(&medium);
    let (id, image) = adopt(&store, 1);
    let collect = |store: &Store| {
        store
            .collect(Thoroughness::Worthwhile, &mut |_, _| {})
            .unwrap()
    };
    drop(disk_on(&store, id));
    store.detach(&id);
    assert_eq!(collect(&store).images, 0);
    store.attach(&id, Arc::clone(&image) as _).unwrap();
    let disk = store.open_disk("root").unwrap();
    let first = snapshot(&store, &disk, None);
    drop(disk);
    store.remove_disk("root").unwrap();
    store.detach(&id);
    assert_eq!(collect(&store).images, 0);
    assert!(store.list().unwrap()[0].object(NAME).unwrap().image == Some(id));
    store.attach(&id, Arc::clone(&image) as _).unwrap();
    assert!(content(&store, first) == shown(1));
    store.delete(first).unwrap();
    // Somebody may be about to make a disk on it.
    assert_eq!(collect(&store).images, 0);
    store.detach(&id);
    let collected = collect(&store);
    assert_eq!(collected.images, 1);
    assert!(collected.freed > 2 * PAGE as u64);
    assert!(matches!(
        store.attach(&id, image),
        Err(Error::NoImage { .. })
    ));
    assert!(
        !medium
            .list()
            .unwrap()
            .iter()
            .any(|name| name.starts_with("image-"))
    );
}

#[test]
fn a_snapshot_of_an_image_that_was_not_written_to_stores_nothing_but_itself() {
    let store = open(&Simulated::default());
    let (id, _image) = adopt(&store, 1);
    let disk = disk_on(&store, id);
    // The same bytes again, and zeros behind the image.
    disk.write_at(0, &bytes(1)[..20 * PAGE]).unwrap();
    disk.write_at(310 * PAGE as u64, &[0; PAGE]).unwrap();
    disk.discard(141 * PAGE as u64, 20 * PAGE as u64).unwrap();
    let first = snapshot(&store, &disk, None);
    let info = store.info(first).unwrap();
    assert_eq!(info.object(NAME).unwrap().root, None);
    assert_eq!(store.status().unwrap().referenced, 0);
    assert!(content(&store, first) == shown(1));
}

#[test]
fn snapshots_on_different_images_differ_where_their_bytes_do() {
    let store = open(&Simulated::default());
    let mut ids = Vec::new();
    let mut expected = Vec::new();
    for seed in [1, 2] {
        let (id, _image) = adopt(&store, seed);
        let disk = disk_on(&store, id);
        disk.write_at(3 * PAGE as u64, &[7; 2 * PAGE]).unwrap();
        disk.discard(6 * PAGE as u64, PAGE as u64).unwrap();
        disk.write_at(310 * PAGE as u64, &[seed; PAGE]).unwrap();
        ids.push(snapshot(&store, &disk, None));
        expected.push(all(&disk));
    }
    let mut writer = store.begin(Spec::default()).unwrap();
    let mut plain = shown(3);
    plain[6 * PAGE..7 * PAGE].fill(0);
    writer.blob(NAME, &plain).unwrap();
    ids.push(writer.commit().unwrap().id);
    expected.push(plain);
    ids.push(store.begin(Spec::default()).unwrap().commit().unwrap().id);
    expected.push(vec![0; DISK]);
    for (old, before) in ids.iter().zip(&expected) {
        for (new, after) in ids.iter().zip(&expected) {
            let changed = store.diff(*old, *new).unwrap();
            assert_eq!(pages(&changed), difference(before, after), "{old} to {new}");
        }
    }
    whole(&store);
}

#[test]
fn a_damaged_list_is_found_and_adopting_again_heals_it() {
    let medium = Simulated::default();
    let store = open(&medium);
    let (id, image) = adopt(&store, 1);
    drop(disk_on(&store, id));
    let names = medium.list().unwrap();
    let name = names
        .iter()
        .find(|name| name.starts_with("image-"))
        .unwrap();
    for (offset, found) in [
        (PAGE, true),
        (2 * PAGE as u64 as usize + 5, true),
        (60, false),
    ] {
        medium.flip(name, offset as u64, 4);
        let problems = store.verify(&mut |_| {}).unwrap().problems;
        assert_eq!(!problems.is_empty(), found, "{offset}: {problems:?}");
        medium.flip(name, offset as u64, 4);
    }
    drop(store);
    for (offset, opens) in [(PAGE as u64, false), (2 * PAGE as u64 + 5, true)] {
        let names = medium.list().unwrap();
        let name = names
            .iter()
            .find(|name| name.starts_with("image-"))
            .unwrap();
        medium.flip(name, offset, 4);
        let store = open(&medium);
        assert_eq!(store.attach(&id, Arc::clone(&image) as _).is_ok(), opens);
        if opens {
            let disk = store.open_disk("root").unwrap();
            let error = disk.read_at(0, &mut [0; PAGE]).unwrap_err().to_string();
            assert!(error.contains("adopt the image again"), "{error}");
        }
        store
            .adopt(Arc::clone(&image) as _, &mut |_, _| {})
            .unwrap();
        assert!(all(&store.open_disk("root").unwrap()) == shown(1));
        whole(&store);
    }
}

#[test]
fn a_missing_list_is_a_partial_copy() {
    let medium = Simulated::default();
    let store = open(&medium);
    adopt(&store, 1);
    drop(store);
    let names = medium.list().unwrap();
    medium
        .remove(
            names
                .iter()
                .find(|name| name.starts_with("image-"))
                .unwrap(),
        )
        .unwrap();
    let shared: Arc<dyn Medium> = Arc::new(medium);
    let error = Store::open(shared, Options::default()).unwrap_err();
    assert!(matches!(error, Error::Partial { .. }), "{error}");
}

#[test]
fn a_read_only_store_reads_images_and_adopts_none() {
    let medium = Simulated::default();
    let store = open(&medium);
    let (id, image) = adopt(&store, 1);
    let first = snapshot(&store, &disk_on(&store, id), None);
    drop(store);
    medium.set_read_only();
    let store = open(&medium);
    let adopted = store.adopt(Memory::of(bytes(2)), &mut |_, _| {});
    assert!(matches!(adopted, Err(Error::ReadOnly { .. })));
    let list = image_list(&*image, &mut |_, _| {}).unwrap();
    assert_eq!(store.adopt_with(image, &list).unwrap().id, id);
    assert!(content(&store, first) == shown(1));
    whole(&store);
}

#[test]
fn files_are_images_and_their_holes_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let file = File::create_new(&path).unwrap();
    let image = bytes(1);
    for (at, page) in (0..).zip(image.chunks(PAGE)) {
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(page, at * PAGE as u64).unwrap();
        }
    }
    file.set_len(64 << 20).unwrap();
    let medium = Directory::open(folder.path().join("store")).unwrap();
    let store = Store::create(Arc::new(medium), Options::default()).unwrap();
    let open = || Arc::new(File::open(&path).unwrap());
    let info = store.adopt(open(), &mut |_, _| {}).unwrap();
    // The same without any knowledge of holes.
    let mut all = image.clone();
    all.resize(64 << 20, 0);
    let list = image_list(&*Memory::of(all), &mut |_, _| {}).unwrap();
    assert_eq!(store.adopt_with(open(), &list).unwrap().id, info.id);
    assert!(list == image_list(&*open(), &mut |_, _| {}).unwrap());
    let disk = store
        .create_disk("root", 64 << 20, Base::Image(info.id))
        .unwrap();
    let mut found = vec![0; LEN];
    disk.read_at(0, &mut found).unwrap();
    assert!(found == image);
    whole(&store);
    // Cut off since: an error of the image.
    file.set_len(PAGE as u64).unwrap();
    let cut = disk.read_at(PAGE as u64, &mut [0; PAGE]);
    assert!(matches!(cut, Err(Error::Image { .. })));
    let cut = store.attach(&info.id, open());
    assert!(matches!(cut, Err(Error::OtherImage { .. })));
}
