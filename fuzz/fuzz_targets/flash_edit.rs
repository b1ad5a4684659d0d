//! Someone's flash image, opened, looked into and changed: what is not changed stays, and what is written can be read.
#![no_main]

use std::collections::BTreeMap;

use firmware_glue::cbfs::{Editor, Hashes, Kind, NewFile, Place};
use firmware_glue::fmap::{self, NewArea};
use firmware_glue::image::{Image, ImageError};
use firmware_glue::pack::{self, Replace};

/// How files are found again: name, kind, data.
type Files = BTreeMap<(usize, String), (u32, Vec<u8>)>;

fn seeds() -> Vec<Vec<u8>> {
    let mut region = vec![0xff; 0xb00];
    let mut editor = Editor::format(&mut region);
    let hashes = Hashes::Both;
    let files = [
        NewFile::with("a", Kind::RAW, vec![1; 200], hashes, Place::Anywhere),
        NewFile::with(
            "bootblock",
            Kind::BOOTBLOCK,
            vec![2; 90],
            Hashes::None,
            Place::Anywhere,
        ),
        NewFile::with("c", Kind::STAGE, vec![3; 100], hashes, Place::At(0x800)),
        NewFile::new("fallback/payload", Kind::SELF, vec![4; 70]),
    ];
    for file in &files {
        editor.add(file).expect("there is room");
    }
    let area = |name, offset, size| NewArea {
        name,
        offset,
        size,
        flags: 0,
    };
    let areas = [area("FMAP", 0, 0x100), area("COREBOOT", 0x100, 0xb00)];
    let mut image = fmap::write(0xffff_f000, 0xc00, "F", &areas).expect("short names");
    image.resize(0x100, 0xff);
    image.extend_from_slice(&region);
    // One from before there were flash maps.
    let mut old = region.clone();
    old.resize(0xc00, 0xff);
    let header = [0x4f52_4243_u32, 0x3131_3132, 0xc00, 0x100, 64, 0, 1, 0];
    old[0xb80..0xba0].copy_from_slice(&header.map(u32::to_be_bytes).concat());
    old[0xbfc..].copy_from_slice(&(-0x80_i32).to_le_bytes());
    let steps: [&[u8]; 3] = [&[0], &[0x13, 1, 0], &[0xff, 9, 0x40]];
    steps
        .iter()
        .flat_map(|steps| [[*steps, &image].concat(), [*steps, &old].concat()])
        .collect()
}

/// All files of a region but `name`.
fn others(image: &Image, region: &str, name: &str) -> Files {
    let Ok(region) = image.region(Some(region)) else {
        return Files::new();
    };
    image
        .cbfs(region)
        .files()
        .filter_map(Result::ok)
        .filter(|file| file.name() != name)
        .map(|file| {
            let key = (file.start(), file.name().to_owned());
            (key, (file.kind().0, file.data().to_vec()))
        })
        .collect()
}

fuzz::fuzz_target!(init: fuzz::begin(seeds), |data: &[u8]| {
    let [what, len, place, data @ ..] = data else {
        return;
    };
    let Ok(mut image) = Image::open(data.to_vec()) else {
        return;
    };
    let _ = (image.anchor(), image.check_anchor());
    let names: Vec<String> = image.cbfs_regions().map(|region| region.name.clone()).collect();
    for region in names {
        // Two areas may have one name; then neither is meant.
        let Ok(range) = image.region(Some(&region)).map(|region| region.range.clone()) else {
            continue;
        };
        let before = image.clone();
        let place = match what % 3 {
            0 => Place::Anywhere,
            1 => Place::Aligned(1 << (place % 12)),
            _ => Place::At(u32::from(*place) << 4),
        };
        let file = NewFile::with("new", Kind::RAW, vec![7; usize::from(*len)], Hashes::Sha256, place);
        let added: Result<_, ImageError> = image.edit(Some(&region), |editor| {
            let error = |source| ImageError::Edit { region: String::new(), source };
            if what & 0x40 != 0 {
                let _ = editor.remove("a");
            }
            editor.add(&file).map_err(error)
        });
        match added {
            Ok(at) => {
                let found = image.region(Some(&region)).expect("as before").clone();
                assert_eq!(image.bytes_of(&found)[at], vec![7; usize::from(*len)]);
                let file = image.cbfs(&found).find("new").expect("it was added");
                assert_eq!(file.verify_all(), Ok(1));
                let mut expected = others(&before, &region, "new");
                if what & 0x40 != 0 {
                    let first = expected.keys().find(|(_, name)| name == "a").cloned();
                    first.map(|first| expected.remove(&first));
                }
                let now = others(&image, &region, "new");
                // The boot block holds the hash that is made anew.
                let same = |((at, name), file): (&(usize, String), &(u32, Vec<u8>))| {
                    name == "bootblock" || now.get(&(*at, name.clone())) == Some(file)
                };
                assert!(expected.iter().all(same), "{expected:?} {now:?}");
                assert_eq!(image.check_anchor(), before.check_anchor());
            }
            Err(_) => assert_eq!(image.bytes(), before.bytes()),
        }
        assert_eq!(image.bytes()[..range.start], before.bytes()[..range.start]);
        assert_eq!(image.bytes()[range.end..], before.bytes()[range.end..]);
        let replace = Replace { payload: what & 0x80 != 0, others: what & 0x20 != 0 };
        let files = vec![
            NewFile::new("fallback/payload", Kind::SELF, vec![5; usize::from(*len)]),
            NewFile::new("guest/a", Kind::RAW, vec![6; usize::from(*len) * 2]),
        ];
        let before = image.clone();
        if let Err(error) = pack::pack(&mut image, Some(&region), files, replace) {
            assert!(!error.to_string().is_empty());
            assert_eq!(image.bytes(), before.bytes());
        }
    }
});
