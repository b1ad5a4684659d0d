use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::memory::GuestMemory;

const PAGES: u64 = 16;
const MISSING: Modes = Modes {
    missing: true,
    write_protect: false,
};

struct World {
    memory: GuestMemory,
    userfault: Userfault,
    start: u64,
}

fn world(features: Features, modes: Modes) -> World {
    let memory = devices::memory::anonymous(&[(GuestAddress(0), 16 * 4096)]).unwrap();
    let userfault = Userfault::open(features).unwrap();
    let region = memory.iter().next().unwrap();
    userfault.register(region, modes).unwrap();
    let (start, bytes) = place_of(region);
    assert_eq!(bytes, PAGES * PAGE);
    World {
        memory,
        userfault,
        start,
    }
}

impl World {
    /// The next events, waited for.
    fn next(&self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let mut fds = [PollFd::new(self.userfault.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)), Ok(1));
            if self.userfault.read(&mut events).unwrap() {
                return events;
            }
        }
    }

    fn byte(&self, page: u64) -> u8 {
        self.memory.read_obj(GuestAddress(page * PAGE)).unwrap()
    }

    fn page(&self, page: u64) -> u64 {
        self.start + page * PAGE
    }

    fn fault(&self, page: u64, write: bool, protected: bool) -> Event {
        Event::Fault(Fault {
            address: self.page(page),
            write,
            protected,
        })
    }
}

#[test]
fn a_missing_page_is_waited_for_and_has_what_was_copied() {
    let world = world(Features::NONE, MISSING);
    let mut none = Vec::new();
    assert!(!world.userfault.read(&mut none).unwrap());
    thread::scope(|scope| {
        let reader = scope.spawn(|| world.byte(3));
        assert_eq!(world.next(), [world.fault(3, false, false)]);
        let done = world
            .userfault
            .copy(world.page(3), &[7; 4096], Wake::Yes)
            .unwrap();
        assert_eq!(done, PAGE);
        assert_eq!(reader.join().unwrap(), 7);
    });
    let again = world
        .userfault
        .copy(world.page(3), &[8; 4096], Wake::Yes)
        .unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(world.byte(3), 7);
}

#[test]
fn a_write_to_a_missing_page_is_told_from_a_read_and_zeroes_are_written_over() {
    let world = world(Features::NONE, MISSING);
    thread::scope(|scope| {
        let writer = scope.spawn(|| world.memory.write_obj(5u8, GuestAddress(PAGE + 1)));
        assert_eq!(world.next(), [world.fault(1, true, false)]);
        let done = world
            .userfault
            .zero(world.page(1), 2 * PAGE, Wake::Yes)
            .unwrap();
        assert_eq!(done, 2 * PAGE);
        writer.join().unwrap().unwrap();
    });
    let both: u16 = world.memory.read_obj(GuestAddress(PAGE)).unwrap();
    assert_eq!(both, 0x500);
    assert_eq!(world.byte(2), 0);
}

#[test]
fn who_is_not_woken_goes_on_with_wake() {
    let world = world(Features::NONE, MISSING);
    let through = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let byte = world.byte(0);
            through.store(true, Ordering::SeqCst);
            byte
        });
        assert_eq!(world.next(), [world.fault(0, false, false)]);
        world
            .userfault
            .copy(world.page(0), &[9; 4096], Wake::No)
            .unwrap();
        thread::sleep(Duration::from_millis(20));
        assert!(!through.load(Ordering::SeqCst));
        world.userfault.wake(world.page(0), PAGE).unwrap();
        assert_eq!(reader.join().unwrap(), 9);
    });
}

#[test]
fn a_copy_that_meets_a_page_is_done_in_part() {
    let world = world(Features::NONE, MISSING);
    world
        .userfault
        .copy(world.page(2), &[1; 4096], Wake::No)
        .unwrap();
    let done = world
        .userfault
        .copy(world.page(0), &[2; 4 * 4096], Wake::No)
        .unwrap();
    assert_eq!(done, 2 * PAGE);
    assert_eq!([world.byte(1), world.byte(2)], [2, 1]);
}

#[test]
fn a_write_to_a_protected_page_waits_until_it_is_not_and_reads_do_not() {
    let modes = Modes {
        missing: false,
        write_protect: true,
    };
    let features = Features::WRITE_PROTECT.and(Features::WRITE_PROTECT_UNPOPULATED);
    let world = world(features, modes);
    for page in 0..4 {
        world
            .memory
            .write_obj(1u8, GuestAddress(page * PAGE))
            .unwrap();
    }
    // Page 4 and on are missing, and protected as well.
    let all = PAGES * PAGE;
    let protect = |start, bytes, on| {
        world
            .userfault
            .write_protect(start, bytes, on, Wake::Yes)
            .unwrap();
    };
    protect(world.start, all, true);
    assert_eq!([world.byte(0), world.byte(5)], [1, 0]);
    thread::scope(|scope| {
        for page in [2, 5, 9] {
            let memory = &world.memory;
            let writer = scope.spawn(move || memory.write_obj(2u8, GuestAddress(page * PAGE)));
            assert_eq!(world.next(), [world.fault(page, true, true)]);
            protect(world.page(page), PAGE, false);
            writer.join().unwrap().unwrap();
            assert_eq!(world.byte(page), 2);
        }
    });
    // Off for all: nobody waits.
    protect(world.start, all, false);
    world.memory.write_obj(3u8, GuestAddress(0)).unwrap();
}

