use firmware_glue::cbfs::{Kind, NewFile as CbfsFile, Writer};
use firmware_glue::compress::Method;
use firmware_glue::fmap::{self, NewArea};
use firmware_glue::layout::{AREA_FMAP, FMAP_AREA_SIZE, PAYLOAD};
use firmware_glue::payload::linux::Trio;

use super::*;

const SIZE: usize = 1 << 20;

/// A flash image with these files, `padding` bytes of nothing before it.
fn rom(files: &[(&str, &[u8])], padding: usize) -> Vec<u8> {
    let mut writer = Writer::new();
    for (name, data) in files {
        let kind = if *name == PAYLOAD {
            Kind::SELF
        } else {
            Kind::RAW
        };
        writer
            .add(CbfsFile::new(*name, kind, data.to_vec()))
            .unwrap();
    }
    let cbfs = writer.build(SIZE - FMAP_AREA_SIZE).unwrap();
    let area = |name, offset, size| NewArea {
        name,
        offset,
        size,
        flags: 0,
    };
    let (start, size) = (
        u32::try_from(FMAP_AREA_SIZE).unwrap(),
        u32::try_from(SIZE).unwrap(),
    );
    let areas = [
        area(AREA_FMAP, 0, start),
        area(AREA_CBFS, start, size - start),
    ];
    let mut map = fmap::write(FLASH_END - SIZE as u64, size, "FLASH", &areas).unwrap();
    map.resize(FMAP_AREA_SIZE, 0xff);
    let mut image = vec![0xff; padding];
    image.extend(map);
    image.extend(cbfs);
    image
}

fn open(image: Vec<u8>, folder: &Path) -> Result<Flash, OpenError> {
    Flash::new(Image::File(image), folder)
}

#[test]
fn file_is_copied_and_shared() {
    let folder = tempfile::tempdir().unwrap();
    let flash = open(
        rom(&[("guest/a", b"hello"), ("guest-a", b"other")], 0),
        folder.path(),
    )
    .unwrap();
    let path = flash.file("guest/a").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert_ne!(flash.file("guest-a").unwrap(), path);
    assert_eq!(flash.file("guest/a").unwrap(), path);
    assert_eq!(flash.text("guest/a").unwrap(), "hello");
}

#[test]
fn flash_smaller_than_the_window_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let flash = open(rom(&[("a", b"x")], 3 << 20), folder.path()).unwrap();
    assert_eq!(flash.text("a").unwrap(), "x");
}

#[test]
fn flipped_bit_is_found_before_use() {
    let folder = tempfile::tempdir().unwrap();
    let mut image = rom(&[("a", b"contents of a")], 0);
    let at = image
        .windows(13)
        .position(|window| window == b"contents of a")
        .unwrap();
    image[at] ^= 1;
    let flash = open(image, folder.path()).unwrap();
    let error = flash.file("a").unwrap_err();
    assert!(
        matches!(error, FlashError::Cbfs(CbfsError::WrongHash { .. })),
        "{error}"
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn missing_file_and_missing_flash_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let flash = open(rom(&[], 0), folder.path()).unwrap();
    assert_eq!(
        flash.file("guest/b").unwrap_err().to_string(),
        "No file guest/b in CBFS"
    );
    assert!(matches!(
        open(vec![0xff; SIZE], folder.path()),
        Err(OpenError::NoFlash(_))
    ));
}

#[test]
fn kernel_becomes_its_elf() {
    let folder = tempfile::tempdir().unwrap();
    let elf = unpack::tests::elf();
    let image = unpack::tests::bzimage(&elf, u32::try_from(elf.len()).unwrap());
    let flash = open(rom(&[("daruma/kernel", &image)], 0), folder.path()).unwrap();
    let path = flash.kernel("daruma/kernel").unwrap();
    assert_eq!(fs::read(&path).unwrap(), elf);
    assert_eq!(flash.kernel("daruma/kernel").unwrap(), path);
}

#[test]
fn kernel_that_cannot_be_unpacked_is_used_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let elf = unpack::tests::elf();
    let image = unpack::tests::bzimage(&elf, u32::try_from(elf.len()).unwrap() - 1);
    let flash = open(rom(&[("k", &image)], 0), folder.path()).unwrap();
    assert_eq!(fs::read(flash.kernel("k").unwrap()).unwrap(), image);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Under coreboot the kernel lies in the payload, and not a second time beside it.
#[test]
fn kernel_of_the_payload_serves_where_there_is_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let elf = unpack::tests::elf();
    let kernel = unpack::tests::bzimage(&elf, u32::try_from(elf.len()).unwrap());
    let payload = Trio {
        kernel: &kernel,
        initramfs: Some(&[1; 100]),
        cmdline: "",
        method: Method::None,
    };
    let payload = payload.payload().unwrap().bytes;
    let flash = open(rom(&[(PAYLOAD, &payload)], 0), folder.path()).unwrap();
    assert_eq!(fs::read(flash.kernel(KERNEL).unwrap()).unwrap(), elf);
    assert_eq!(
        flash.kernel("other").unwrap_err().to_string(),
        "No file other in CBFS"
    );

    let mut damaged = rom(&[(PAYLOAD, &payload)], 0);
    let at = damaged.windows(100).position(|w| w == [1; 100]).unwrap();
    damaged[at] ^= 1;
    let flash = open(damaged, folder.path()).unwrap();
    let error = flash.kernel(KERNEL).unwrap_err();
    assert_eq!(error.to_string(), "No file daruma/kernel in CBFS");
}
