use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::memory::{self, GuestSlice, RegionSpec};
use crate::virtio::block::RawFile;
use crate::virtio::queue::RING_FEATURES;
use crate::virtio::state::NEEDS_RESET;
use crate::virtio::testing::{Buffer, GuestRing, LOW_LEN, TestGuest, Transport};

const SECTORS: u64 = 64;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// A disk image in which each byte says where it is.
fn image() -> File {
    let mut file = tempfile::tempfile().unwrap();
    let data: Vec<u8> = (0..SECTORS * SECTOR_SIZE).map(pattern).collect();
    file.write_all(&data).unwrap();
    file
}

fn pattern(offset: u64) -> u8 {
    (offset / SECTOR_SIZE * 7 + offset % 251).to_le_bytes()[0]
}

struct Fixture {
    guest: TestGuest,
    ring: GuestRing,
    image: File,
}

impl Fixture {
    fn new() -> Self {
        Self::with(false, RING_FEATURES | 1 << VIRTIO_BLK_F_FLUSH)
    }

    fn with(read_only: bool, features: u64) -> Self {
        let image = image();
        let disk = RawFile::new(image.try_clone().unwrap(), read_only).unwrap();
        Self::over(image, Box::new(disk), features)
    }

    fn over(image: File, backend: Box<dyn Backend>, features: u64) -> Self {
        let mut guest = TestGuest::new(
            Transport::Mmio,
            Block::new(backend, "serial-0123456789-cut"),
        );
        let ring = guest.start(features, 256);
        Self { guest, ring, image }
    }

    fn header(&mut self, kind: u32, sector: u64) -> Buffer {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.ring.data(&header)
    }

    /// Offers a request of `data` and returns where its status byte will be.
    fn add(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> Buffer {
        let header = self.header(kind, sector);
        let status = self.ring.data(&[0xff]);
        let status = Buffer {
            writable: true,
            ..status
        };
        let buffers: Vec<_> = [header]
            .iter()
            .chain(data)
            .chain([&status])
            .copied()
            .collect();
        self.ring.add(&buffers);
        status
    }

    /// Has a request of `data` served and returns its status and length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let status = self.add(kind, sector, data);
        self.guest.notify(0);
        let (_, len) = self.ring.used().expect("the request comes back");
        (self.ring.contents(status)[0], len)
    }

    fn needs_reset(&mut self) -> bool {
        self.guest.status() & NEEDS_RESET != 0
    }
}

#[test]
fn request_longer_than_any_driver_asks_for_is_refused() {
    let image = tempfile::tempfile().unwrap();
    image.set_len(u64::from(MAX_REQUEST_BYTES) * 2).unwrap();
    let disk = RawFile::new(image.try_clone().unwrap(), false).unwrap();
    let mut f = Fixture::over(image, Box::new(disk), RING_FEATURES);
    // The same pages over and over: no memory of the guest's is needed for a long request.
    let piece = f.ring.buffer(0x4_2000, true);
    let most = (MAX_REQUEST_BYTES / 0x4_2000) as usize;
    assert_eq!(f.request(IN, 0, &vec![piece; most]).0, OK);
    assert_eq!(f.request(IN, 0, &vec![piece; most + 1]).0, IO_ERROR);
    assert!(!f.needs_reset());
}

#[test]
fn sectors_are_read() {
    let mut f = Fixture::new();
    let parts = [
        f.ring.buffer(512, true),
        f.ring.buffer(1000, true),
        f.ring.buffer(24, true),
    ];
    assert_eq!(f.request(IN, 5, &parts), (OK, 1537));
    let got: Vec<u8> = parts
        .iter()
        .flat_map(|&part| f.ring.contents(part))
        .collect();
    let expected: Vec<u8> = (5 * 512..8 * 512).map(pattern).collect();
    assert_eq!(got, expected);
}

