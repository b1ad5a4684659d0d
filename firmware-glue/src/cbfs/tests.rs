use proptest::prelude::*;

use super::*;

fn region() -> Vec<u8> {
    let mut writer = Writer::new();
    writer
        .add(NewFile::new("daruma/kernel", Kind::RAW, vec![0x5a; 1000]))
        .unwrap();
    writer
        .add(NewFile::new("guest/web/initrd", Kind::RAW, vec![7; 64]))
        .unwrap();
    writer
        .set_bootblock(NewFile::bootblock(vec![0x90; 512]))
        .unwrap();
    writer.build(0x1000).unwrap()
}

#[test]
fn files_are_found_by_name_and_verify() {
    let region = region();
    let cbfs = Cbfs::new(&region);
    let file = cbfs.find("daruma/kernel").unwrap();
    assert_eq!(file.data(), vec![0x5a; 1000]);
    assert_eq!(file.kind(), Kind::RAW);
    assert_eq!(file.compression(), Ok(Compression::None));
    assert_eq!(file.verify(), Ok(Algorithm::Blake3));
    assert_eq!(file.verify_all(), Ok(2));
    assert_eq!(region[file.data_range()], *file.data());
}

#[test]
fn the_bootblock_ends_the_region() {
    let region = region();
    let file = Cbfs::new(&region).find("bootblock").unwrap();
    assert_eq!(file.data_range(), 0xe00..0x1000);
    assert_eq!(file.kind(), Kind::BOOTBLOCK);
    assert!(matches!(file.verify(), Err(CbfsError::NoHash { .. })));
}

#[test]
fn free_space_is_a_file_without_a_name() {
    let region = region();
    let kinds: Vec<_> = Cbfs::new(&region)
        .walk()
        .map(|file| file.unwrap().kind())
        .collect();
    assert_eq!(kinds, [Kind::RAW, Kind::RAW, Kind::EMPTY, Kind::BOOTBLOCK]);
    assert_eq!(Cbfs::new(&region).files().count(), 3);
}

#[test]
fn a_missing_file_is_named() {
    let region = region();
    let error = Cbfs::new(&region).find("daruma/cmdline").unwrap_err();
    assert_eq!(error.to_string(), "No file daruma/cmdline in CBFS");
}

#[test]
fn a_flipped_bit_is_found() {
    let mut region = region();
    let at = Cbfs::new(&region)
        .find("daruma/kernel")
        .unwrap()
        .data_range()
        .start
        + 500;
    region[at] ^= 4;
    let error = Cbfs::new(&region)
        .find("daruma/kernel")
        .unwrap()
        .verify()
        .unwrap_err();
    assert!(matches!(
        error,
        CbfsError::WrongHash {
            algorithm: Algorithm::Blake3,
            ..
        }
    ));
    assert!(error.to_string().contains("daruma/kernel"));
}

#[test]
fn without_blake3_the_sha256_counts() {
    let mut region = region();
    let tag = TAG_BLAKE3.to_be_bytes();
    let at = region.windows(4).position(|window| window == tag).unwrap();
    region[at..at + 4].copy_from_slice(b"XXXX");
    let file = Cbfs::new(&region).find("daruma/kernel").unwrap();
    assert_eq!(file.verify(), Ok(Algorithm::Sha256));
}

#[test]
fn metadata_hash_covers_attributes_but_not_data() {
    let original = region();
    let hash = Cbfs::new(&original).metadata_hash().unwrap();
    let mut data_changed = original.clone();
    data_changed[300] ^= 1;
    assert_eq!(Cbfs::new(&data_changed).metadata_hash().unwrap(), hash);
    let mut attribute_changed = original;
    attribute_changed[60] ^= 1;
    assert_ne!(Cbfs::new(&attribute_changed).metadata_hash().unwrap(), hash);
}

#[test]
fn bad_headers_are_errors_and_the_walk_goes_on() {
    let good = region();
    let wraps = u32::MAX;
    for (field, value) in [
        (20, 24u32),
        (20, 257),
        (20, wraps),
        (8, 0x1000),
        (8, wraps),
        (16, 20),
        (16, 0xffff),
        (16, wraps),
    ] {
        let mut region = good.clone();
        region[field..field + 4].copy_from_slice(&value.to_be_bytes());
        let cbfs = Cbfs::new(&region);
        assert!(cbfs.walk().next().unwrap().is_err(), "{field} = {value}");
        assert!(cbfs.find("guest/web/initrd").is_ok(), "{field} = {value}");
        assert!(cbfs.metadata_hash().is_err(), "{field} = {value}");
    }
}

