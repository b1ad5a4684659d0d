use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use imago::FormatCreateBuilder;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::file_lock::LockError;
use crate::virtio::block::engine::Preference;
use crate::virtio::block::{Block, Options};
use crate::virtio::queue::RING_FEATURES;
use crate::virtio::testing::{Buffer, GuestRing, TestGuest, Transport};

const LEN: u64 = 4 << 20;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const WRITE_ZEROES: u32 = 13;

fn file(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
}

/// Makes an empty image of `len` bytes, on `backing` (name, format).
fn create(path: &Path, len: u64, backing: Option<(&str, &str)>) {
    let storage =
        ImageFile::from_open_file(file(path), StorageOpenOptions::new().write(true)).unwrap();
    let mut builder = Qcow2::<ImageFile>::create_builder(storage).size(len);
    if let Some((name, format)) = backing {
        builder = builder.backing(name.into(), format.into());
    }
    builder.create().unwrap();
}

fn nobody(name: &str) -> Result<File, Qcow2Error> {
    Err(Qcow2Error::BackingNotPermitted { name: name.into() })
}

/// Where QEMU's own tool is there, it must find nothing wrong.
fn check(path: &Path) {
    if let Ok(output) = Command::new("qemu-img")
        .args(["check", "-f", "qcow2"])
        .arg(path)
        .output()
    {
        assert!(output.status.success(), "{output:?}");
    }
}

struct Guest {
    guest: TestGuest,
    ring: GuestRing,
}

impl Guest {
    fn new(on: Transport, disk: Qcow2File) -> Self {
        let engine = Engine::new(Preference::Asynchronous);
        let block = Block::new(Box::new(disk), engine, Options::default()).unwrap();
        let mut guest = TestGuest::new(on, block);
        let ring = guest.start(RING_FEATURES | 1 << 9 | 1 << 13 | 1 << 14, 256);
        Self { guest, ring }
    }

    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u8 {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let header = self.ring.data(&header);
        let status = Buffer {
            writable: true,
            ..self.ring.data(&[0xff])
        };
        let buffers: Vec<_> = [&[header], data, &[status]].concat();
        self.ring.add(&buffers);
        self.guest.notify(0);
        self.ring.used().unwrap();
        self.ring.contents(status)[0]
    }

    fn write(&mut self, sector: u64, byte: u8) -> u8 {
        let data = [self.ring.data(&[byte; 100]), self.ring.data(&[byte; 412])];
        self.request(OUT, sector, &data)
    }

    fn read(&mut self, sector: u64) -> u8 {
        let parts = [self.ring.buffer(500, true), self.ring.buffer(12, true)];
        assert_eq!(self.request(IN, sector, &parts), 0);
        let data = [self.ring.contents(parts[0]), self.ring.contents(parts[1])].concat();
        assert!(data.iter().all(|&byte| byte == data[0]));
        data[0]
    }

    fn zero(&mut self, sector: u64, sectors: u32, unmap: u32) -> u8 {
        let mut range = [0; 16];
        range[..8].copy_from_slice(&sector.to_le_bytes());
        range[8..12].copy_from_slice(&sectors.to_le_bytes());
        range[12..].copy_from_slice(&unmap.to_le_bytes());
        let range = self.ring.data(&range);
        self.request(WRITE_ZEROES, 0, &[range])
    }
}

fn setup() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    (dir, path)
}

#[test]
fn image_keeps_what_is_written_and_is_clean_after_a_reset() {
    for &on in Transport::ALL {
        let (_dir, path) = setup();
        create(&path, LEN, None);
        let disk = Qcow2File::new(file(&path), false, &mut nobody).unwrap();
        assert_eq!((disk.len(), disk.discard_granularity()), (LEN, 65536));
        let mut guest = Guest::new(on, disk);
        assert_eq!(guest.read(5), 0);
        assert_eq!(guest.write(5, 7), 0);
        assert_eq!(guest.write(8191, 8), 0);
        assert_eq!(guest.write(8192, 8), 1);
        assert_eq!(guest.request(FLUSH, 0, &[]), 0);
        assert_eq!(guest.write(4000, 9), 0);
        // The guest goes without a flush: what it was told is written stays all the same.
        guest.guest.reset();
        check(&path);
        drop(guest);
        let disk = Qcow2File::new(file(&path), true, &mut nobody).unwrap();
        let mut guest = Guest {
            guest: TestGuest::new(
                on,
                Block::new(Box::new(disk), Engine::default(), Options::default()).unwrap(),
            ),
            ring: GuestRing::new(Arc::clone(&guest_memory()), 0, 16),
        };
        guest.ring = guest.guest.start_all();
        for (sector, byte) in [(5, 7), (6, 0), (8191, 8), (4000, 9)] {
            assert_eq!(guest.read(sector), byte, "sector {sector}");
        }
        assert_eq!(guest.write(5, 1), 1, "read-only");
    }
}