#[test]
fn sectors_are_written_and_nothing_beside_them() {
    let mut f = Fixture::new();
    let parts = [
        f.ring.data(&[1; 100]),
        f.ring.data(&[2; 412]),
        f.ring.data(&[3; 512]),
    ];
    assert_eq!(f.request(OUT, 62, &parts), (OK, 1));
    let mut disk = Vec::new();
    f.image.seek(SeekFrom::Start(0)).unwrap();
    f.image.read_to_end(&mut disk).unwrap();
    assert_eq!(disk.len() as u64, SECTORS * SECTOR_SIZE);
    let written = disk.split_off(62 * 512);
    assert_eq!(
        written,
        [[1; 100].as_slice(), &[2; 412], &[3; 512]].concat()
    );
    assert!((0..).zip(disk).all(|(at, byte)| byte == pattern(at)));
}

#[test]
fn flush_and_serial_number_are_answered() {
    let mut f = Fixture::new();
    assert_eq!(f.request(FLUSH, 0, &[]), (OK, 1));
    let id = f.ring.buffer(20, true);
    assert_eq!(f.request(GET_ID, 0, &[id]), (OK, 21));
    assert_eq!(f.ring.contents(id), b"serial-0123456789-cu");
    let (short, long) = (f.ring.buffer(6, true), f.ring.buffer(30, true));
    assert_eq!(f.request(GET_ID, 0, &[short]), (OK, 7));
    assert_eq!(f.ring.contents(short), b"serial");
    assert_eq!(f.request(GET_ID, 0, &[long]), (OK, 20));
}

#[test]
fn requests_beyond_the_end_or_of_part_sectors_fail() {
    let mut f = Fixture::new();
    let cases = [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (0, 511),
        (0, 513),
        (u64::MAX, 512),
        // In bytes, these wrap to zero.
        (1 << 55, 512),
        ((1 << 55) - 1, 1024),
    ];
    for (sector, len) in cases {
        let buffer = f.ring.buffer(len, true);
        assert_eq!(
            f.request(IN, sector, &[buffer]),
            (IO_ERROR, 0),
            "{len} from {sector}"
        );
        let data = vec![0xee; len as usize];
        let buffer = f.ring.data(&data);
        assert_eq!(
            f.request(OUT, sector, &[buffer]),
            (IO_ERROR, 1),
            "{len} to {sector}"
        );
    }
    assert_eq!(f.image.metadata().unwrap().len(), SECTORS * SECTOR_SIZE);
    let mut last = [0; 512];
    f.image.read_exact_at(&mut last, 63 * 512).unwrap();
    assert_eq!(last[0], pattern(63 * 512));
    assert!(!f.needs_reset());
}

#[test]
fn unknown_requests_are_unsupported() {
    let mut f = Fixture::new();
    for kind in [2, 3, 5, 11, 13, 0x8000_0000, u32::MAX] {
        assert_eq!(f.request(kind, 0, &[]), (UNSUPPORTED, 1), "type {kind}");
    }
}

