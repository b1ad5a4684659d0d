//! The device against back-ends that speak the protocol by themselves, byte for byte: one that keeps to it, some that
//! do not, and virtiofsd.

mod peer;

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use vm_memory::{FileOffset, GuestAddress};

use self::peer::{Fault, Peer, Request};
use super::*;
use crate::memory::{self, RegionSpec};
use crate::virtio::interrupt::QueueInterrupt;
use crate::virtio::queue::RING_FEATURES;
use crate::virtio::state::{DRIVER_OK, NEEDS_RESET};
use crate::virtio::testing::{
    Buffer, GuestRing, HIGH_BASE, HIGH_LEN, InterruptCounter, LOW_LEN, TestGuest, Transport,
};

/// Far more than anything here takes.
const SOON: Duration = Duration::from_secs(20);

const FUSE_FORGET: u32 = 2;
const FUSE_INIT: u32 = 26;

/// Memory as of a guest, in two files.
fn shared_memory() -> Arc<GuestMemory> {
    let regions = [(0, LOW_LEN), (HIGH_BASE, HIGH_LEN)].map(|(base, len)| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        RegionSpec {
            base: GuestAddress(base),
            len: usize::try_from(len).unwrap(),
            file: Some(FileOffset::new(file, 0)),
        }
    });
    Arc::new(memory::map(regions.into(), false).unwrap())
}

/// A guest with a file system that `peer` serves, and its two queues.
fn start(on: Transport, stream: UnixStream) -> (TestGuest, Vec<GuestRing>) {
    let device = Fs::new("test", stream, || true).unwrap();
    let mut guest = TestGuest::with_memory(on, device, shared_memory());
    guest.reset();
    let features = guest.offered();
    let rings = guest.start_queues(features, &[64, 64]);
    (guest, rings)
}

/// A FUSE request, and where its answer goes.
fn request(ring: &mut GuestRing, operation: u32, unique: u64, body: &[u8]) -> (u16, Buffer) {
    let len = u32::try_from(40 + body.len()).unwrap();
    let mut data = vec![0; 40];
    data[..4].copy_from_slice(&len.to_le_bytes());
    data[4..8].copy_from_slice(&operation.to_le_bytes());
    data[8..16].copy_from_slice(&unique.to_le_bytes());
    data.extend(body);
    let data = ring.data(&data);
    let answer = ring.buffer(256, true);
    (ring.add(&[data, answer]), answer)
}

