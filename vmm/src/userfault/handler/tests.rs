use std::io::{Read, Write};
use std::sync::Mutex;
use std::thread;

use nix::sys::socket::{ControlMessage, sendmsg};
use std::io::IoSlice;
use std::os::fd::{AsFd, RawFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::memory::GuestMemory;
use crate::userfault::{Features, Modes, place_of};

const PAGES: u64 = 64;
const LEN: u64 = PAGES * PAGE;
/// The guest's second region begins in the middle.
const MIDDLE: u64 = LEN / 2;

/// A VMM's half, in this process.
struct Vmm {
    memory: GuestMemory,
    userfault: Userfault,
    stream: UnixStream,
}

fn send(stream: &UnixStream, message: &[u8], fds: &[RawFd]) {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[_] = if fds.is_empty() { &[] } else { &rights };
    let vectors = [IoSlice::new(message)];
    sendmsg::<()>(
        stream.as_raw_fd(),
        &vectors,
        control,
        MsgFlags::empty(),
        None,
    )
    .unwrap();
}

fn mappings(memory: &GuestMemory) -> Vec<Mapping> {
    let mut offset = 0;
    let mut all = Vec::new();
    for region in memory.iter() {
        let (start, bytes) = place_of(region);
        all.push(Mapping::new(start, bytes, offset));
        offset += bytes;
    }
    all
}

/// A VMM with its memory under control, and the stream to its handler.
fn vmm() -> (Vmm, UnixStream) {
    let half = usize::try_from(MIDDLE).unwrap();
    let ranges = [(GuestAddress(0), half), (GuestAddress(1 << 32), half)];
    let memory = devices::memory::anonymous(&ranges).unwrap();
    let userfault = Userfault::open(Features::EVENT_REMOVE).unwrap();
    for region in memory.iter() {
        let modes = Modes {
            missing: true,
            write_protect: false,
        };
        userfault.register(region, modes).unwrap();
    }
    let (stream, theirs) = UnixStream::pair().unwrap();
    let text = serde_json::to_vec(&mappings(&memory)).unwrap();
    send(&stream, &text, &[userfault.as_raw_fd()]);
    let vmm = Vmm {
        memory,
        userfault,
        stream,
    };
    (vmm, theirs)
}

impl Vmm {
    fn place(offset: u64) -> GuestAddress {
        GuestAddress(if offset < MIDDLE {
            offset
        } else {
            offset - MIDDLE + (1 << 32)
        })
    }

    fn word(&self, offset: u64) -> u64 {
        self.memory.read_obj(Self::place(offset)).unwrap()
    }

    /// As the VMM does when everything was served.
    fn leave(self) {
        for region in self.memory.iter() {
            let (start, bytes) = place_of(region);
            self.userfault.unregister(start, bytes).unwrap();
        }
    }

    /// Gives pages back.
    fn discard(&self, offset: u64, pages: usize) {
        let host = self.memory.get_host_address(Self::place(offset)).unwrap();
        // SAFETY: pages of the test's own memory, which are accessed as a guest's only.
        let done = unsafe { libc::madvise(host.cast(), pages * 4096, libc::MADV_DONTNEED) };
        assert_eq!(done, 0);
    }
}

/// What a page has: its number, but every fourth has nothing.
fn word_of(offset: u64) -> u64 {
    let page = offset / PAGE;
    if page % 4 == 3 { 0 } else { page + 1 }
}

fn source(offset: u64, page: &mut Page) -> Result<Content, SourceError> {
    let word = word_of(offset);
    if word == 0 {
        // What is in the buffer does not matter.
        page.fill(0xee);
        return Ok(Content::Zero);
    }
    page.fill(0);
    page[..8].copy_from_slice(&word.to_le_bytes());
    Ok(Content::Data)
}

#[test]
fn a_guest_finds_every_page_as_it_was_and_the_order_is_reported() {
    let (vmm, stream) = vmm();
    let report = thread::scope(|scope| {
        let handler = scope.spawn(|| {
            let connection = Connection::accept(stream, LEN).unwrap();
            connection.serve(&Plan::default(), &mut source).unwrap()
        });
        for page in (0..PAGES).rev() {
            let offset = page * PAGE;
            assert_eq!(vmm.word(offset), word_of(offset), "{page}");
            // A second look needs nobody.
            assert_eq!(vmm.word(offset), word_of(offset), "{page}");
        }
        drop(vmm);
        handler.join().unwrap()
    });
    let order: Vec<_> = (0..PAGES).rev().map(|page| page * PAGE).collect();
    let expected = Report {
        end: End::Gone,
        faults: order,
        ahead: 0,
        removed: 0,
    };
    assert_eq!(report, expected);
}

#[test]
fn what_is_known_to_be_needed_is_there_first_and_in_order() {
    let (vmm, stream) = vmm();
    let asked = Mutex::new(Vec::new());
    let prefetch: Vec<_> = [40, 7, 3, 7].map(|page| page * PAGE).to_vec();
    let nonsense = [1, u64::MAX, LEN, LEN + PAGE];
    let plan = Plan {
        prefetch: [&nonsense[..], &prefetch].concat(),
        fill_after: None,
    };
    let report = thread::scope(|scope| {
        let handler = scope.spawn(|| {
            let mut source = |offset, page: &mut Page| {
                asked.lock().unwrap().push(offset / PAGE);
                source(offset, page)
            };
            let connection = Connection::accept(stream, LEN).unwrap();
            connection.serve(&plan, &mut source).unwrap()
        });
        while asked.lock().unwrap().len() < 3 {
            thread::yield_now();
        }
        for page in [3, 7, 40] {
            assert_eq!(vmm.word(page * PAGE), word_of(page * PAGE));
        }
        assert_eq!(vmm.word(9 * PAGE), 10);
        drop(vmm);
        handler.join().unwrap()
    });
    assert_eq!(asked.into_inner().unwrap()[..3], [40, 7, 3]);
    assert!(report.faults.contains(&(9 * PAGE)), "{report:?}");
    assert!((2..=3).contains(&report.ahead), "{report:?}");
}

#[test]
fn when_all_is_served_the_vmm_hears_of_it_and_goes_on_by_itself() {
    let (mut vmm, stream) = vmm();
    let plan = Plan {
        prefetch: vec![0],
        fill_after: Some(Duration::from_millis(5)),
    };
    let report = thread::scope(|scope| {
        let handler = scope.spawn(|| {
            let connection = Connection::accept(stream, LEN).unwrap();
            connection.serve(&plan, &mut source).unwrap()
        });
        assert_eq!(vmm.word(2 * PAGE), 3);
        // Zero from now on, whatever it was.
        vmm.discard(4 * PAGE, 2);
        let mut byte = [0];
        vmm.stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [ALL_SERVED]);
        // A page of zeroes may be asked for even now.
        assert_eq!(vmm.word(3 * PAGE), 0);
        let memory = vmm.memory.clone();
        vmm.leave();
        let report = handler.join().unwrap();
        for page in 0..PAGES {
            let expected = match page {
                4 | 5 => 0,
                _ => word_of(page * PAGE),
            };
            let found: u64 = memory.read_obj(Vmm::place(page * PAGE)).unwrap();
            assert_eq!(found, expected, "{page}");
        }
        report
    });
    assert_eq!(report.end, End::AllServed);
    assert_eq!(report.removed, 2);
    assert!(report.faults.contains(&(2 * PAGE)));
    // 48 pages are not zero; one was waited for, and the guest gave two back.
    assert!((45..=47).contains(&report.ahead), "{report:?}");
}

