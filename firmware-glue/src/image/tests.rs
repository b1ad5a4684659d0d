use super::*;
use crate::cbfs::{NewFile, Place};
use crate::fmap::{self, NewArea};
use crate::rom::tests::rom;

/// A flash of 64 KiB with these areas, each that begins with `C` a CBFS.
fn image(areas: &[(&str, u32, u32)]) -> Vec<u8> {
    let areas: Vec<NewArea<'_>> = areas
        .iter()
        .map(|(name, offset, size)| NewArea {
            name,
            offset: *offset,
            size: *size,
            flags: 0,
        })
        .collect();
    let mut bytes = fmap::write(0xffff_0000, 0x1_0000, "FLASH", &areas).unwrap();
    bytes.resize(0x1_0000, 0xff);
    for area in areas {
        if area.name.starts_with('C') {
            let start = area.offset as usize;
            Editor::format(&mut bytes[start..start + area.size as usize]);
        }
    }
    bytes
}

fn raw(name: &str, len: usize) -> NewFile {
    NewFile::new(name, Kind::RAW, vec![7; len])
}

fn add(image: &mut Image, region: Option<&str>, file: &NewFile) -> Result<(), ImageError> {
    image.edit(region, |editor| {
        editor.add(file).map_err(|source| ImageError::Edit {
            region: String::new(),
            source,
        })?;
        Ok(())
    })
}

#[test]
fn only_the_innermost_area_is_a_cbfs() {
    let areas = [
        ("WHOLE", 0x1000, 0xf000),
        ("COREBOOT", 0x1000, 0x4000),
        ("CB", 0x5000, 0x1000),
    ];
    let image = Image::open(image(&areas)).unwrap();
    let found: Vec<&str> = image.cbfs_regions().map(|region| &*region.name).collect();
    assert_eq!(found, ["COREBOOT", "CB"]);
}

#[test]
fn a_change_of_one_region_leaves_the_others() {
    let before = image(&[("COREBOOT", 0x1000, 0x4000), ("CB", 0x5000, 0x1000)]);
    let mut image = Image::open(before.clone()).unwrap();
    add(&mut image, Some("CB"), &raw("x", 100)).unwrap();
    assert_eq!(image.bytes()[..0x5000], before[..0x5000]);
    assert_eq!(image.bytes()[0x6000..], before[0x6000..]);
    let region = image.region(Some("CB")).unwrap();
    assert!(image.cbfs(region).find("x").is_ok());
}

#[test]
fn areas_that_overlap_or_share_a_name_are_seen_and_not_changed() {
    let open = |areas: &[(&str, u32, u32)]| Image::open(image(areas)).unwrap();
    let mut overlapping = open(&[
        ("CA", 0x1000, 0x2000),
        ("B", 0x2000, 0x2000),
        ("CC", 0x5000, 0x1000),
    ]);
    let error = add(&mut overlapping, Some("CA"), &raw("x", 1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Flash area CA overlaps B, so it cannot be changed"
    );
    add(&mut overlapping, Some("CC"), &raw("x", 1)).unwrap();
    let mut twins = open(&[("CA", 0x1000, 0x1000), ("CA", 0x2000, 0x1000)]);
    assert_eq!(twins.cbfs_regions().count(), 2);
    let error = add(&mut twins, Some("CA"), &raw("x", 1)).unwrap_err();
    assert!(matches!(error, ImageError::TwoAreas { .. }), "{error}");
}

#[test]
fn a_cbfs_with_something_else_inside_is_not_changed() {
    let refusal = |areas: &[(&str, u32, u32)]| {
        let mut image = Image::open(image(areas)).unwrap();
        add(&mut image, Some("CA"), &raw("x", 1))
            .unwrap_err()
            .to_string()
    };
    let error = refusal(&[("CA", 0x1000, 0x4000), ("B", 0x2000, 0x1000)]);
    assert_eq!(
        error,
        "Area B lies inside of area CA, so its CBFS cannot be changed"
    );
    // The flash map: what it says is found in the CBFS itself.
    let mut bytes = image(&[("CA", 0x1000, 0x4000)]);
    let map = bytes[..56 + 42].to_vec();
    bytes[..8].fill(0);
    bytes[0x2000..0x2000 + map.len()].copy_from_slice(&map);
    let before = bytes.clone();
    let mut image = Image::open(bytes).unwrap();
    let error = add(&mut image, Some("CA"), &raw("x", 1)).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("The flash map lies inside of area CA"),
        "{error}"
    );
    assert_eq!(image.bytes(), before);
}