/// Lets the device work until `ring` has an answer.
fn answered(guest: &mut TestGuest, ring: &mut GuestRing) -> (u16, u32) {
    let start = Instant::now();
    loop {
        guest.run();
        if let Some(used) = ring.used() {
            return used;
        }
        assert!(start.elapsed() < SOON, "no answer");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Length, error and `unique` of the answer in `buffer`.
fn header(ring: &GuestRing, buffer: Buffer) -> (u32, i32, u64) {
    let bytes = ring.contents(buffer);
    (
        u32::from_le_bytes(bytes[..4].try_into().unwrap()),
        i32::from_le_bytes(bytes[4..8].try_into().unwrap()),
        u64::from_le_bytes(bytes[8..16].try_into().unwrap()),
    )
}

/// Asks on both queues and expects that the device itself refuses.
fn expect_refusals(guest: &mut TestGuest, rings: &mut [GuestRing]) {
    for (index, ring) in (0..).zip(rings) {
        let (head, answer) = request(ring, FUSE_INIT, 77, &[]);
        guest.ring(index);
        assert_eq!(answered(guest, ring), (head, ANSWER_LEN));
        assert_eq!(header(ring, answer), (ANSWER_LEN, -libc::ENOTCONN, 77));
    }
    assert_eq!(guest.status() & (DRIVER_OK | NEEDS_RESET), DRIVER_OK);
}

#[test]
fn tag_and_number_of_queues_are_in_the_configuration_space() {
    for &on in Transport::ALL {
        let (stream, peer) = Peer::honest();
        let (mut guest, _) = start(on, stream);
        let mut tag = [0; MAX_TAG];
        guest.read_config(0, &mut tag);
        assert_eq!(&tag[..5], b"test\0");
        assert_eq!(guest.config_u32(MAX_TAG as u64), 1);
        drop(guest);
        peer.join();
    }
}

#[test]
fn requests_go_to_the_backend_and_answers_interrupt_the_driver() {
    for &on in Transport::ALL {
        let (stream, peer) = Peer::honest();
        let (mut guest, mut rings) = start(on, stream);
        for round in 1..=3 {
            for (index, ring) in (0..).zip(&mut rings) {
                // The driver wants to hear of the next one.
                ring.set_used_event(u16::try_from(round - 1).unwrap());
                guest.interrupts();
                let (head, answer) = request(ring, FUSE_INIT, round, b"hello");
                guest.ring(index);
                assert_eq!(answered(&mut guest, ring), (head, 16));
                assert_eq!(header(ring, answer), (16, 0, round));
                let start = Instant::now();
                while guest.interrupts() == 0 {
                    guest.run();
                    assert!(start.elapsed() < SOON, "no interrupt");
                }
            }
        }
        drop(guest);
        assert_eq!(peer.join().served, 6);
    }
}

#[test]
fn a_driver_that_comes_again_finds_the_queues_anew() {
    for &on in Transport::ALL {
        let (stream, peer) = Peer::honest();
        let (mut guest, mut rings) = start(on, stream);
        for _ in 0..2 {
            let (head, _) = request(&mut rings[1], FUSE_INIT, 5, &[]);
            guest.ring(1);
            assert_eq!(answered(&mut guest, &mut rings[1]), (head, 16));
            guest.reset();
            let features = guest.offered();
            rings = guest.start_queues(features, &[32, 64]);
        }
        drop(guest);
        let report = peer.join();
        assert_eq!(report.served, 2);
        // The table of memory once for each start, the base of each queue at each stop.
        let count = |request| report.requests.iter().filter(|&&r| r == request).count();
        assert_eq!(count(Request::SetMemTable as u32), 3);
        assert_eq!(count(Request::GetVringBase as u32), 4);
    }
}

#[test]
fn a_stopped_queue_says_where_the_backend_stood() {
    let (stream, peer) = Peer::honest();
    let mut device = Fs::new("test", stream, || true).unwrap();
    let memory = shared_memory();
    let mut ring = GuestRing::new(memory.clone(), 1, 64);
    let features = RING_FEATURES;
    let interrupt = QueueInterrupt::new(Arc::new(InterruptCounter::default()), 1);
    let queue = Virtqueue::new(&ring.registers(), 64, features, memory, interrupt, None).unwrap();
    device.start_queue(1, queue, features);
    for unique in 0..3 {
        request(&mut ring, FUSE_INIT, unique, &[]);
    }
    assert_eq!(device.process(1).unwrap(), Progress::Idle);
    let start = Instant::now();
    while ring.pending() < 3 {
        assert!(start.elapsed() < SOON, "no answer");
        thread::sleep(Duration::from_millis(1));
    }
    let expected = QueueState {
        next_available: 3,
        next_used: 3,
    };
    assert_eq!(device.stop_queue(1), Some(expected));
    assert_eq!(device.stop_queue(1), None);
    drop(device);
    peer.join();
}

#[test]
fn requests_are_refused_once_the_backend_has_gone() {
    for &on in Transport::ALL {
        let (stream, peer) = Peer::honest();
        let (mut guest, mut rings) = start(on, stream);
        let (head, _) = request(&mut rings[1], FUSE_INIT, 1, &[]);
        guest.ring(1);
        assert_eq!(answered(&mut guest, &mut rings[1]), (head, 16));
        peer.kill();
        guest.run();
        expect_refusals(&mut guest, &mut rings);
        // A request that wants no answer is given back without one.
        let (head, _) = {
            let data = rings[0].data(&[FUSE_FORGET.to_le_bytes(); 10].concat());
            (rings[0].add(&[data]), data)
        };
        guest.ring(0);
        assert_eq!(answered(&mut guest, &mut rings[0]), (head, 0));
        // Also for the next driver.
        guest.reset();
        let features = guest.offered();
        let mut rings = guest.start_queues(features, &[64, 64]);
        expect_refusals(&mut guest, &mut rings);
    }
}

#[test]
fn what_a_lost_backend_has_left_unanswered_is_refused() {
    for &on in Transport::ALL {
        let (stream, peer) = Peer::faulty(Request::SetVringEnable, Fault::Hold);
        let (mut guest, mut rings) = start(on, stream);
        let ring = &mut rings[1];
        let mut expected = Vec::new();
        // Far more than the ring has entries.
        for unique in 0..300 {
            let (head, answer) = if unique % 2 == 1 && expected.len() < 20 {
                ring.seek_descriptor(2 * u16::try_from(expected.len()).unwrap());
                let (head, answer) = request(ring, FUSE_INIT, unique, &[]);
                expected.push((head, answer, unique));
                guest.ring(1);
                continue;
            } else {
                // Descriptors of what is in flight are not used again.
                ring.seek_descriptor(40 + u16::try_from(unique % 10).unwrap() * 2);
                request(ring, FUSE_INIT, unique & !1, &[])
            };
            guest.ring(1);
            assert_eq!(answered(&mut guest, ring), (head, 0), "{answer:?}");
        }
        // It goes unnoticed at first.
        peer.kill();
        ring.seek_descriptor(62);
        let (head, answer) = request(ring, FUSE_INIT, 301, &[]);
        expected.push((head, answer, 301));
        guest.ring(1);
        let mut heads = Vec::new();
        for _ in &expected {
            heads.push(answered(&mut guest, ring));
        }
        heads.sort_unstable();
        let all: Vec<_> = expected
            .iter()
            .map(|(head, ..)| (*head, ANSWER_LEN))
            .collect();
        assert_eq!(heads, all);
        for (_, answer, unique) in expected {
            assert_eq!(header(ring, answer), (ANSWER_LEN, -libc::ENOTCONN, unique));
        }
        expect_refusals(&mut guest, &mut rings[..1]);
    }
}

#[test]
fn rings_full_of_nonsense_are_left_alone_when_the_backend_is_lost() {
    for &on in Transport::ALL {
        let (stream, peer) = Peer::honest();
        let (mut guest, mut rings) = start(on, stream);
        peer.kill();
        // A head that is none, and an index further ahead than there are entries.
        rings[0].offer(9999);
        rings[0].publish();
        rings[1].set_available_index(200);
        guest.run();
        assert_eq!((rings[0].pending(), rings[1].pending()), (0, 0));
        expect_refusals(&mut guest, &mut rings[..1]);
    }
}

#[test]
fn a_backend_that_breaks_the_protocol_at_the_start_of_a_queue_is_left() {
    let at_start = [
        Request::SetFeatures,
        Request::SetMemTable,
        Request::SetVringNum,
        Request::SetVringAddr,
        Request::SetVringBase,
        Request::SetVringCall,
        Request::SetVringKick,
        Request::SetVringEnable,
    ];
    for request in at_start {
        for fault in [
            Fault::Close,
            Fault::Garbage,
            Fault::Refuse,
            Fault::Short,
            Fault::File,
        ] {
            let (stream, peer) = Peer::faulty(request, fault);
            let (mut guest, mut rings) = start(Transport::Pci, stream);
            expect_refusals(&mut guest, &mut rings);
            drop(guest);
            peer.join();
        }
    }
}

#[test]
fn a_backend_that_breaks_the_protocol_at_the_end_of_a_queue_is_left() {
    for fault in [
        Fault::Close,
        Fault::Garbage,
        Fault::Refuse,
        Fault::Short,
        Fault::File,
    ] {
        let (stream, peer) = Peer::faulty(Request::GetVringBase, fault);
        let (mut guest, _) = start(Transport::Mmio, stream);
        guest.reset();
        let features = guest.offered();
        let mut rings = guest.start_queues(features, &[64, 64]);
        expect_refusals(&mut guest, &mut rings);
        drop(guest);
        peer.join();
    }
}

#[test]
fn a_backend_that_cannot_introduce_itself_is_refused() {
    let at_first = [Request::GetFeatures, Request::GetProtocolFeatures];
    for request in at_first {
        for fault in [Fault::Close, Fault::Garbage, Fault::Short, Fault::File] {
            let (stream, peer) = Peer::faulty(request, fault);
            let error = Fs::new("test", stream, || true).err().unwrap();
            assert!(matches!(error, BackendError::Exchange { .. }), "{error}");
            peer.join();
        }
    }
    let (stream, peer) = Peer::with_features(1 << 32 | 1 << 30);
    let error = Fs::new("test", stream, || true).err().unwrap().to_string();
    assert!(error.contains("0x140000000"), "{error}");
    peer.join();
}

#[test]
fn a_silent_backend_holds_nobody_up_for_long() {
    for request in [
        Request::GetFeatures,
        Request::SetMemTable,
        Request::GetVringBase,
    ] {
        let (stream, peer) = Peer::faulty(request, Fault::Silent);
        if request == Request::GetFeatures {
            assert!(Fs::new("test", stream, || true).is_err());
        } else {
            let (mut guest, mut rings) = start(Transport::Mmio, stream);
            if request == Request::GetVringBase {
                guest.reset();
                let features = guest.offered();
                rings = guest.start_queues(features, &[64, 64]);
            }
            expect_refusals(&mut guest, &mut rings);
        }
        peer.join();
    }
}

#[test]
fn memory_of_this_process_alone_is_not_handed_out() {
    let (stream, peer) = Peer::honest();
    let device = Fs::new("test", stream, || true).unwrap();
    let mut guest = TestGuest::new(Transport::Mmio, device);
    guest.reset();
    let features = guest.offered();
    let mut rings = guest.start_queues(features, &[64, 64]);
    expect_refusals(&mut guest, &mut rings);
    drop(guest);
    let report = peer.join();
    assert!(!report.requests.contains(&(Request::SetMemTable as u32)));
}

/// Ends a program, the first of its process group, and the processes that it has started with the test.
///
/// virtiofsd serves in a child, and now and then misses the SIGTERM that tells this one of the parent's end: the signal
/// comes between its look at its flag and its wait.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// `cargo xtask test` has it on the search path.
const VIRTIOFSD: &str = "virtiofsd";

#[test]
fn virtiofsd_serves_a_folder() {
    if std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) != 0 {
        return println!("skipped: virtiofsd needs root");
    }
    let folder = tempfile::tempdir().unwrap();
    let (share, socket) = (folder.path().join("share"), folder.path().join("socket"));
    std::fs::create_dir(&share).unwrap();
    std::fs::write(share.join("name"), "contents").unwrap();
    for &on in Transport::ALL {
        let _ = std::fs::remove_file(&socket);
        let program = Command::new(VIRTIOFSD)
            .arg(format!("--socket-path={}", socket.display()))
            .arg("-f")
            .arg("-o")
            .arg(format!("source={}", share.display()))
            .process_group(0)
            .spawn()
            .expect("virtiofsd is on the search path of `cargo xtask test`");
        let program = Running(program);
        let begin = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(begin.elapsed() < SOON, "{error}"),
            }
            thread::sleep(Duration::from_millis(10));
        };
        let (mut guest, mut rings) = start(on, stream);
        let ring = &mut rings[1];

        let mut ask = |ring: &mut GuestRing, operation, unique, body: &[u8], node: u64| {
            let len = u32::try_from(40 + body.len()).unwrap();
            let mut data = vec![0; 40];
            data[..4].copy_from_slice(&len.to_le_bytes());
            data[4..8].copy_from_slice(&u32::to_le_bytes(operation));
            data[8..16].copy_from_slice(&u64::to_le_bytes(unique));
            data[16..24].copy_from_slice(&node.to_le_bytes());
            data.extend(body);
            let (data, answer) = (ring.data(&data), ring.buffer(512, true));
            let head = ring.add(&[data, answer]);
            guest.ring(1);
            assert_eq!(answered(&mut guest, ring).0, head);
            let (len, error, its_unique) = header(ring, answer);
            assert_eq!((error, its_unique), (0, unique));
            ring.contents(answer)[16..len as usize].to_vec()
        };
        // FUSE 7.31; no more read ahead than nothing, no flags.
        let init = ask(
            ring,
            FUSE_INIT,
            1,
            &[7u32, 31, 0, 0].map(u32::to_le_bytes).concat(),
            0,
        );
        assert_eq!(init[..4], 7u32.to_le_bytes());
        // FUSE_LOOKUP in the root, FUSE_OPEN, FUSE_READ.
        let entry = ask(ring, 1, 2, b"name\0", 1);
        let node = u64::from_le_bytes(entry[..8].try_into().unwrap());
        let open = ask(ring, 14, 3, &[0; 8], node);
        let mut read = open[..8].to_vec();
        read.extend([0; 8]);
        read.extend(100u32.to_le_bytes());
        read.extend([0; 20]);
        assert_eq!(ask(ring, 15, 4, &read, node), b"contents");

        // A new driver, and then the end of the program.
        guest.reset();
        let features = guest.offered();
        let mut rings = guest.start_queues(features, &[64, 64]);
        let (head, answer) = request(
            &mut rings[1],
            FUSE_INIT,
            5,
            &[7u32, 31, 0, 0].map(u32::to_le_bytes).concat(),
        );
        guest.ring(1);
        assert_eq!(answered(&mut guest, &mut rings[1]).0, head);
        assert_eq!(header(&rings[1], answer).2, 5);
        guest.run();
        drop(program);
        let begin = Instant::now();
        while guest.run() == 0 {
            assert!(begin.elapsed() < SOON, "the end goes unnoticed");
            thread::sleep(Duration::from_millis(1));
        }
        expect_refusals(&mut guest, &mut rings);
    }
}
