use super::*;
use crate::cbfs::Kind;
use crate::rom::RomBuilder;
use crate::rom::tests::{bootblock, rom};

fn image() -> Image {
    let rom = RomBuilder::new(bootblock())
        .file("fallback/romstage", vec![1; 5000])
        .file(PAYLOAD, vec![2; 40_000])
        .file("img/memtest", vec![3; 9000])
        .size(0x3_0000)
        .unchecked()
        .build()
        .unwrap();
    Image::open(rom.bytes).unwrap()
}

fn raw(name: &str, len: usize) -> NewFile {
    NewFile::new(name, Kind::RAW, vec![9; len])
}

const ALL: Replace = Replace {
    payload: true,
    others: true,
};

#[test]
fn the_payload_is_replaced_only_when_told() {
    let mut image = image();
    let before = image.bytes().to_vec();
    let files = || vec![NewFile::new(PAYLOAD, Kind::SELF, vec![9; 50_000])];
    let error = pack(
        &mut image,
        None,
        files(),
        Replace {
            payload: false,
            others: true,
        },
    )
    .unwrap_err();
    assert!(error.to_string().contains("--replace-payload"), "{error}");
    assert_eq!(image.bytes(), before);
    let report = pack(
        &mut image,
        None,
        files(),
        Replace {
            payload: true,
            others: false,
        },
    )
    .unwrap();
    assert_eq!(report.changes[0].action, Action::Replaced);
    assert!(report.anchor);
    assert_eq!(image.check_anchor(), Ok(true));
    assert_eq!(image.bytes()[report.changes[0].data.clone()], [9; 50_000]);
}

#[test]
fn a_file_of_the_same_name_is_kept_if_it_is_the_same() {
    let mut image = image();
    let files = || vec![raw("guest/a", 100), raw("guest/b", 5000)];
    let first = pack(&mut image, None, files(), Replace::default()).unwrap();
    let before = image.bytes().to_vec();
    let second = pack(&mut image, None, files(), Replace::default()).unwrap();
    assert_eq!(image.bytes(), before);
    for (first, second) in first.changes.iter().zip(&second.changes) {
        assert_eq!((first.action, second.action), (Action::Added, Action::Kept));
        assert_eq!(first.data, second.data);
    }
    let other = vec![raw("guest/a", 101)];
    let error = pack(&mut image, None, other.clone(), Replace::default()).unwrap_err();
    assert!(
        matches!(error, PackError::Exists { size: 100, .. }),
        "{error}"
    );
    pack(&mut image, None, other, ALL).unwrap();
}

#[test]
fn what_does_not_fit_is_listed_with_what_to_cut_and_the_image_stays() {
    let mut image = image();
    let before = image.bytes().to_vec();
    let payload = || NewFile::new(PAYLOAD, Kind::SELF, vec![9; 60_000]);
    let files = vec![
        payload(),
        raw("guest/a/root", 50_000),
        raw("guest/b/root", 70_000),
    ];
    let error = pack(&mut image, None, files, ALL).unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert!(lines[0].starts_with("COREBOOT has no room for"), "{error}");
    assert!(
        lines[1].starts_with('+') && lines[1].contains("guest/b/root"),
        "{error}"
    );
    assert!(error.contains("fallback/romstage"), "{error}");
    assert!(error.ends_with("Leave out guest/a/root (--without NAME), and put it on a disk (disk:… in the machine's TOML)"), "{error}");
    assert_eq!(image.bytes(), before);
    // And that is enough.
    pack(
        &mut image,
        None,
        vec![payload(), raw("guest/b/root", 70_000)],
        ALL,
    )
    .unwrap();
}

/// 45 KiB free before and 135 KiB after another file: of 60 and 90 KB only one has room, whatever the sum.
#[test]
fn what_to_leave_out_has_been_tried() {
    let mut image = image();
    let files = || {
        vec![
            raw("guest/a", 60_000),
            raw("guest/b", 90_000),
            raw("guest/c", 20_000),
        ]
    };
    let Err(PackError::Full { full }) = pack(
        &mut image,
        None,
        [
            files(),
            vec![NewFile::new(PAYLOAD, Kind::SELF, vec![9; 41_000])],
        ]
        .concat(),
        ALL,
    ) else {
        panic!()
    };
    assert_eq!(full.leave_out, ["guest/a"]);
}

#[test]
fn without_guests_to_leave_out_the_message_says_what_is_left() {
    let mut image = image();
    let files = vec![NewFile::new("img/daruma", Kind::SELF, vec![9; 150_000])];
    let error = pack(&mut image, None, files, ALL).unwrap_err().to_string();
    assert!(
        error.ends_with("such as fallback/payload and img/memtest"),
        "{error}"
    );
}

#[test]
fn our_own_rom_can_be_packed_into_too() {
    let mut image = Image::open(rom()).unwrap();
    let report = pack(
        &mut image,
        None,
        vec![raw("guest/more", 5000)],
        Replace::default(),
    )
    .unwrap();
    assert_eq!((report.anchor, image.check_anchor()), (true, Ok(true)));
}