fn guest_memory() -> Arc<GuestMemory> {
    crate::virtio::testing::guest_memory()
}

#[test]
fn zeroed_ranges_are_zero_and_their_clusters_are_used_again() {
    let (_dir, path) = setup();
    create(&path, LEN, None);
    let disk = Qcow2File::new(file(&path), false, &mut nobody).unwrap();
    let mut guest = Guest::new(Transport::Mmio, disk);
    for sector in (0..2048).step_by(128) {
        assert_eq!(guest.write(sector, 3), 0);
    }
    assert_eq!(guest.zero(0, 1024, 1), 0);
    assert_eq!(guest.zero(1024, 1, 0), 0);
    assert_eq!(guest.request(FLUSH, 0, &[]), 0);
    let full = file(&path).metadata().unwrap().len();
    for sector in (4096..4096 + 1024).step_by(128) {
        assert_eq!(guest.write(sector, 4), 0);
    }
    assert_eq!(guest.request(FLUSH, 0, &[]), 0);
    assert_eq!(file(&path).metadata().unwrap().len(), full);
    for sector in (0..2048).step_by(128) {
        assert_eq!(guest.read(sector), if sector <= 1024 { 0 } else { 3 });
    }
    drop(guest);
    check(&path);
}

#[test]
fn refcount_tables_that_cannot_be_worked_with_are_refused() {
    let (_dir, path) = setup();
    let spoil = |at: u64, value: u64| {
        create(&path, LEN, None);
        let mut table = [0; 8];
        file(&path).read_exact_at(&mut table, 48).unwrap();
        let at = u64::from_be_bytes(table) + at;
        file(&path).write_all_at(&value.to_be_bytes(), at).unwrap();
        let error = Qcow2File::new(file(&path), false, &mut nobody).err();
        let Some(Qcow2Error::Damaged(error)) = error else {
            panic!("{error:?}");
        };
        error
    };
    assert!(matches!(spoil(0, 0), RefcountError::Empty));
    assert!(matches!(
        spoil(16, 0x1_0000),
        RefcountError::Hole { index: 1 }
    ));
    assert!(matches!(
        spoil(0, 0x7000_0000),
        RefcountError::Block {
            offset: 0x7000_0000
        }
    ));
    // Who only reads does not need it.
    assert!(Qcow2File::new(file(&path), true, &mut nobody).is_ok());
}

#[test]
fn feature_names_that_are_cut_off_are_refused() {
    let (_dir, path) = setup();
    create(&path, LEN, None);
    let mut at = [0; 4];
    file(&path).read_exact_at(&mut at, 100).unwrap();
    let at = u64::from(u32::from_be_bytes(at));
    let mut kind = [0; 4];
    file(&path).read_exact_at(&mut kind, at).unwrap();
    assert_eq!(u32::from_be_bytes(kind), 0x6803_f857, "the first extension");
    file(&path).write_all_at(&[49], at + 7).unwrap();
    let error = Qcow2File::new(file(&path), false, &mut nobody).err();
    assert!(matches!(error, Some(Qcow2Error::FeatureNames { .. })));
}

#[test]
fn backing_files_are_opened_only_where_permitted() {
    let (dir, path) = setup();
    let (middle, base) = (dir.path().join("middle"), dir.path().join("base"));
    file(&base).write_all_at(&[4; 2 << 20], 0).unwrap();
    create(&middle, LEN, Some(("base", "raw")));
    create(&path, LEN, Some(("middle", "qcow2")));
    let refused = Qcow2File::new(file(&path), false, &mut nobody)
        .err()
        .unwrap();
    assert!(
        matches!(&refused, Qcow2Error::BackingNotPermitted { name } if name == "middle"),
        "{refused}"
    );

    let mut asked = Vec::new();
    let mut open = |name: &str| {
        asked.push(name.to_owned());
        Ok(File::open(dir.path().join(name)).unwrap())
    };
    let disk = Qcow2File::new(file(&path), false, &mut open).unwrap();
    assert_eq!(asked, ["middle", "base"]);
    let mut guest = Guest::new(Transport::Mmio, disk);
    assert_eq!((guest.read(100), guest.read(5000)), (4, 0));
    assert_eq!(guest.write(100, 5), 0);
    assert_eq!((guest.read(100), guest.read(101)), (5, 4));
    drop(guest);
    let mut below = [0; 512];
    file(&base).read_exact_at(&mut below, 100 * 512).unwrap();
    assert_eq!(below, [4; 512]);
    check(&path);
}

