//! Several requests at a time: stops, failures, limits and replacements while some are in flight.

use super::*;

#[test]
fn many_requests_are_in_flight_and_each_comes_back_once() {
    for on in everywhere() {
        let mut f = Fixture::new(on);
        // As many as the ring holds, more than are taken at a time.
        let buffers: Vec<_> = (0..85).map(|_| f.ring.buffer(512, true)).collect();
        for round in 0..4_u64 {
            let sector = |index: u64| (index * 7 + round) % SECTORS;
            for (index, &buffer) in (0..).zip(&buffers) {
                f.add(IN, sector(index), &[buffer]);
            }
            f.guest.notify(0);
            let mut heads: Vec<u16> = buffers.iter().map(|_| f.used().0).collect();
            heads.sort_unstable();
            heads.dedup();
            assert_eq!(heads.len(), buffers.len());
            for (index, &buffer) in (0..).zip(&buffers) {
                assert_eq!(
                    f.ring.contents(buffer)[0],
                    pattern(sector(index) * 512),
                    "{on:?}"
                );
            }
        }
    }
}

#[test]
fn reset_with_requests_in_flight_leaves_memory_alone_afterwards() {
    for on in everywhere() {
        let mut f = Fixture::new(on);
        let buffers: Vec<_> = (0..60).map(|_| f.ring.buffer(512, true)).collect();
        for &buffer in &buffers {
            f.add(IN, 3, &[buffer]);
        }
        f.guest.notify(0);
        f.guest.reset();
        assert_eq!(f.guest.status(), 0);
        for &buffer in &buffers {
            f.ring
                .memory
                .write_slice(&[0xab; 512], GuestAddress(buffer.address))
                .unwrap();
        }
        f.guest.run();
        for &buffer in &buffers {
            assert_eq!(f.ring.contents(buffer), [0xab; 512], "{on:?}");
        }
        f.ring = f.guest.start_all();
        let buffer = f.ring.buffer(512, true);
        assert_eq!(f.request(IN, 9, &[buffer]).0, OK);
        assert_eq!(f.ring.contents(buffer)[0], pattern(9 * 512));
    }
}

#[test]
fn head_in_flight_twice_needs_a_reset_and_memory_stays_whole() {
    for on in everywhere() {
        let mut f = Fixture::new(on);
        let buffer = f.ring.buffer(512, true);
        let (header, status) = (f.header(IN, 1), f.ring.data(&[0xff]));
        let status = Buffer {
            writable: true,
            ..status
        };
        let head = f.ring.add(&[header, buffer, status]);
        f.ring.offer(head);
        f.ring.publish();
        f.guest.notify(0);
        // Served at once, the first is done before the second is looked at: then it is only an odd driver.
        if on.uncached {
            assert!(f.needs_reset());
        }
        f.ring = f.guest.start_all();
        assert_eq!(f.request(FLUSH, 0, &[]), (OK, 1));
    }
}

#[test]
fn queues_share_the_disk() {
    for on in everywhere() {
        let image = image();
        let mut guest = on.guest(raw(&image, false), 4, None);
        assert_ne!(guest.offered() & 1 << VIRTIO_BLK_F_MQ, 0);
        assert_eq!(guest.config_u16(34), 4);
        let rings = guest.start_queues(ALL_FEATURES | 1 << VIRTIO_BLK_F_MQ, &[256, 16, 64, 256]);
        let mut rings = rings.into_iter();
        let ring = rings.next().unwrap();
        let mut f = Fixture { guest, ring, image };
        for index in 0..4_u16 {
            let byte = index.to_le_bytes()[0] + 1;
            let data = f.ring.data(&[byte; 512]);
            let status = f.add(OUT, u64::from(index), &[data]);
            f.guest.notify(index);
            f.used();
            assert_eq!(f.ring.contents(status)[0], OK);
            assert_eq!(f.contents()[usize::from(index) * 512], byte);
            if let Some(ring) = rings.next() {
                f.ring = ring;
            }
        }
    }
}

