use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::cbfs::{Attribute, File, Hashes, MasterHeader};

fn raw(name: &str, len: usize) -> NewFile {
    NewFile::new(name, Kind::RAW, vec![0x5a; len])
}

fn names(region: &[u8]) -> Vec<String> {
    let name = |file: File<'_>| match file.kind().is_free() {
        true => "-".to_owned(),
        false => file.name().to_owned(),
    };
    Cbfs::new(region)
        .walk()
        .map(|file| name(file.unwrap()))
        .collect()
}

#[test]
fn what_is_added_is_found_and_the_rest_is_free() {
    let mut region = vec![0; 0x4000];
    let mut editor = Editor::format(&mut region);
    editor.add(&raw("a", 1000)).unwrap();
    editor.add(&raw("b", 70)).unwrap();
    let free = editor.free();
    assert_eq!(names(&region), ["a", "b", "-"]);
    assert_eq!(free.len(), 1);
    assert_eq!(free[0].end, 0x4000);
    assert_eq!(Cbfs::new(&region).find("a").unwrap().verify_all(), Ok(2));
}

#[test]
fn removed_files_become_one_free_piece_with_their_neighbours() {
    for order in [
        ["a", "b", "c"],
        ["c", "a", "b"],
        ["b", "c", "a"],
        ["a", "c", "b"],
    ] {
        let mut region = vec![0; 0x1000];
        let mut editor = Editor::format(&mut region);
        for name in ["a", "b", "c", "d"] {
            editor.add(&raw(name, 300)).unwrap();
        }
        for name in order {
            editor.remove(name).unwrap();
        }
        assert_eq!(names(&region), ["-", "d", "-"], "{order:?}");
        let free = Cbfs::new(&region).walk().next().unwrap().unwrap();
        assert!(free.data().iter().all(|byte| *byte == 0xff));
    }
}

#[test]
fn adding_and_removing_leaves_the_region_as_it_was() {
    let mut region = vec![0; 0x2000];
    Editor::format(&mut region).add(&raw("kept", 700)).unwrap();
    let before = region.clone();
    let mut editor = Editor::new(&mut region).unwrap();
    editor.add(&raw("new", 900)).unwrap();
    editor.remove("new").unwrap();
    assert_eq!(region, before);
}

#[test]
fn a_region_that_is_no_cbfs_is_refused() {
    for byte in [0, 0xff] {
        let mut region = vec![byte; 0x1000];
        assert_eq!(
            Editor::new(&mut region).unwrap_err(),
            EditError::NoCbfs { len: 0x1000 }
        );
    }
    assert!(Editor::new(&mut []).is_err());
}

#[test]
fn a_damaged_header_forbids_every_change() {
    let mut region = vec![0; 0x2000];
    Editor::format(&mut region).add(&raw("a", 300)).unwrap();
    for (at, value) in [(8, 0xff), (20, 0xff), (16, 0xff)] {
        let mut damaged = region.clone();
        damaged[at] = value;
        assert!(
            matches!(Editor::new(&mut damaged), Err(EditError::Damaged(_))),
            "{at}"
        );
    }
}

#[test]
fn a_name_that_exists_and_one_that_does_not() {
    let mut region = vec![0; 0x2000];
    let mut editor = Editor::format(&mut region);
    editor.add(&raw("a", 300)).unwrap();
    let error = editor.add(&raw("a", 1)).unwrap_err();
    assert_eq!(error.to_string(), "There is a file a already");
    assert_eq!(
        editor.remove("b").unwrap_err().to_string(),
        "There is no file b"
    );
}

#[test]
fn a_full_region_says_what_is_missing_and_stays_as_it_is() {
    let mut region = vec![0; 0x1000];
    Editor::format(&mut region).add(&raw("a", 3000)).unwrap();
    let before = region.clone();
    let error = Editor::new(&mut region)
        .unwrap()
        .add(&raw("b", 2000))
        .unwrap_err();
    assert_eq!(
        error,
        EditError::Full {
            name: "b".into(),
            needed: 24 + 4 + 84 + 2000,
            largest: 960,
            free: 960
        }
    );
    assert_eq!(region, before);
    // To the last byte.
    let mut editor = Editor::new(&mut region).unwrap();
    editor.add(&raw("b", 960 - 24 - 4 - 84)).unwrap();
    assert!(editor.free().is_empty());
}