#[test]
fn backing_format_is_never_guessed_and_chains_end() {
    let (dir, path) = setup();
    create(&path, LEN, Some(("base", "vmdk")));
    let mut open = |name: &str| Ok(File::open(dir.path().join(name)).unwrap());
    let error = Qcow2File::new(file(&path), false, &mut open).err().unwrap();
    assert!(
        matches!(&error, Qcow2Error::BackingFormat { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("\"vmdk\""), "{error}");

    // An image that is its own backing file.
    let (_dir, path) = setup();
    create(&path, LEN, Some(("disk.qcow2", "qcow2")));
    let mut open = |_: &str| Ok(File::open(&path).unwrap());
    let error = Qcow2File::new(File::open(&path).unwrap(), true, &mut open)
        .err()
        .unwrap();
    assert!(matches!(error, Qcow2Error::ChainTooLong), "{error}");
}

#[test]
fn files_that_are_no_qcow2_disks_are_refused() {
    let (_dir, path) = setup();
    let refused = |what: &str| {
        let error = Qcow2File::new(file(&path), false, &mut nobody).err();
        error.unwrap_or_else(|| panic!("{what} was taken"))
    };
    assert!(matches!(refused("an empty file"), Qcow2Error::Image(_)));
    file(&path).write_all_at(&[0; 4096], 0).unwrap();
    assert!(matches!(refused("a raw image"), Qcow2Error::Image(_)));
    for (len, what) in [
        (0, "no disk"),
        (511, "part of a sector"),
        (1025, "a sector too much"),
    ] {
        create(&path, 0, None);
        file(&path)
            .write_all_at(&u64::to_be_bytes(len), 24)
            .unwrap();
        assert!(matches!(refused(what), Qcow2Error::NotWholeSectors { len: l } if l == len));
    }
    create(&path, LEN, None);
    // Incompatible feature 2: an external data file; 0: dirty; 1: corrupt; 4: extended L2 entries; 40: unknown.
    for bits in [1_u64 << 2, 1, 1 << 1, 1 << 4, 1 << 40] {
        file(&path).write_all_at(&bits.to_be_bytes(), 72).unwrap();
        refused(&format!("an image with features {bits:#x}"));
    }
}

#[test]
fn writer_shares_an_image_with_nobody() {
    let (_dir, path) = setup();
    create(&path, LEN, None);
    let writer = Qcow2File::new(file(&path), false, &mut nobody).unwrap();
    for read_only in [true, false] {
        let error = Qcow2File::new(file(&path), read_only, &mut nobody)
            .err()
            .unwrap();
        assert!(
            matches!(
                error,
                Qcow2Error::File(RawFileError::Lock(LockError::InUse))
            ),
            "{error}"
        );
    }
    drop(writer);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is in the first clusters of an image, opening and using it ends, with or without an error.
    #[test]
    fn hostile_images_are_survived(
        header in proptest::collection::vec((0..112_u64, any::<u8>()), 0..6),
        tables in proptest::collection::vec((0..0x5_0000_u64, any::<u8>()), 0..12),
    ) {
        let (_dir, path) = setup();
        create(&path, LEN, None);
        {
            // So that there are tables to spoil.
            let disk = Qcow2File::new(file(&path), false, &mut nobody).unwrap();
            let mut guest = Guest::new(Transport::Mmio, disk);
            guest.write(5, 7);
            guest.write(7000, 7);
        }
        let image = file(&path);
        let end = image.metadata().unwrap().len();
        for (at, byte) in header.into_iter().chain(tables) {
            if at < end {
                image.write_all_at(&[byte], at).unwrap();
            }
        }
        drop(image);
        if let Ok(disk) = Qcow2File::new(file(&path), false, &mut nobody) {
            let mut guest = Guest::new(Transport::Mmio, disk);
            for sector in [0, 5, 6, 7000, 8191] {
                let buffer = guest.ring.buffer(512, true);
                guest.request(IN, sector, &[buffer]);
                guest.write(sector, 9);
            }
            guest.zero(0, 300, 1);
            guest.request(FLUSH, 0, &[]);
        }
    }

    /// The image agrees with a plain array, and QEMU's tool with the image.
    #[test]
    fn image_is_an_array_of_sectors(
        requests in proptest::collection::vec((0..3_u8, 0..8192_u64, 1..250_u32, 1..255_u8), 1..30),
    ) {
        let (_dir, path) = setup();
        create(&path, LEN, None);
        let disk = Qcow2File::new(file(&path), false, &mut nobody).unwrap();
        let mut guest = Guest::new(Transport::Mmio, disk);
        let mut model = vec![0_u8; 8192];
        for (kind, sector, sectors, byte) in requests {
            let at = usize::try_from(sector).unwrap();
            match kind {
                0 => {
                    prop_assert_eq!(guest.write(sector, byte), 0);
                    model[at] = byte;
                }
                1 => prop_assert_eq!(guest.read(sector), model[at]),
                _ => {
                    let sectors = sectors.min(8192 - u32::try_from(at).unwrap());
                    prop_assert_eq!(guest.zero(sector, sectors, u32::from(byte % 2)), 0);
                    model[at..at + sectors as usize].fill(0);
                }
            }
        }
        for (sector, &byte) in (0..).zip(&model).step_by(97) {
            prop_assert_eq!(guest.read(sector), byte);
        }
        drop(guest);
        check(&path);
    }
}
