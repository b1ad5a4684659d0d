//! A disk on a qcow2 image: whatever is read is what was written before, also after the image was closed and opened.
#![no_main]

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use devices::memory::GuestMemory;
use devices::virtio::block::engine::Preference;
use devices::virtio::block::{Block, Engine, Options, Qcow2File};
use devices::virtio::testing::{GuestRing, TestGuest, Transport, guest_memory};
use fuzz::Unstructured;
use fuzz::disk::{file_of, qcow2};

/// Sectors of the disk.
const SECTORS: u64 = 64;
const SECTOR: usize = 512;
const MAX_STEPS: usize = 12;

/// What a sector should read as: bytes of one value, if it is known.
type Expected = [Option<u8>; SECTORS as usize];

struct Disk {
    image: File,
    /// Nobody while the image is closed: it is locked until it is let go.
    guest: Option<(TestGuest, GuestRing)>,
    expected: Expected,
}

thread_local! {
    static MEMORY: Arc<GuestMemory> = guest_memory();
}

fn attach(image: &File) -> (TestGuest, GuestRing) {
    let file = File::from(image.as_fd().try_clone_to_owned().expect("a descriptor"));
    let disk = Qcow2File::new(file, false, &mut |name| {
        panic!("{name} is no backing file of it")
    });
    let disk = Box::new(disk.expect("an image that is in order"));
    let engine = Engine::new(Preference::Synchronous);
    let device = Block::new(disk, engine, Options::default()).expect("a disk");
    let memory = MEMORY.with(Arc::clone);
    let mut guest = TestGuest::with_memory(Transport::Mmio, device, memory);
    let features = guest.offered();
    let ring = guest.start(features, 16);
    (guest, ring)
}

impl Disk {
    /// Makes a request and returns its status.
    fn request(&mut self, kind: u32, sector: u64, data: &[u8], room: usize) -> (u8, Vec<u8>) {
        let (guest, ring) = self.guest.as_mut().expect("the image is open");
        ring.reuse_buffers();
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let mut buffers = vec![ring.data(&header)];
        if !data.is_empty() {
            buffers.push(ring.data(data));
        }
        let len = |len: usize| u32::try_from(len).expect("short");
        if room > 0 {
            buffers.push(ring.buffer(len(room), true));
        }
        let status = ring.buffer(1, true);
        let read = buffers.last().copied().filter(|_| room > 0);
        buffers.push(status);
        ring.add(&buffers);
        guest.notify(0);
        assert!(ring.used().is_some(), "an answer");
        let read = read.map_or_else(Vec::new, |buffer| ring.contents(buffer));
        (ring.contents(status)[0], read)
    }

    fn check(&mut self, first: u64, count: u64) {
        let room = usize::try_from(count).expect("few") * SECTOR;
        let (status, data) = self.request(0, first, &[], room);
        assert_eq!(status, 0, "sector {first} can be read");
        for (sector, bytes) in (first..).zip(data.chunks(SECTOR)) {
            let place = usize::try_from(sector).expect("few");
            if let Some(byte) = self.expected[place] {
                assert!(bytes.iter().all(|other| *other == byte), "sector {sector}");
            }
        }
    }

    /// Somebody closes the image and opens it again.
    fn reopen(&mut self) {
        if let Some((mut guest, _)) = self.guest.take() {
            guest.reset();
            guest.state().shut_down();
        }
        self.guest = Some(attach(&self.image));
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let what: u8 = input.arbitrary()?;
        let first = u64::from(input.arbitrary::<u8>()?) % SECTORS;
        let count = u64::from(input.arbitrary::<u8>()? % 16 + 1).min(SECTORS - first);
        let range =
            usize::try_from(first).expect("few")..usize::try_from(first + count).expect("few");
        match what % 8 {
            0..=2 => {
                let byte = what | 1;
                let data = vec![byte; range.len() * SECTOR];
                let (status, _) = self.request(1, first, &data, 0);
                assert_eq!(status, 0, "sector {first} can be written");
                self.expected[range].fill(Some(byte));
            }
            3 => self.check(first, count),
            4 | 5 => {
                let kind = if what % 8 == 4 { 11 } else { 13 };
                let mut segment = [0; 16];
                segment[..8].copy_from_slice(&first.to_le_bytes());
                segment[8..12].copy_from_slice(&u32::try_from(count).expect("few").to_le_bytes());
                segment[12] = u8::from(kind == 13) & what >> 7;
                let (status, _) = self.request(kind, 0, &segment, 0);
                assert_eq!(status, 0, "request {kind} of sector {first}");
                // What is discarded may be anything.
                self.expected[range].fill((kind == 13).then_some(0));
            }
            6 => assert_eq!(self.request(4, 0, &[], 0).0, 0, "flush"),
            _ => self.reopen(),
        }
        Ok(())
    }
}

fuzz::fuzz_target!(init: fuzz::begin(fuzz::steps), |data: &[u8]| {
    let [bits, data @ ..] = data else {
        return;
    };
    let image = file_of(&qcow2(9 + u32::from(bits % 4), SECTORS * 512), 0);
    let guest = Some(attach(&image));
    let expected = [Some(0); SECTORS as usize];
    let mut disk = Disk { image, guest, expected };
    let mut input = Unstructured::new(data);
    for _ in 0..MAX_STEPS {
        if input.is_empty() || disk.step(&mut input).is_err() {
            break;
        }
    }
    disk.reopen();
    disk.check(0, SECTORS);
});