#[test]
fn full_file_system_is_an_error_to_the_guest() {
    for on in everywhere() {
        // Every write to it fails with ENOSPC; its length is that of no disk, so it stands behind one.
        let mut f = Fixture::new(on);
        let full = File::options()
            .read(true)
            .write(true)
            .open("/dev/full")
            .unwrap();
        f.guest.reset();
        let mut block = on.block(raw(&f.image.try_clone().unwrap(), false), 1, None);
        block.disk.engine.attach_file(full);
        f.guest = TestGuest::new(on.transport, block);
        f.ring = f.guest.start(ALL_FEATURES, 256);
        let data = f.ring.data(&[9; 512]);
        assert_eq!(f.request(OUT, 0, &[data]), (IO_ERROR, 1), "{on:?}");
        assert!(!f.needs_reset());
    }
}

#[test]
fn failed_flush_is_not_forgotten_until_the_driver_starts_anew() {
    for on in everywhere() {
        let image = image();
        let disk = FailingFlush {
            disk: *raw(&image, false),
            failures: 1,
        };
        let mut f = Fixture::over(on, image, Box::new(disk), ALL_FEATURES);
        assert_eq!(f.request(FLUSH, 0, &[]), (IO_ERROR, 1));
        // The host has reported the error and forgets it; what was lost is still lost.
        assert_eq!(f.request(FLUSH, 0, &[]), (IO_ERROR, 1));
        let data = f.ring.data(&[9; 512]);
        assert_eq!(f.request(OUT, 0, &[data]), (OK, 1));
        f.ring = f.guest.start_all();
        assert_eq!(f.request(FLUSH, 0, &[]), (OK, 1));
    }
}

/// A disk whose first flushes fail.
struct FailingFlush {
    disk: RawFile,
    failures: u32,
}

impl Backend for FailingFlush {
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
        if job.action == Action::Flush && self.failures > 0 {
            self.failures -= 1;
            return Start::Done(Err(io::Error::from_raw_os_error(libc::EIO)));
        }
        self.disk.start(engine, token, job)
    }
}

#[test]
fn limited_disk_waits_and_goes_on() {
    for on in everywhere() {
        let limit = BucketLimit::new(1, 0, Duration::from_millis(20));
        let limits = RateLimits {
            bandwidth: None,
            ops: limit,
        };
        let limiter = RateLimiter::new(limits).unwrap();
        let image = image();
        let mut guest = on.guest(raw(&image, false), 1, Some(limiter));
        let ring = guest.start(ALL_FEATURES, 256);
        let mut f = Fixture { guest, ring, image };
        let buffer = f.ring.buffer(512, true);
        for _ in 0..3 {
            f.add(IN, 1, &[buffer]);
        }
        f.guest.notify(0);
        assert!(f.ring.pending() <= 1);
        for _ in 0..3 {
            f.used();
        }
        // A limited disk that is reset forgets what waited.
        f.add(IN, 1, &[buffer]);
        f.add(IN, 1, &[buffer]);
        f.guest.notify(0);
        f.ring = f.guest.start_all();
        assert_eq!(f.request(FLUSH, 0, &[]), (OK, 1));
    }
}

#[test]
fn disk_is_replaced_and_grows_under_its_guest() {
    for on in everywhere() {
        let first = image();
        let block = on.block(raw(&first, false), 1, None);
        let control = block.control();
        let mut guest = TestGuest::new(on.transport, block);
        let ring = guest.start(ALL_FEATURES, 256);
        let second = tempfile::tempfile().unwrap();
        second.write_all_at(&[5; 4096], 0).unwrap();
        let mut f = Fixture {
            guest,
            ring,
            image: second.try_clone().unwrap(),
        };
        f.guest.interrupts();
        control.replace(raw(&second, false)).unwrap();
        f.guest.run();
        assert_eq!(f.guest.interrupts(), 1, "the driver is told");
        assert_eq!(f.guest.config_u64(0), 8);
        let buffer = f.ring.buffer(512, true);
        assert_eq!(f.request(IN, 7, &[buffer]), (OK, 513));
        assert_eq!(f.ring.contents(buffer)[0], 5);
        assert_eq!(f.request(IN, 8, &[buffer]).0, IO_ERROR);

        second.set_len(8192).unwrap();
        control.refresh().unwrap();
        f.guest.run();
        assert_eq!(f.guest.config_u64(0), 16);
        assert_eq!(f.request(IN, 8, &[buffer]), (OK, 513));
        // Part of a sector is no length.
        second.set_len(8193).unwrap();
        control.refresh().unwrap();
        f.guest.run();
        assert_eq!(f.guest.config_u64(0), 16);

        let error = control.replace(raw(&first, true)).unwrap_err();
        assert!(error.to_string().contains("read-only"), "{error}");
    }
}