#[test]
fn pages_that_the_guest_gave_back_are_zero_from_then_on() {
    let (vmm, stream) = vmm();
    let report = thread::scope(|scope| {
        let handler = scope.spawn(|| {
            let connection = Connection::accept(stream, LEN).unwrap();
            connection.serve(&Plan::default(), &mut source).unwrap()
        });
        assert_eq!(vmm.word(0), 1);
        // Across what is there and what never was, to the end of the first region.
        vmm.discard(0, 2);
        vmm.discard(MIDDLE - 2 * PAGE, 2);
        for offset in [0, PAGE, MIDDLE - 2 * PAGE, MIDDLE - PAGE] {
            assert_eq!(vmm.word(offset), 0, "{offset:#x}");
        }
        assert_eq!(vmm.word(2 * PAGE), 3);
        assert_eq!(vmm.word(MIDDLE), word_of(MIDDLE));
        // Given back again and again, by several at once.
        thread::scope(|inner| {
            for at in 0..4 {
                let vmm = &vmm;
                inner.spawn(move || {
                    for round in 0..50 {
                        let offset = (8 + 4 * at) * PAGE;
                        let expected = if round == 0 { word_of(offset) } else { 0 };
                        assert_eq!(vmm.word(offset), expected);
                        vmm.discard(offset, 1);
                    }
                });
            }
        });
        drop(vmm);
        handler.join().unwrap()
    });
    assert_eq!(report.removed, 8);
}

