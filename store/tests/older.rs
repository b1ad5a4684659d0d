//! A store that an older program made: the newer one opens it, goes on in it, and keeps it readable for the older one
//! until something is stored that that one would not understand.
//!
//! `older/format-1.lz4` is a store as the program of format 1 left it, each file behind its name: a snapshot, a second one
//! of a disk on it, that disk with more written to it, and one of zeros.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use store::medium::Directory;
use store::{Base, BlockDevice, Options, PAGE, Spec, Store};

const OLDER: &[u8] = include_bytes!("older/format-1.lz4");

fn unpack(folder: &Path) {
    let bytes = lz4_flex::decompress_size_prepended(OLDER).unwrap();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let mut take = |len: usize| {
            let (bytes, others) = rest.split_at(len);
            rest = others;
            bytes
        };
        let name = u32::from_le_bytes(take(4).try_into().unwrap());
        let name = take(usize::try_from(name).unwrap());
        let len = u64::from_le_bytes(take(8).try_into().unwrap());
        let bytes = take(usize::try_from(len).unwrap());
        fs::write(folder.join(str::from_utf8(name).unwrap()), bytes).unwrap();
    }
}

fn options() -> Options {
    Options {
        machine: "attic".to_owned(),
        ..Options::default()
    }
}

fn open(folder: &Path) -> Store {
    Store::open(Arc::new(Directory::open(folder).unwrap()), options()).unwrap()
}

fn check(store: &Store) {
    let list = store.list().unwrap();
    assert_eq!(list.len(), 2);
    assert!(
        list.iter()
            .flat_map(|info| &info.objects)
            .all(|object| object.image.is_none())
    );
    let second = store.snapshot(2).unwrap();
    let mut page = [0; PAGE];
    assert!(second.object("ram").unwrap().page(18, &mut page).unwrap());
    assert_eq!(page, [10; PAGE]);
    let mut root = vec![7; 5 * PAGE + 100];
    root.resize(8 * PAGE, 0);
    root[PAGE..PAGE + 5].copy_from_slice(b"first");
    let mut found = vec![0; 8 * PAGE];
    second
        .object("disk:root")
        .unwrap()
        .read(0, &mut found)
        .unwrap();
    assert!(found == root);
    let verified = store.verify(&mut |_| {}).unwrap();
    assert!(verified.problems.is_empty(), "{:?}", verified.problems);
    assert_eq!((verified.snapshots, verified.images), (2, 0));
    assert!(store.images().unwrap().is_empty());
    assert_eq!(second.working_set().unwrap(), None);
}

#[test]
fn a_store_of_format_1_is_read_without_being_changed() {
    let folder = tempfile::tempdir().unwrap();
    unpack(folder.path());
    let index = fs::read(folder.path().join("index")).unwrap();
    let medium = Directory::open_read_only(folder.path()).unwrap();
    let store = Store::open(Arc::new(medium), options()).unwrap();
    check(&store);
    assert_eq!(store.status().unwrap().format, 1);
    drop(store);
    assert!(fs::read(folder.path().join("index")).unwrap() == index);
}

#[test]
fn a_store_of_format_1_goes_on_and_is_raised_by_its_first_image_only() {
    let folder = tempfile::tempdir().unwrap();
    unpack(folder.path());
    let store = open(folder.path());
    check(&store);
    let disk = store.open_disk("root").unwrap();
    let mut second = [0; 6];
    disk.read_at(8192, &mut second).unwrap();
    assert_eq!(&second, b"second");
    drop(store.open_disk("blank").unwrap());
    let frozen = Arc::new(disk.freeze().unwrap());
    let mut writer = store.begin(Spec::default()).unwrap();
    writer.disk("disk:root", &frozen).unwrap();
    let third = writer.commit().unwrap().id;
    drop((frozen, disk));
    let snapshot = store.snapshot(2).unwrap();
    snapshot.set_working_set(&[18, 3]).unwrap();
    drop(snapshot);
    store.delete(1).unwrap();
    drop(store);
    let store = open(folder.path());
    assert_eq!(store.status().unwrap().format, 1);
    let snapshot = store.snapshot(2).unwrap();
    assert_eq!(snapshot.working_set().unwrap(), Some(vec![18, 3]));
    drop(snapshot);

    let image = folder.path().with_extension("image");
    fs::write(&image, [3; 5000]).unwrap();
    let file = || Arc::new(fs::File::open(&image).unwrap());
    let info = store.adopt(file(), &mut |_, _| {}).unwrap();
    assert_eq!(store.status().unwrap().format, 2);
    drop(
        store
            .create_disk("image", 8192, Base::Image(info.id))
            .unwrap(),
    );
    drop(store);
    let store = open(folder.path());
    let status = store.status().unwrap();
    assert_eq!((status.format, status.images, status.snapshots), (2, 1, 2));
    store.attach(&info.id, file()).unwrap();
    let disk = store.open_disk("image").unwrap();
    let mut page = [0; PAGE];
    disk.read_at(4096, &mut page).unwrap();
    assert!(page[..904] == [3; 904] && page[904..] == [0; 3192]);
    assert!(store.snapshot(third).is_ok());
    let verified = store.verify(&mut |_| {}).unwrap();
    assert!(verified.problems.is_empty(), "{:?}", verified.problems);
    fs::remove_file(image).unwrap();
}