#[test]
fn pages_that_come_protected_are_so() {
    let modes = Modes {
        missing: true,
        write_protect: true,
    };
    let world = world(Features::WRITE_PROTECT, modes);
    world
        .userfault
        .copy_protected(world.start, &[4; 4096], Wake::Yes)
        .unwrap();
    assert_eq!(world.byte(0), 4);
    thread::scope(|scope| {
        let writer = scope.spawn(|| world.memory.write_obj(5u8, GuestAddress(0)));
        assert_eq!(world.next(), [world.fault(0, true, true)]);
        world
            .userfault
            .write_protect(world.start, PAGE, false, Wake::Yes)
            .unwrap();
        writer.join().unwrap().unwrap();
    });
}

#[test]
fn pages_given_back_are_told_of_and_missing_again() {
    let world = world(Features::EVENT_REMOVE, MISSING);
    world
        .userfault
        .copy(world.start, &[6; 4 * 4096], Wake::Yes)
        .unwrap();
    thread::scope(|scope| {
        let giver = scope.spawn(|| {
            let host = world.memory.get_host_address(GuestAddress(PAGE)).unwrap();
            // SAFETY: two pages of the test's own memory, which are accessed as a guest's only.
            unsafe { libc::madvise(host.cast(), 2 * 4096, libc::MADV_DONTNEED) }
        });
        let range = world.page(1)..world.page(3);
        assert_eq!(world.next(), [Event::Remove(range)]);
        assert_eq!(giver.join().unwrap(), 0);
        let reader = scope.spawn(|| world.byte(2));
        assert_eq!(world.next(), [world.fault(2, false, false)]);
        world
            .userfault
            .zero(world.page(2), PAGE, Wake::Yes)
            .unwrap();
        assert_eq!(reader.join().unwrap(), 0);
    });
    assert_eq!(world.byte(3), 6);
}

#[test]
fn what_is_let_go_of_is_waited_for_no_more() {
    let world = world(Features::NONE, MISSING);
    thread::scope(|scope| {
        let reader = scope.spawn(|| world.byte(8));
        assert_eq!(world.next(), [world.fault(8, false, false)]);
        world
            .userfault
            .unregister(world.start, PAGES * PAGE)
            .unwrap();
        assert_eq!(reader.join().unwrap(), 0);
    });
    let late = world
        .userfault
        .copy(world.page(9), &[1; 4096], Wake::Yes)
        .unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_region_is_under_one_control() {
    let world = world(Features::NONE, MISSING);
    let second = Userfault::open(Features::NONE).unwrap();
    let error = second
        .register(world.memory.iter().next().unwrap(), MISSING)
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("65536 bytes"), "{text}");
}

#[test]
fn features_that_no_kernel_has_are_refused() {
    let error = Userfault::open(Features(1 << 63)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("0x8000000000000000"), "{text}");
}

#[test]
fn a_received_descriptor_is_a_userfaultfd_and_its_reads_never_wait() {
    let pipe = nix::unistd::pipe().unwrap().0;
    let error = Userfault::from_fd(pipe).unwrap_err();
    assert!(error.to_string().contains("pipe:"), "{error}");

    let world = world(Features::NONE, MISSING);
    let fd = world.userfault.as_fd().try_clone_to_owned().unwrap();
    let received = Userfault::from_fd(fd).unwrap();
    // Who sent it makes reads wait.
    nix::fcntl::fcntl(
        &world.userfault,
        nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()),
    )
    .unwrap();
    let mut events = Vec::new();
    assert!(!received.read(&mut events).unwrap());
    thread::scope(|scope| {
        let reader = scope.spawn(|| world.byte(0));
        while !received.read(&mut events).unwrap() {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(events, [world.fault(0, false, false)]);
        received.zero(world.start, PAGE, Wake::Yes).unwrap();
        assert_eq!(reader.join().unwrap(), 0);
    });
}

proptest! {
    #[test]
    fn requests_for_places_outside_are_errors_and_change_nothing(
        start in any::<u64>(),
        pages in 1..4u64,
    ) {
        let world = world(Features::WRITE_PROTECT, MISSING);
        let all = world.start..world.start + PAGES * PAGE;
        prop_assume!(!all.contains(&start));
        let contents = vec![1; usize::try_from(pages * PAGE).unwrap()];
        prop_assert!(world.userfault.copy(start, &contents, Wake::Yes).is_err());
        prop_assert!(world.userfault.zero(start, pages * PAGE, Wake::Yes).is_err());
        prop_assert!(world.userfault.write_protect(start, pages * PAGE, true, Wake::Yes).is_err());
    }
}