#[test]
fn replacement_and_new_length_asked_for_at_once_are_both_done() {
    for on in everywhere() {
        for replace_first in [true, false] {
            let first = image();
            let block = on.block(raw(&first, false), 1, None);
            let control = block.control();
            let mut guest = TestGuest::new(on.transport, block);
            let ring = guest.start(ALL_FEATURES, 256);
            let second = tempfile::tempfile().unwrap();
            second.write_all_at(&[5; 4096], 0).unwrap();
            let image = second.try_clone().unwrap();
            let mut f = Fixture { guest, ring, image };
            let replacement = raw(&second, false);
            second.set_len(8192).unwrap();
            if replace_first {
                control.replace(replacement).unwrap();
                control.refresh().unwrap();
            } else {
                control.refresh().unwrap();
                control.replace(replacement).unwrap();
            }
            f.guest.run();
            assert_eq!(f.guest.config_u64(0), 16);
            let buffer = f.ring.buffer(512, true);
            assert_eq!(f.request(IN, 7, &[buffer]), (OK, 513));
            assert_eq!(f.ring.contents(buffer)[0], 5);
        }
    }
}

#[test]
fn request_that_could_not_be_waited_for_does_not_end_in_the_next_queue() {
    let on = On {
        transport: Transport::Mmio,
        preference: Preference::Asynchronous,
        uncached: true,
    };
    let memory = crate::virtio::testing::guest_memory();
    let mut block = on.block(raw(&image(), false), 1, None);
    let mut ring = GuestRing::new(memory.clone(), 0, 16);
    let queue = |ring: &GuestRing| {
        let interrupt = Arc::new(crate::virtio::testing::InterruptCounter::default());
        let interrupt = crate::virtio::interrupt::QueueInterrupt::new(interrupt, 0);
        let memory = memory.clone();
        Virtqueue::new(
            &ring.registers(),
            16,
            RING_FEATURES,
            memory,
            interrupt,
            None,
        )
        .unwrap()
    };
    block.start_queue(0, queue(&ring), ALL_FEATURES);
    let header = ring.data(&[[0; 8], [0; 8]].concat());
    let (data, status) = (ring.buffer(512, true), ring.buffer(1, true));
    ring.add(&[header, data, status]);
    let progress = block.take_requests(0).unwrap();
    assert_eq!(progress, Progress::Idle);
    block.disk.engine.submit();
    block.disk.engine.fail_next_wait();
    assert!(block.stop_queue(0).is_some());
    assert!(block.disk.engine.is_busy());

    let mut ring = GuestRing::new(memory.clone(), 1, 16);
    block.start_queue(0, queue(&ring), ALL_FEATURES);
    while block.disk.engine.is_busy() {
        block.disk.engine.wait().unwrap();
        block.take_completions().unwrap();
    }
    assert_eq!(ring.used(), None);
    // Its token is free again, and the queue works.
    assert_eq!(block.disk.free.len(), usize::from(MAX_IN_FLIGHT));
    ring.buffer(0x4000, true);
    let header = ring.data(&[[0; 8], [0; 8]].concat());
    let (data, status) = (ring.buffer(512, true), ring.buffer(1, true));
    let head = ring.add(&[header, data, status]);
    assert_eq!(block.process(0).unwrap(), Progress::Idle);
    assert!(block.stop_queue(0).is_some());
    assert_eq!(ring.used(), Some((head, 513)));
}
