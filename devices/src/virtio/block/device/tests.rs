mod in_flight;
mod nbd;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::config::{MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS, SEG_MAX};
use super::*;
use crate::memory::{self, RegionSpec};
use crate::rate_limiter::{BucketLimit, RateLimits};
use crate::virtio::block::engine::Preference;
use crate::virtio::block::request::MAX_REQUEST_BYTES;
use crate::virtio::block::{RawFile, SECTOR_SIZE};
use crate::virtio::queue::RING_FEATURES;
use crate::virtio::state::NEEDS_RESET;
use crate::virtio::testing::{Buffer, GuestRing, LOW_LEN, TestGuest, Transport};

const SECTORS: u64 = 64;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Where a test runs: on which transport, with which engine.
#[derive(Clone, Copy, Debug)]
struct On {
    transport: Transport,
    preference: Preference,
    /// Every read and write goes through the engine's queue.
    uncached: bool,
}

/// Everything that has to hold holds on all of these.
fn everywhere() -> impl Iterator<Item = On> {
    let ways = [
        (Preference::Synchronous, false),
        (Preference::Asynchronous, false),
        (Preference::Asynchronous, true),
    ];
    Transport::ALL.iter().flat_map(move |&transport| {
        ways.map(|(preference, uncached)| On {
            transport,
            preference,
            uncached,
        })
    })
}

impl On {
    fn engine(self) -> Engine {
        Engine::new(self.preference)
    }

    fn guest(
        self,
        backend: Box<dyn Backend>,
        queues: u16,
        limiter: Option<RateLimiter>,
    ) -> TestGuest {
        TestGuest::new(self.transport, self.block(backend, queues, limiter))
    }

    fn block(self, backend: Box<dyn Backend>, queues: u16, limiter: Option<RateLimiter>) -> Block {
        let options = Options {
            serial: "serial-0123456789-cut".into(),
            queues,
            limiter,
        };
        let mut block = Block::new(backend, self.engine(), options).unwrap();
        let asynchronous = self.preference == Preference::Asynchronous;
        assert_eq!(
            block.disk.engine.is_asynchronous(),
            asynchronous,
            "this host has io_uring"
        );
        if self.uncached {
            block.disk.engine.expect_nothing_cached();
        }
        block
    }
}

/// A disk image in which each byte says where it is.
fn image() -> File {
    let mut file = tempfile::tempfile().unwrap();
    let data: Vec<u8> = (0..SECTORS * SECTOR_SIZE).map(pattern).collect();
    file.write_all(&data).unwrap();
    file
}

fn raw(image: &File, read_only: bool) -> Box<RawFile> {
    Box::new(RawFile::new(image.try_clone().unwrap(), read_only).unwrap())
}

fn pattern(offset: u64) -> u8 {
    (offset / SECTOR_SIZE * 7 + offset % 251).to_le_bytes()[0]
}

const ALL_FEATURES: u64 = RING_FEATURES
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_DISCARD
    | 1 << VIRTIO_BLK_F_WRITE_ZEROES;

struct Fixture {
    guest: TestGuest,
    ring: GuestRing,
    image: File,
}

impl Fixture {
    fn new(on: On) -> Self {
        Self::with(on, false, ALL_FEATURES)
    }

    fn with(on: On, read_only: bool, features: u64) -> Self {
        let image = image();
        let disk = raw(&image, read_only);
        Self::over(on, image, disk, features)
    }

