use proptest::prelude::*;

use super::*;

const AREAS: [NewArea<'static>; 2] = [
    NewArea {
        name: "FMAP",
        offset: 0,
        size: 0x1000,
        flags: FLAG_STATIC,
    },
    NewArea {
        name: "COREBOOT",
        offset: 0x1000,
        size: 0xf000,
        flags: 0,
    },
];

fn image() -> Vec<u8> {
    let mut image = write(0xffff_0000, 0x1_0000, "FLASH", &AREAS).unwrap();
    image.resize(0x1_0000, 0xff);
    image
}

#[test]
fn what_is_written_is_read_back() {
    let image = image();
    let map = Fmap::find(&image).unwrap();
    assert_eq!(
        (map.base(), map.size(), map.offset()),
        (0xffff_0000, 0x1_0000, 0)
    );
    let area = map.area("COREBOOT").unwrap();
    assert_eq!(area.range(), 0x1000..0x1_0000);
    assert_eq!(map.region("COREBOOT").unwrap().len(), 0xf000);
    assert_eq!(map.areas().count(), 2);
    assert_eq!(map.raw().len(), 56 + 2 * 42);
}

#[test]
fn a_missing_area_is_named() {
    let image = image();
    let error = Fmap::find(&image).unwrap().area("RW_A").unwrap_err();
    assert_eq!(error.to_string(), "The flash map has no area RW_A");
}

#[test]
fn a_signature_by_chance_is_passed_over() {
    let mut window = vec![0xff; 0x2000];
    window[0x100..0x108].copy_from_slice(&SIGNATURE);
    window.extend_from_slice(&image());
    // Offsets are from the start of the slice, so the map at 0x2000 still describes a flash that fits.
    assert_eq!(Fmap::find(&window).unwrap().offset(), 0x2000);
}

#[test]
fn flash_smaller_than_its_window_is_found_at_its_end() {
    let mut window = vec![0; 0x8_0000];
    window.extend_from_slice(&image());
    let flash = flash_in_window(&window).unwrap();
    assert_eq!(flash.len(), 0x1_0000);
    assert_eq!(Fmap::find(flash).unwrap().offset(), 0);
    assert_eq!(
        flash_in_window(&window[..0x8_0000]),
        Err(FmapError::NotFound { len: 0x8_0000 })
    );
}

#[test]
fn an_area_past_the_end_is_refused() {
    let mut image = image();
    image[56 + 42 + 4..56 + 42 + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(
        Fmap::find(&image),
        Err(FmapError::AreaOutside { size: u32::MAX, .. })
    ));
}

#[test]
fn a_cut_image_is_refused() {
    let image = image();
    assert!(matches!(
        Fmap::find(&image[..0x8000]),
        Err(FmapError::Size { len: 0x8000, .. })
    ));
    assert!(matches!(
        Fmap::find(&image[..40]),
        Err(FmapError::Truncated { .. })
    ));
}

#[test]
fn the_wrong_endianness_is_refused() {
    let mut image = image();
    // Size of the flash and number of areas, as a big-endian machine would write them.
    image[18..22].reverse();
    image[54..56].reverse();
    assert!(Fmap::find(&image).is_err());
}

#[test]
fn names_that_do_not_fit_are_not_written() {
    let long = "A".repeat(32);
    assert!(write(0, 0, &long, &[]).is_none());
    assert!(write(0, 0, "", &[]).is_none());
    assert!(write(0, 0, "two words", &[]).is_none());
}

proptest! {
    #[test]
    fn no_change_of_bytes_panics(changes in prop::collection::vec((0usize..200, any::<u8>()), 1..20)) {
        let mut image = image();
        for (at, value) in changes {
            image[at] = value;
        }
        if let Ok(map) = Fmap::find(&image) {
            for area in map.areas() {
                prop_assert!(image.get(area.range()).is_some());
            }
        }
        let _ = flash_in_window(&image);
    }

    #[test]
    fn any_areas_inside_the_flash_survive(
        areas in prop::collection::vec(("[!-~]{1,31}", 0u32..0x1000, 0u32..0x1000, any::<u16>()), 0..20)
    ) {
        let written: Vec<_> = areas
            .iter()
            .map(|(name, offset, size, flags)| NewArea { name, offset: *offset, size: *size, flags: *flags })
            .collect();
        let mut image = write(1 << 32, 0x2000, "F", &written).unwrap();
        image.resize(0x2000, 0);
        let map = Fmap::find(&image).unwrap();
        let read: Vec<_> = map.areas().map(|a| (a.name.to_owned(), a.offset, a.size, a.flags)).collect();
        prop_assert_eq!(read, areas);
    }
}