#[test]
fn a_page_that_cannot_be_had_ends_the_service_and_the_connection() {
    let (mut vmm, stream) = vmm();
    let error = thread::scope(|scope| {
        let handler = scope.spawn(|| {
            let mut source = |offset, page: &mut Page| match offset {
                0x5000 => Err("its hash is another one".into()),
                _ => source(offset, page),
            };
            let connection = Connection::accept(stream, LEN).unwrap();
            connection.serve(&Plan::default(), &mut source)
        });
        let reader = scope.spawn(|| vmm.word(0x5000));
        let error = handler.join().unwrap().unwrap_err();
        // The test's own thread is to end.
        for region in vmm.memory.iter() {
            let (start, bytes) = place_of(region);
            vmm.userfault.unregister(start, bytes).unwrap();
        }
        reader.join().unwrap();
        error
    });
    let text = crate::logger::chain(&error);
    assert_eq!(
        text,
        "Cannot have the page at 0x5000 of the snapshot's memory: its hash is another one"
    );
    assert_eq!(vmm.stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_fault_outside_of_what_the_vmm_said_ends_the_service() {
    let (vmm, stream) = vmm();
    let other = devices::memory::anonymous(&[(GuestAddress(0), 4096)]).unwrap();
    let region = other.iter().next().unwrap();
    let modes = Modes {
        missing: true,
        write_protect: false,
    };
    vmm.userfault.register(region, modes).unwrap();
    let (start, bytes) = place_of(region);
    thread::scope(|scope| {
        let handler = scope.spawn(|| {
            let connection = Connection::accept(stream, LEN).unwrap();
            connection.serve(&Plan::default(), &mut source)
        });
        let reader = scope.spawn(|| other.read_obj::<u8>(GuestAddress(0)).unwrap());
        let error = handler.join().unwrap().unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("{start:#x}")), "{text}");
        vmm.userfault.unregister(start, bytes).unwrap();
        assert_eq!(reader.join().unwrap(), 0);
    });
}

#[test]
fn a_vmm_that_talks_or_leaves_ends_the_service() {
    let (mut talker, stream) = vmm();
    let connection = Connection::accept(stream, LEN).unwrap();
    talker.stream.write_all(b"more").unwrap();
    let error = connection.serve(&Plan::default(), &mut source).unwrap_err();
    assert!(matches!(error, HandlerError::Unexpected), "{error}");

    let (leaver, stream) = vmm();
    let connection = Connection::accept(stream, LEN).unwrap();
    drop(leaver);
    let plan = Plan {
        prefetch: (0..PAGES).map(|page| page * PAGE).collect(),
        fill_after: Some(Duration::ZERO),
    };
    let report = connection.serve(&plan, &mut source).unwrap();
    assert_eq!(report.end, End::Gone);
}

/// The error of a first message.
fn refusal(message: &[u8], fds: &[RawFd]) -> HandlerError {
    let (ours, theirs) = UnixStream::pair().unwrap();
    send(&ours, message, fds);
    Connection::accept(theirs, LEN).unwrap_err()
}

#[test]
fn hostile_first_messages_are_refused_and_their_descriptors_closed() {
    let (vmm, _stream) = vmm();
    let good = serde_json::to_vec(&mappings(&vmm.memory)).unwrap();
    let userfault = vmm.userfault.as_raw_fd();
    let file = std::fs::File::open("/dev/null").unwrap();
    let null = file.as_fd().as_raw_fd();
    let error = |message: &[u8], fds: &[RawFd]| crate::logger::chain(&refusal(message, fds));
    let found = error(&good, &[]);
    assert!(found.contains("0 descriptors"), "{found}");
    let found = error(&good, &[userfault, userfault]);
    assert!(found.contains("2 descriptors"), "{found}");
    let found = error(&good, &[null; 253]);
    assert!(found.contains("253 descriptors"), "{found}");
    let found = error(&good, &[null]);
    assert!(found.contains("/dev/null"), "{found}");
    for message in [&b"x"[..], b"[]", b"{}", b"[{}]", &[b'['; 16 << 10]] {
        refusal(message, &[userfault]);
    }
    let found = error(&good[..good.len() - 1], &[userfault]);
    assert!(found.contains("does not say"), "{found}");

    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(ours);
    let error = Connection::accept(theirs, LEN).unwrap_err();
    assert!(matches!(error, HandlerError::Silent), "{error}");
}