#[test]
fn fixed_and_aligned_places_are_kept() {
    let mut region = vec![0; 0x8000];
    let mut editor = Editor::format(&mut region);
    let fixed = NewFile::with(
        "fixed",
        Kind(0x30),
        vec![1; 500],
        Hashes::Sha256,
        Place::At(0x3010),
    );
    assert_eq!(editor.add(&fixed).unwrap().start, 0x3010);
    let aligned = NewFile::with(
        "page",
        Kind::RAW,
        vec![2; 500],
        Hashes::None,
        Place::Aligned(4096),
    );
    assert_eq!(editor.add(&aligned).unwrap().start, 0x1000);
    let taken = NewFile::with(
        "taken",
        Kind::RAW,
        vec![3; 5],
        Hashes::None,
        Place::At(0x3100),
    );
    assert!(matches!(
        editor.add(&taken),
        Err(EditError::PlaceTaken { place: 0x3100, .. })
    ));
    let odd = NewFile::with(
        "odd",
        Kind::RAW,
        vec![3; 5],
        Hashes::None,
        Place::Aligned(48),
    );
    assert!(matches!(
        editor.add(&odd),
        Err(EditError::Alignment { alignment: 48, .. })
    ));
    assert_eq!(names(&region), ["-", "page", "-", "fixed", "-"]);
    let found = Cbfs::new(&region).find("fixed").unwrap();
    assert!(
        found
            .attributes()
            .any(|a| a == Ok(Attribute::Position(0x3010)))
    );
}

#[test]
fn the_pointer_to_the_master_header_is_not_overwritten() {
    let mut region = vec![0; 0x1000];
    let mut editor = Editor::format(&mut region);
    let header = [0x4f52_4243u32, 0x3131_3132, 0x1000, 0, 64, 0, 1, 0];
    let header = header.map(u32::to_be_bytes).concat();
    let kind = Kind::MASTER_HEADER;
    let file = NewFile::with(
        "cbfs master header",
        kind,
        header,
        Hashes::None,
        Place::Anywhere,
    );
    let at = editor.add(&file).unwrap().start;
    let back = i32::try_from(at).unwrap() - 0x1000;
    region[0xffc..].copy_from_slice(&back.to_le_bytes());
    let mut editor = Editor::new(&mut region).unwrap();
    let [free] = &editor.free()[..] else { panic!() };
    assert_eq!(free.end, 0xffc);
    let rest = free.len() - 24 - 8;
    let file = NewFile::with(
        "rest",
        Kind::RAW,
        vec![7; rest],
        Hashes::None,
        Place::Anywhere,
    );
    editor.add(&file).unwrap();
    editor.remove("rest").unwrap();
    assert!(matches!(
        editor.remove("cbfs master header"),
        Err(EditError::Needed { .. })
    ));
    assert_eq!(region[0xffc..], back.to_le_bytes());
    assert!(MasterHeader::find(&region).is_some());
}

#[test]
fn a_copied_file_is_the_same_whatever_its_attributes() {
    let mut region = vec![0; 0x4000];
    let mut editor = Editor::format(&mut region);
    let file = NewFile::compressed(
        "c",
        Kind(0x70),
        vec![9; 4000],
        crate::compress::Method::Lzma,
        Hashes::Both,
    );
    editor.add(&file.unwrap()).unwrap();
    // An attribute of someone else's.
    let at = region.windows(4).position(|w| w == b"BLK3").unwrap();
    region[at..at + 4].copy_from_slice(b"XYZ1");
    let original = Cbfs::new(&region).find("c").unwrap();
    let copy = NewFile::copy_of(&original).unwrap();
    let mut other = vec![0; 0x4000];
    Editor::format(&mut other).add(&copy).unwrap();
    assert_eq!(other, region);
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8, usize, u8),
    Remove(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..12, 0usize..900, 0u8..4).prop_map(|(name, len, place)| Step::Add(name, len, place)),
        (0u8..12).prop_map(Step::Remove),
    ]
}

proptest! {
    #[test]
    fn any_series_of_changes_keeps_every_other_file(steps in prop::collection::vec(step(), 1..60)) {
        let mut region = vec![0; 0x2000];
        let mut editor = Editor::format(&mut region);
        let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (count, step) in steps.into_iter().enumerate() {
            match step {
                Step::Add(name, len, place) => {
                    let name = format!("file{name}");
                    let data = vec![u8::try_from(count % 251).unwrap(); len];
                    let place = match place { 0 => Place::Aligned(256), 1 => Place::At(0x1230), _ => Place::Anywhere };
                    let file = NewFile::with(&name, Kind::RAW, data.clone(), Hashes::Both, place);
                    match editor.add(&file) {
                        Ok(_) => prop_assert!(model.insert(name, data).is_none()),
                        Err(EditError::Exists { .. }) => prop_assert!(model.contains_key(&name)),
                        Err(EditError::Full { .. } | EditError::PlaceTaken { .. }) => {}
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                }
                Step::Remove(name) => {
                    let name = format!("file{name}");
                    prop_assert_eq!(editor.remove(&name).is_ok(), model.remove(&name).is_some());
                }
            }
            let found: BTreeMap<String, Vec<u8>> = editor
                .cbfs()
                .files()
                .map(|file| file.unwrap())
                .map(|file| (file.name().to_owned(), file.data().to_vec()))
                .collect();
            prop_assert_eq!(&found, &model);
            // No two free files side by side, and every boundary belongs to a file.
            let walk: Vec<_> = editor.cbfs().walk().map(|file| file.unwrap()).collect();
            prop_assert!(!walk.windows(2).any(|two| two.iter().all(|file| file.kind().is_free())));
            prop_assert!(walk.windows(2).all(|two| two[0].data_range().end.next_multiple_of(64) == two[1].start()));
        }
    }
}