    fn over(on: On, image: File, backend: Box<dyn Backend>, features: u64) -> Self {
        let mut guest = on.guest(backend, 1, None);
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

    /// Lets the device work until a request comes back.
    fn used(&mut self) -> (u16, u32) {
        for _ in 0..5000 {
            if let Some(used) = self.ring.used() {
                return used;
            }
            self.guest.run();
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the request does not come back");
    }

    /// Has a request of `data` served and returns its status and length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let status = self.add(kind, sector, data);
        self.guest.notify(0);
        let (_, len) = self.used();
        (self.ring.contents(status)[0], len)
    }

    /// Has a range of sectors discarded or zeroed.
    fn deallocate(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut range = [0; 16];
        range[..8].copy_from_slice(&sector.to_le_bytes());
        range[8..12].copy_from_slice(&sectors.to_le_bytes());
        range[12..].copy_from_slice(&flags.to_le_bytes());
        let range = self.ring.data(&range);
        self.request(kind, 0, &[range]).0
    }

    fn contents(&self) -> Vec<u8> {
        let mut disk = vec![0; usize::try_from(SECTORS * SECTOR_SIZE).unwrap()];
        self.image.read_exact_at(&mut disk, 0).unwrap();
        disk
    }

    fn needs_reset(&mut self) -> bool {
        self.guest.status() & NEEDS_RESET != 0
    }
}

#[test]
fn request_longer_than_any_driver_asks_for_is_refused() {
    for on in everywhere() {
        let image = tempfile::tempfile().unwrap();
        image.set_len(u64::from(MAX_REQUEST_BYTES) * 2).unwrap();
        let disk = raw(&image, false);
        let mut f = Fixture::over(on, image, disk, RING_FEATURES);
        // The same pages over and over: no memory of the guest's is needed for a long request.
        let piece = f.ring.buffer(0x4_2000, true);
        let most = (MAX_REQUEST_BYTES / 0x4_2000) as usize;
        assert_eq!(f.request(IN, 0, &vec![piece; most]).0, OK);
        assert_eq!(f.request(IN, 0, &vec![piece; most + 1]).0, IO_ERROR);
        assert!(!f.needs_reset());
    }
}

#[test]
fn sectors_are_read() {
    for on in everywhere() {
        let mut f = Fixture::new(on);
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
}

#[test]
fn sectors_are_written_and_nothing_beside_them() {
    for on in everywhere() {
        let mut f = Fixture::new(on);
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
}

#[test]
fn requests_are_counted_by_what_became_of_them() {
    for on in everywhere() {
        let image = image();
        let block = on.block(raw(&image, false), 1, None);
        let metrics = block.disk.metrics.clone();
        let mut guest = TestGuest::new(on.transport, block);
        let ring = guest.start(ALL_FEATURES, 256);
        let mut f = Fixture { guest, ring, image };
        let room = f.ring.buffer(1024, true);
        let data = f.ring.data(&[1; 512]);
        assert_eq!(f.request(IN, 5, &[room]).0, OK);
        assert_eq!(f.request(IN, 6, &[room]).0, OK);
        assert_eq!(f.request(OUT, 5, &[data]).0, OK);
        assert_eq!(f.request(FLUSH, 0, &[]).0, OK);
        assert_eq!(f.request(IN, SECTORS, &[room]).0, IO_ERROR);
        let counts = [
            &metrics.read_count,
            &metrics.read_bytes,
            &metrics.write_count,
            &metrics.write_bytes,
            &metrics.flush_count,
            &metrics.invalid_reqs_count,
            &metrics.execute_fails,
        ]
        .map(crate::metrics::Counter::get);
        assert_eq!(counts, [2, 2048, 1, 512, 1, 1, 0], "{on:?}");
    }
}

#[test]
fn flush_and_serial_number_are_answered() {
    for on in everywhere() {
        let mut f = Fixture::new(on);
        assert_eq!(f.request(FLUSH, 0, &[]), (OK, 1));
        let id = f.ring.buffer(20, true);
        assert_eq!(f.request(GET_ID, 0, &[id]), (OK, 21));
        assert_eq!(f.ring.contents(id), b"serial-0123456789-cu");
        let (short, long) = (f.ring.buffer(6, true), f.ring.buffer(30, true));
        assert_eq!(f.request(GET_ID, 0, &[short]), (OK, 7));
        assert_eq!(f.ring.contents(short), b"serial");
        assert_eq!(f.request(GET_ID, 0, &[long]), (OK, 20));
    }
}

#[test]
fn requests_beyond_the_end_or_of_part_sectors_fail() {
    for on in everywhere() {
        let mut f = Fixture::new(on);
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
}

#[test]
fn unknown_requests_are_unsupported() {
    for on in everywhere() {
        let mut f = Fixture::new(on);
        for kind in [2, 3, 5, 12, 14, 0x8000_0000, u32::MAX] {
            assert_eq!(f.request(kind, 0, &[]), (UNSUPPORTED, 1), "type {kind}");
        }
    }
}

#[test]
fn read_only_disk_is_announced_and_cannot_be_written() {
    for on in everywhere() {
        let mut f = Fixture::with(on, true, RING_FEATURES | 1 << VIRTIO_BLK_F_RO);
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(f.deallocate(kind, 0, 1, 0), IO_ERROR);
        }
        assert_eq!(f.contents(), contents_of(&image()));
        let data = f.ring.data(&[9; 512]);
        assert_eq!(f.request(OUT, 0, &[data]), (IO_ERROR, 1));
        let buffer = f.ring.buffer(512, true);
        assert_eq!(f.request(IN, 0, &[buffer]), (OK, 513));
        assert_eq!(f.ring.contents(buffer)[3], pattern(3));
        assert_ne!(f.guest.offered() & 1 << VIRTIO_BLK_F_RO, 0);
        assert_eq!(Fixture::new(on).guest.offered() & 1 << VIRTIO_BLK_F_RO, 0);
    }
}

#[test]
fn header_and_status_may_be_cut_into_any_buffers() {
    for on in everywhere() {
        let mut f = Fixture::new(on);
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
}

#[test]
fn chain_that_is_no_request_needs_a_reset() {
    for on in everywhere() {
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
            let mut f = Fixture::new(on);
            broken(&mut f);
            f.guest.notify(0);
            assert!(f.needs_reset());
            assert_eq!((f.ring.used(), f.guest.interrupts()), (None, 1));
            // Its driver may start over.
            f.ring = f.guest.start_all();
            assert_eq!(f.request(FLUSH, 0, &[]), (OK, 1));
        }
    }
}

#[test]
fn batch_of_32_costs_one_wake_and_one_interrupt() {
    for on in everywhere() {
        let mut f = Fixture::new(on);
        let buffers: Vec<_> = (0..32).map(|_| f.ring.buffer(4096, true)).collect();
        for (sector, &buffer) in (0..).zip(&buffers) {
            f.add(IN, sector, &[buffer]);
        }
        f.guest.ring(0);
        let (mut wakes, mut interrupts) = (f.guest.run(), f.guest.interrupts());
        while f.ring.pending() < 32 {
            wakes += f.guest.run();
            interrupts += f.guest.interrupts();
        }
        // What is not in the page cache comes back as it comes.
        let most = if on.uncached { 32 } else { 1 };
        assert!(
            wakes <= most && interrupts <= u64::from(most),
            "{wakes}, {interrupts}, {on:?}"
        );
        for (sector, &buffer) in (0_u64..).zip(&buffers) {
            assert_eq!(f.ring.used().map(|(_, len)| len), Some(4097));
            assert_eq!(f.ring.contents(buffer)[0], pattern(sector * 512));
        }
    }
}

#[test]
fn image_cut_short_under_the_guest_is_an_error_to_it() {
    for on in everywhere() {
        let mut f = Fixture::new(on);
        f.image.set_len(512).unwrap();
        let buffer = f.ring.buffer(1024, true);
        assert_eq!(f.request(IN, 0, &[buffer]), (IO_ERROR, 0));
        assert_eq!(f.request(IN, 8, &[buffer]), (IO_ERROR, 0));
        assert!(!f.needs_reset());
    }
}

#[test]
fn image_that_cannot_be_written_is_an_error_to_the_guest() {
    for on in everywhere() {
        let mut path = tempfile::NamedTempFile::new().unwrap();
        path.write_all(&[0; 1024]).unwrap();
        let file = File::open(path.path()).unwrap();
        let disk = raw(&file, false);
        let mut f = Fixture::over(on, file, disk, ALL_FEATURES);
        let data = f.ring.data(&[9; 512]);
        assert_eq!(f.request(OUT, 0, &[data]), (IO_ERROR, 1));
    }
}

#[test]
fn buffers_at_the_edge_of_memory_are_filled() {
    for on in everywhere() {
        let mut f = Fixture::new(on);
        let edge = Buffer {
            address: LOW_LEN - 512,
            len: 512,
            writable: true,
        };
        assert_eq!(f.request(IN, 1, &[edge]), (OK, 513));
        assert_eq!(f.ring.contents(edge)[511], pattern(1023));
    }
}

#[test]
fn what_the_disk_fills_is_marked_dirty() {
    for on in everywhere() {
        let base = GuestAddress(0);
        let spec = RegionSpec {
            base,
            len: 0x8_0000,
            file: None,
        };
        let memory = Arc::new(memory::map(vec![spec], true).unwrap());
        let block = on.block(raw(&image(), false), 1, None);
        let mut guest = TestGuest::with_memory(on.transport, block, memory.clone());
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

    fn attach(&mut self, engine: &mut Engine) -> io::Result<()> {
        self.disk.attach(engine)
    }

    fn start(&mut self, engine: &mut Engine, token: u16, job: &Job<'_>) -> Start {
        if matches!(job.action, Action::Flush | Action::Write { durable: true }) {
            self.flushes.fetch_add(1, Ordering::SeqCst);
        }
        self.disk.start(engine, token, job)
    }
}

#[test]
fn driver_without_flush_gets_every_write_durable() {
    for on in everywhere() {
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
            let mut f = Fixture::over(on, image(), Box::new(counter), features);
            let data = f.ring.data(&[9; 512]);
            assert_eq!(f.request(OUT, 0, &[data]), (OK, 1));
            assert_eq!(flushes.load(Ordering::SeqCst), after_write);
            assert_eq!(f.request(FLUSH, 0, &[]), (OK, 1));
            assert_eq!(flushes.load(Ordering::SeqCst), after_flush);
        }
    }
}

#[test]
fn configuration_says_what_the_disk_is() {
    for on in everywhere() {
        let mut f = Fixture::new(on);
        assert_eq!(f.guest.config_u64(0), SECTORS);
        assert_eq!(f.guest.config_u32(12), SEG_MAX);
        assert_eq!(f.guest.config_u32(20), 512);
        assert_eq!(f.guest.config_u16(34), 1);
        assert_eq!(f.guest.config_u32(36), MAX_DISCARD_SECTORS);
        assert_eq!((f.guest.config_u32(40), f.guest.config_u32(44)), (1, 8));
        assert_eq!(f.guest.config_u32(48), MAX_WRITE_ZEROES_SECTORS);
        assert_eq!((f.guest.config_u32(52), f.guest.config_u8(56)), (1, 1));
        f.guest.write_config(0, &[1; 8]);
        assert_eq!(f.guest.config_u64(0), 64, "the configuration is read-only");
    }
}

#[test]
fn discarded_and_zeroed_sectors_are_zero_and_free() {
    for on in everywhere() {
        let image = tempfile::tempfile().unwrap();
        let len = 1 << 20;
        image.write_all_at(&vec![7; len], 0).unwrap();
        image.sync_all().unwrap();
        let full = image.metadata().unwrap().blocks();
        let disk = raw(&image, false);
        let mut f = Fixture::over(on, image, disk, ALL_FEATURES);
        assert_eq!(f.deallocate(DISCARD, 8, 1024, 0), OK);
        assert_eq!(f.deallocate(WRITE_ZEROES, 1040, 5, 0), OK);
        assert_eq!(f.deallocate(WRITE_ZEROES, 1056, 512, 1), OK);
        assert_eq!(f.request(FLUSH, 0, &[]).0, OK);
        let mut disk = vec![0; len];
        f.image.read_exact_at(&mut disk, 0).unwrap();
        let zero = |sector: usize| {
            disk[sector * 512..(sector + 1) * 512]
                .iter()
                .all(|&byte| byte == 0)
        };
        for sector in 0..len / 512 {
            let expected = [8..1032, 1040..1045, 1056..1568]
                .iter()
                .any(|range| range.contains(&sector));
            assert_eq!(zero(sector), expected, "sector {sector}, {on:?}");
        }
        let blocks = f.image.metadata().unwrap().blocks();
        assert!(blocks + 1024 + 400 < full, "{blocks} of {full} are left");
        assert_eq!(f.image.metadata().unwrap().len(), len as u64);
    }
}

#[test]
fn ranges_to_discard_or_zero_are_checked() {
    for on in everywhere() {
        let mut f = Fixture::new(on);
        for (kind, known, most) in [
            (DISCARD, 0, MAX_DISCARD_SECTORS),
            (WRITE_ZEROES, 1, MAX_WRITE_ZEROES_SECTORS),
        ] {
            for (sector, sectors) in [
                (SECTORS, 1),
                (SECTORS - 1, 2),
                (0, most + 1),
                (0, u32::MAX),
                (u64::MAX, 1),
                (u64::MAX / 512, u32::MAX),
            ] {
                assert_eq!(
                    f.deallocate(kind, sector, sectors, 0),
                    IO_ERROR,
                    "{sectors} from {sector}"
                );
            }
            assert_eq!(f.deallocate(kind, 0, 1, known + 1), UNSUPPORTED);
            assert_eq!(f.deallocate(kind, 0, 1, 1 << 31), UNSUPPORTED);
            // None, half a range, two ranges.
            for len in [0, 8, 15, 32] {
                let data: Vec<_> = (len > 0)
                    .then(|| f.ring.data(&vec![0; len]))
                    .into_iter()
                    .collect();
                assert_eq!(f.request(kind, 0, &data).0, IO_ERROR);
            }
        }
        assert_eq!(f.contents(), contents_of(&image()));
        // A driver that has not asked for these features does not get them.
        let mut plain = Fixture::with(on, false, RING_FEATURES | 1 << VIRTIO_BLK_F_FLUSH);
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(plain.deallocate(kind, 0, 1, 0), UNSUPPORTED);
        }
    }
}

fn contents_of(image: &File) -> Vec<u8> {
    let mut contents = vec![0; usize::try_from(SECTORS * SECTOR_SIZE).unwrap()];
    image.read_exact_at(&mut contents, 0).unwrap();
    contents
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The disk agrees with a plain array after any sequence of requests, good and bad.
    #[test]
    fn disk_is_an_array_of_sectors(
        requests in proptest::collection::vec(
            (0..4_u8, 0..SECTORS + 2, 1..5_u32, 1..511_u32, any::<u8>(), any::<bool>()),
            1..24,
        ),
    ) {
        for on in everywhere() {
            let mut f = Fixture::new(on);
            let mut model: Vec<u8> = (0..SECTORS * SECTOR_SIZE).map(pattern).collect();
            for &(kind, sector, sectors, cut, byte, uneven) in &requests {
                let deallocates = kind > 1;
                let uneven = uneven && !deallocates;
                let len = sectors * 512 + u32::from(uneven);
                let from = usize::try_from(sector * SECTOR_SIZE).unwrap();
                let range = from..from + len as usize;
                let good = !uneven && range.end <= model.len();
                let status = match kind {
                    0 => {
                        let data = [f.ring.data(&vec![byte; cut as usize]),
                            f.ring.data(&vec![!byte; (len - cut) as usize])];
                        if good {
                            let (a, b) = model[range].split_at_mut(cut as usize);
                            a.fill(byte);
                            b.fill(!byte);
                        }
                        f.request(OUT, sector, &data).0
                    }
                    1 => {
                        let parts = [f.ring.buffer(cut, true), f.ring.buffer(len - cut, true)];
                        let (status, _) = f.request(IN, sector, &parts);
                        if good {
                            let got = [f.ring.contents(parts[0]), f.ring.contents(parts[1])].concat();
                            prop_assert_eq!(&got[..], &model[range]);
                        }
                        status
                    }
                    _ => {
                        if good {
                            model[range].fill(0);
                        }
                        f.deallocate(WRITE_ZEROES, sector, sectors, u32::from(kind - 2))
                    }
                };
                prop_assert_eq!(status == OK, good, "{:?}", on);
            }
            prop_assert_eq!(f.contents(), model);
        }
    }

    /// Many requests at once, to sectors of their own, in any order of completion.
    #[test]
    fn requests_in_flight_do_not_disturb_each_other(
        sectors in proptest::sample::subsequence((0..SECTORS).collect::<Vec<_>>(), 1..60),
        writes in any::<u64>(),
    ) {
        for on in everywhere() {
            let mut f = Fixture::new(on);
            let mut model = f.contents();
            let mut reads = Vec::new();
            for &sector in &sectors {
                let at = usize::try_from(sector * SECTOR_SIZE).unwrap();
                if writes >> sector & 1 != 0 {
                    let data = f.ring.data(&[0xe0 ^ sector.to_le_bytes()[0]; 512]);
                    model[at..at + 512].fill(0xe0 ^ sector.to_le_bytes()[0]);
                    f.add(OUT, sector, &[data]);
                } else {
                    let buffer = f.ring.buffer(512, true);
                    f.add(IN, sector, &[buffer]);
                    reads.push((at, buffer));
                }
            }
            f.guest.notify(0);
            for _ in &sectors {
                f.used();
            }
            for (at, buffer) in reads {
                prop_assert_eq!(&f.ring.contents(buffer)[..], &model[at..at + 512]);
            }
            prop_assert_eq!(f.contents(), model);
        }
    }
}