#[test]
fn a_region_that_is_missing_or_no_cbfs_is_refused_with_those_that_are() {
    let mut image =
        Image::open(image(&[("CB", 0x1000, 0x4000), ("DATA", 0x5000, 0x1000)])).unwrap();
    assert_eq!(
        add(&mut image, None, &raw("x", 1)).unwrap_err().to_string(),
        "The image has no area COREBOOT; those with a CBFS are: CB"
    );
    assert!(matches!(
        add(&mut image, Some("DATA"), &raw("x", 1)),
        Err(ImageError::Edit {
            source: EditError::NoCbfs { .. },
            ..
        })
    ));
}

#[test]
fn what_is_no_image_is_refused() {
    for bytes in [vec![], vec![0xff; 0x1000], b"__FMAP__".repeat(600)] {
        assert!(matches!(Image::open(bytes), Err(ImageError::NoImage(_))));
    }
}

#[test]
fn the_anchor_is_made_anew_and_a_wrong_one_is_left_alone() {
    let rom = rom();
    let mut image = Image::open(rom.clone()).unwrap();
    assert_eq!(image.check_anchor(), Ok(true));
    add(&mut image, None, &raw("guest/new", 500)).unwrap();
    assert_eq!(image.check_anchor(), Ok(true));
    assert_ne!(
        image.anchor().unwrap(),
        Image::open(rom.clone()).unwrap().anchor().unwrap()
    );

    // One letter of a name, which the anchor covers.
    let mut damaged = rom;
    let at = damaged
        .windows(13)
        .position(|w| w == b"daruma/kernel")
        .unwrap();
    damaged[at] = b'D';
    let mut image = Image::open(damaged.clone()).unwrap();
    assert!(matches!(
        add(&mut image, None, &raw("guest/new", 500)),
        Err(ImageError::Anchor(AnchorError::WrongMetadata))
    ));
    assert_eq!(image.bytes(), damaged);
}

#[test]
fn an_anchor_of_another_hash_is_left_alone() {
    let mut rom = rom();
    let at = rom.windows(8).position(|w| w == anchor::MAGIC).unwrap();
    rom[at + 11] = 3;
    let mut image = Image::open(rom.clone()).unwrap();
    assert!(matches!(
        add(&mut image, None, &raw("guest/new", 500)),
        Err(ImageError::Anchor(AnchorError::Algorithm { algorithm: 3 }))
    ));
    assert_eq!(image.bytes(), rom);
}

#[test]
fn an_image_without_a_map_is_one_cbfs_and_one_for_arm_is_refused() {
    let legacy = |architecture: u32| {
        let mut bytes = vec![0xff; 0x8000];
        Editor::format(&mut bytes[..0x7fc0]);
        let header = [
            0x4f52_4243u32,
            0x3131_3132,
            0x8000,
            0x40,
            64,
            0,
            architecture,
            0,
        ];
        bytes[0x7fd0..0x7ff0].copy_from_slice(&header.map(u32::to_be_bytes).concat());
        bytes[0x7ffc..].copy_from_slice(&(-0x30i32).to_le_bytes());
        Image::open(bytes).unwrap()
    };
    let mut image = legacy(1);
    add(&mut image, None, &raw("x", 100)).unwrap();
    assert_eq!(image.region(None).unwrap().range, 0..0x7fc0);
    assert!(matches!(
        add(&mut legacy(2), None, &raw("x", 100)),
        Err(ImageError::Foreign { architecture: 2 })
    ));
}

#[test]
fn a_master_header_in_a_file_says_the_architecture_too() {
    let mut image = Image::open(image(&[("COREBOOT", 0x1000, 0x4000)])).unwrap();
    let header = [0x4f52_4243u32, 0x3131_3132, 0x1_0000, 0, 64, 0x1000, 2, 0];
    let header = header.map(u32::to_be_bytes).concat();
    let kind = Kind::MASTER_HEADER;
    let hashes = crate::cbfs::Hashes::None;
    let file = NewFile::with("cbfs master header", kind, header, hashes, Place::Anywhere);
    add(&mut image, None, &file).unwrap();
    assert!(matches!(
        add(&mut image, None, &raw("x", 1)),
        Err(ImageError::Foreign { architecture: 2 })
    ));
}