#[test]
fn the_wrong_endianness_is_no_file() {
    let mut region = region();
    for field in region[8..24].chunks_exact_mut(4) {
        field.reverse();
    }
    assert!(Cbfs::new(&region).walk().next().unwrap().is_err());
    let magic: Vec<u8> = MAGIC.iter().rev().copied().collect();
    region[..8].copy_from_slice(&magic);
    assert_eq!(
        Cbfs::new(&region).walk().next().unwrap().unwrap().name(),
        "guest/web/initrd"
    );
}

#[test]
fn an_attribute_longer_than_the_metadata_is_an_error() {
    let mut region = region();
    let at = region
        .windows(4)
        .position(|w| w == TAG_HASH.to_be_bytes())
        .unwrap();
    region[at + 4..at + 8].copy_from_slice(&u32::MAX.to_be_bytes());
    let file = Cbfs::new(&region).find("daruma/kernel").unwrap();
    assert!(matches!(
        file.verify(),
        Err(CbfsError::BadAttribute { tag: TAG_HASH, .. })
    ));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let mut writer = Writer::new();
    let file = |name: &str, len| NewFile::new(name, Kind::RAW, vec![0; len]);
    assert!(matches!(
        writer.add(file("", 1)),
        Err(WriteError::BadName { .. })
    ));
    assert!(matches!(
        writer.add(file("a\0b", 1)),
        Err(WriteError::BadName { .. })
    ));
    assert!(matches!(
        writer.add(file(&"n".repeat(148), 1)),
        Err(WriteError::BadName { .. })
    ));
    writer.add(file(&"n".repeat(147), 1)).unwrap();
    writer.add(file("x", 5000)).unwrap();
    assert!(matches!(
        writer.add(file("x", 1)),
        Err(WriteError::Duplicate { .. })
    ));
    assert!(matches!(
        writer.build(4096),
        Err(WriteError::Full {
            available: 4096,
            ..
        })
    ));
}

proptest! {
    #[test]
    fn any_files_survive(
        files in prop::collection::btree_map("[a-z/.]{1,60}", prop::collection::vec(any::<u8>(), 0..300), 0..8),
        bootblock in prop::collection::vec(any::<u8>(), 0..600),
        spare in 0usize..300,
    ) {
        prop_assume!(!files.contains_key("bootblock"));
        let mut writer = Writer::new();
        for (name, data) in &files {
            writer.add(NewFile::new(name.as_str(), Kind::RAW, data.clone())).unwrap();
        }
        writer.set_bootblock(NewFile::bootblock(bootblock.clone())).unwrap();
        let size = writer.needed() + spare * 4;
        let region = writer.build(size).unwrap();
        prop_assert_eq!(region.len(), size);
        let cbfs = Cbfs::new(&region);
        for (name, data) in &files {
            let file = cbfs.find(name).unwrap();
            prop_assert_eq!(file.data(), &data[..]);
            prop_assert_eq!(file.verify_all(), Ok(2));
        }
        prop_assert_eq!(cbfs.find("bootblock").unwrap().data(), &bootblock[..]);
        prop_assert_eq!(cbfs.files().count(), files.len() + 1);
    }

    #[test]
    fn no_change_of_bytes_panics(changes in prop::collection::vec((0usize..0x1000, any::<u8>()), 1..40)) {
        let mut region = region();
        for (at, value) in changes {
            region[at] = value;
        }
        let cbfs = Cbfs::new(&region);
        for file in cbfs.walk().flatten() {
            prop_assert!(file.data_range().end <= region.len());
            let _ = (file.verify(), file.verify_all(), file.compression());
        }
        let _ = cbfs.metadata_hash();
    }

    #[test]
    fn a_header_of_any_bytes_does_not_panic(header in prop::collection::vec(any::<u8>(), 16..300)) {
        let mut region = MAGIC.to_vec();
        // Small values, so that the checks past the first are reached as well.
        region.extend(header.iter().enumerate().map(|(i, b)| if i % 4 < 2 && i < 16 { 0 } else { *b }));
        for file in Cbfs::new(&region).walk().flatten() {
            let _ = (file.verify(), file.compression());
        }
    }
}