#[test]
fn read_only_disk_is_announced_and_cannot_be_written() {
    let mut f = Fixture::with(true, RING_FEATURES | 1 << VIRTIO_BLK_F_RO);
    let data = f.ring.data(&[9; 512]);
    assert_eq!(f.request(OUT, 0, &[data]), (IO_ERROR, 1));
    let buffer = f.ring.buffer(512, true);
    assert_eq!(f.request(IN, 0, &[buffer]), (OK, 513));
    assert_eq!(f.ring.contents(buffer)[3], pattern(3));
    assert_ne!(f.guest.offered() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(Fixture::new().guest.offered() & 1 << VIRTIO_BLK_F_RO, 0);
}

#[test]
fn header_and_status_may_be_cut_into_any_buffers() {
    let mut f = Fixture::new();
    let header = f.header(IN, 9);
    let piece = |from: u64, len| Buffer {
        address: header.address + from,
        len,
        writable: false,
    };
    // The status byte shares its buffer with the end of the data.
    let data = [f.ring.buffer(1, true), f.ring.buffer(512, true)];
    f.ring
        .add(&[piece(0, 3), piece(3, 12), piece(15, 1), data[0], data[1]]);
    f.guest.notify(0);
    assert_eq!(f.ring.used().map(|(_, len)| len), Some(513));
    assert_eq!(f.ring.contents(data[0])[0], pattern(9 * 512));
    let rest = f.ring.contents(data[1]);
    assert_eq!((rest[510], rest[511]), (pattern(10 * 512 - 1), OK));
}

#[test]
fn chain_that_is_no_request_needs_a_reset() {
    let no_status = |f: &mut Fixture| {
        let header = f.header(FLUSH, 0);
        f.ring.add(&[header]);
    };
    let short_header = |f: &mut Fixture| {
        let (header, status) = (f.ring.data(&[0; 15]), f.ring.buffer(1, true));
        f.ring.add(&[header, status]);
    };
    let no_header = |f: &mut Fixture| {
        let status = f.ring.buffer(512, true);
        f.ring.add(&[status]);
    };
    for broken in [no_status, short_header, no_header] {
        let mut f = Fixture::new();
        broken(&mut f);
        f.guest.notify(0);
        assert!(f.needs_reset());
        assert_eq!((f.ring.used(), f.guest.interrupts()), (None, 1));
        // Its driver may start over.
        f.ring = f.guest.start_all();
        assert_eq!(f.request(FLUSH, 0, &[]), (OK, 1));
    }
}

#[test]
fn batch_of_32_costs_one_wake_and_one_interrupt() {
    let mut f = Fixture::new();
    let buffers: Vec<_> = (0..32).map(|_| f.ring.buffer(4096, true)).collect();
    for (sector, &buffer) in (0..).zip(&buffers) {
        f.add(IN, sector, &[buffer]);
    }
    f.guest.ring(0);
    assert_eq!((f.guest.run(), f.guest.interrupts()), (1, 1));
    for (sector, &buffer) in (0_u64..).zip(&buffers) {
        assert_eq!(f.ring.used().map(|(_, len)| len), Some(4097));
        assert_eq!(f.ring.contents(buffer)[0], pattern(sector * 512));
    }
}

#[test]
fn image_cut_short_under_the_guest_is_an_error_to_it() {
    let mut f = Fixture::new();
    f.image.set_len(512).unwrap();
    let buffer = f.ring.buffer(1024, true);
    assert_eq!(f.request(IN, 0, &[buffer]), (IO_ERROR, 0));
    assert_eq!(f.request(IN, 8, &[buffer]), (IO_ERROR, 0));
    assert!(!f.needs_reset());
}

#[test]
fn image_that_cannot_be_written_is_an_error_to_the_guest() {
    let mut path = tempfile::NamedTempFile::new().unwrap();
    path.write_all(&[0; 1024]).unwrap();
    let file = File::open(path.path()).unwrap();
    let disk = RawFile::new(file.try_clone().unwrap(), false).unwrap();
    let mut f = Fixture::over(
        file,
        Box::new(disk),
        RING_FEATURES | 1 << VIRTIO_BLK_F_FLUSH,
    );
    let data = f.ring.data(&[9; 512]);
    assert_eq!(f.request(OUT, 0, &[data]), (IO_ERROR, 1));
}

#[test]
fn buffers_at_the_edge_of_memory_are_filled() {
    let mut f = Fixture::new();
    let edge = Buffer {
        address: LOW_LEN - 512,
        len: 512,
        writable: true,
    };
    assert_eq!(f.request(IN, 1, &[edge]), (OK, 513));
    assert_eq!(f.ring.contents(edge)[511], pattern(1023));
}

#[test]
fn what_the_disk_fills_is_marked_dirty() {
    let base = GuestAddress(0);
    let spec = RegionSpec {
        base,
        len: 0x8_0000,
        file: None,
    };
    let memory = Arc::new(memory::map(vec![spec], true).unwrap());
    let disk = RawFile::new(image(), false).unwrap();
    let mut guest = TestGuest::with_memory(
        Transport::Mmio,
        Block::new(Box::new(disk), ""),
        memory.clone(),
    );
    let ring = guest.start_all();
    let mut f = Fixture {
        guest,
        ring,
        image: image(),
    };
    let region = memory.find_region(base).unwrap();
    let target = Buffer {
        address: 0x6_0000,
        len: 8192,
        writable: true,
    };
    let dirty = |address| region.bitmap().dirty_at(address);
    assert!(!dirty(0x6_0000));
    assert_eq!(f.request(IN, 0, &[target]), (OK, 8193));
    assert!(dirty(0x6_0000) && dirty(0x6_1fff));
    assert!(!dirty(0x5_f000) && !dirty(0x6_2000));
}

/// Counts how often the disk below is made durable.
struct FlushCounter {
    disk: RawFile,
    flushes: Arc<AtomicU32>,
}

impl Backend for FlushCounter {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn read_at(&mut self, offset: u64, buffers: &[GuestSlice<'_>]) -> io::Result<()> {
        self.disk.read_at(offset, buffers)
    }

    fn write_at(&mut self, offset: u64, buffers: &[GuestSlice<'_>]) -> io::Result<()> {
        self.disk.write_at(offset, buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.disk.flush()
    }
}

#[test]
fn driver_without_flush_gets_every_write_durable() {
    for (features, after_write, after_flush) in [
        (RING_FEATURES, 1, 2),
        (RING_FEATURES | 1 << VIRTIO_BLK_F_FLUSH, 0, 1),
    ] {
        let flushes = Arc::new(AtomicU32::new(0));
        let disk = RawFile::new(image(), false).unwrap();
        let counter = FlushCounter {
            disk,
            flushes: flushes.clone(),
        };
        let mut f = Fixture::over(image(), Box::new(counter), features);
        let data = f.ring.data(&[9; 512]);
        assert_eq!(f.request(OUT, 0, &[data]), (OK, 1));
        assert_eq!(flushes.load(Ordering::SeqCst), after_write);
        assert_eq!(f.request(FLUSH, 0, &[]), (OK, 1));
        assert_eq!(flushes.load(Ordering::SeqCst), after_flush);
    }
}

#[test]
fn configuration_says_what_the_disk_is() {
    let mut f = Fixture::new();
    let capacity = f.guest.config_u64(0);
    assert_eq!(capacity, SECTORS);
    assert_eq!(f.guest.config_u32(12), SEG_MAX);
    assert_eq!(f.guest.config_u32(20), 512);
    f.guest.write_config(0, &[1; 8]);
    assert_eq!(f.guest.config_u32(0), 64, "the configuration is read-only");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The disk agrees with a plain array after any sequence of requests, good and bad.
    #[test]
    fn disk_is_an_array_of_sectors(
        requests in proptest::collection::vec(
            (any::<bool>(), 0..SECTORS + 2, 1..5_u32, 1..511_u32, any::<u8>(), any::<bool>()),
            1..24,
        ),
    ) {
        let mut f = Fixture::new();
        let mut model: Vec<u8> = (0..SECTORS * SECTOR_SIZE).map(pattern).collect();
        for (write, sector, sectors, cut, byte, uneven) in requests {
            let len = sectors * 512 + u32::from(uneven);
            let from = usize::try_from(sector * SECTOR_SIZE).unwrap();
            let range = from..from + len as usize;
            let good = !uneven && range.end <= model.len();
            if write {
                let data = [f.ring.data(&vec![byte; cut as usize]),
                    f.ring.data(&vec![!byte; (len - cut) as usize])];
                let (status, _) = f.request(OUT, sector, &data);
                prop_assert_eq!(status == OK, good);
                if good {
                    let (a, b) = model[range].split_at_mut(cut as usize);
                    a.fill(byte);
                    b.fill(!byte);
                }
            } else {
                let parts = [f.ring.buffer(cut, true), f.ring.buffer(len - cut, true)];
                let (status, _) = f.request(IN, sector, &parts);
                prop_assert_eq!(status == OK, good);
                if good {
                    let got = [f.ring.contents(parts[0]), f.ring.contents(parts[1])].concat();
                    prop_assert_eq!(&got[..], &model[range]);
                }
            }
        }
        let mut disk = vec![0; model.len()];
        f.image.read_exact_at(&mut disk, 0).unwrap();
        prop_assert_eq!(disk, model);
    }
}
