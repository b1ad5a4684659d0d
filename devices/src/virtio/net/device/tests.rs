mod within;

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proptest::prelude::*;

use super::*;
use crate::rate_limiter::{BucketLimit, RateLimits};
use crate::virtio::net::{HEADER_LEN, MAX_FRAME, Unplugged};
use crate::virtio::queue::RING_FEATURES;
use crate::virtio::state::{DRIVER_OK, NEEDS_RESET};
use crate::virtio::testing::{Buffer, GuestRing, TestGuest, Transport};

const MAC: [u8; 6] = [2, 1, 2, 3, 4, 5];
const MERGE: u64 = RING_FEATURES | 1 << VIRTIO_NET_F_MRG_RXBUF;
/// A header that asks for nothing.
const PLAIN: [u8; HEADER_LEN] = [0; HEADER_LEN];

/// A network of one neighbour, with a tap's manners: one frame for each call, and only so much waits.
struct Cable {
    end: File,
    offloads: Arc<Mutex<Vec<Offloads>>>,
}

impl Backend for Cable {
    fn fd(&self) -> RawFd {
        self.end.as_raw_fd()
    }

    fn cuts_udp(&self) -> bool {
        true
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.offloads.lock().unwrap().push(offloads);
        Ok(())
    }
}

struct Fixture {
    guest: TestGuest,
    neighbour: File,
    offloads: Arc<Mutex<Vec<Offloads>>>,
    rx: GuestRing,
    tx: GuestRing,
}

/// The two ends of a cable.
fn cable() -> (File, File) {
    let kind = SockType::SeqPacket;
    let (a, b) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_NONBLOCK).unwrap();
    (a.into(), b.into())
}

fn limiter(ops: u64, millis: u64) -> RateLimiter {
    let ops = BucketLimit::new(ops, 0, Duration::from_millis(millis));
    RateLimiter::new(RateLimits {
        bandwidth: None,
        ops,
    })
    .unwrap()
}

impl Fixture {
    fn new(on: Transport, features: u64) -> Self {
        Self::limited(on, features, limiter(0, 0), limiter(0, 0))
    }

    fn limited(on: Transport, features: u64, receive: RateLimiter, transmit: RateLimiter) -> Self {
        let (end, neighbour) = cable();
        let offloads = Arc::default();
        let cable = Cable {
            end,
            offloads: Arc::clone(&offloads),
        };
        let options = NetOptions {
            mac: MAC,
            mtu: Some(1400),
            receive_limiter: receive,
            transmit_limiter: transmit,
            interceptor: None,
        };
        let mut guest = TestGuest::new(on, Net::new(Box::new(cable), options));
        let (rx, tx) = start(&mut guest, features);
        Self {
            guest,
            neighbour,
            offloads,
            rx,
            tx,
        }
    }

    /// Sends `frame` to the guest, after a header.
    fn arrive(&self, frame: &[u8]) {
        let sent = (&self.neighbour).write(&[&PLAIN, frame].concat());
        assert_eq!(sent.unwrap(), HEADER_LEN + frame.len());
    }

    /// What the guest has sent, header and frame.
    fn sent(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2 * MAX_FRAME];
        match (&self.neighbour).read(&mut frame) {
            Ok(len) => Some(frame[..len].to_vec()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                None
            }
        }
    }

    /// Lets the guest send `frame` in one buffer.
    fn send(&mut self, header: [u8; HEADER_LEN], frame: &[u8]) -> u16 {
        let buffer = self.tx.data(&[&header, frame].concat());
        let head = self.tx.add(&[buffer]);
        self.guest.notify(1);
        head
    }

    fn add_receive_buffers(&mut self, count: u16, len: u32) -> Vec<(u16, Buffer)> {
        (0..count)
            .map(|_| {
                let buffer = self.rx.buffer(len, true);
                (self.rx.add(&[buffer]), buffer)
            })
            .collect()
    }

    /// The next frame the guest gets in `buffers`, which are taken from the front.
    fn received(&mut self, buffers: &mut Vec<(u16, Buffer)>) -> Option<Vec<u8>> {
        let mut frame = Vec::new();
        let mut rest = 1;
        while rest > 0 {
            let Some((head, len)) = self.rx.used() else {
                assert!(frame.is_empty(), "a frame comes in parts");
                return None;
            };
            let (expected, buffer) = buffers.remove(0);
            assert_eq!(head, expected);
            let part = &self.rx.contents(buffer)[..len as usize];
            if frame.is_empty() {
                rest = u16::from_le_bytes([part[10], part[11]]);
            }
            frame.extend_from_slice(part);
            rest -= 1;
        }
        Some(frame.split_off(HEADER_LEN))
    }
}

fn start(guest: &mut TestGuest, features: u64) -> (GuestRing, GuestRing) {
    let mut rings = guest.start_queues(features, &[64, 64]);
    let (mut tx, rx) = (rings.remove(1), rings.remove(0));
    // Both rings take buffers from the same memory: receive in the first half, transmit in the second.
    tx.buffer(0x3_8000, false);
    (rx, tx)
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 253).unwrap()).collect()
}

#[test]
fn frames_from_before_driver_ok_are_received() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on, MERGE);
        assert!(f.guest.negotiate(MERGE));
        f.rx = GuestRing::new(f.guest.memory.clone(), 0, 256);
        f.guest.set_queue(0, &f.rx.registers());
        let mut buffers = f.add_receive_buffers(1, 2000);
        f.arrive(b"early");
        f.guest.notify(0);
        assert!(f.guest.add_status(DRIVER_OK));
        f.guest.run();
        assert_eq!(f.received(&mut buffers).unwrap(), b"early");
    }
}

#[test]
fn configuration_tells_address_status_and_mtu() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on, MERGE);
        let mut config = [0; 12];
        f.guest.read_config(0, &mut config);
        assert_eq!(config[..6], MAC);
        assert_eq!(config[6..], [1, 0, 1, 0, 0x78, 0x05]);
    }
}

#[test]
fn what_the_driver_can_receive_is_set_on_the_backend_and_forgotten_at_reset() {
    for &on in Transport::ALL {
        let features = MERGE
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_USO6;
        let mut f = Fixture::new(on, features);
        let wanted = Offloads {
            checksum: true,
            tso4: true,
            uso6: true,
            ..Offloads::default()
        };
        assert_eq!(f.offloads.lock().unwrap().last(), Some(&wanted));
        f.guest.reset();
        let last = f.offloads.lock().unwrap().last().copied();
        assert_eq!(last, Some(Offloads::default()));
        // Segments without checksums do not exist.
        start(&mut f.guest, MERGE | 1 << VIRTIO_NET_F_GUEST_TSO4);
        let last = f.offloads.lock().unwrap().last().copied();
        assert_eq!(last, Some(Offloads::default()));
    }
}

#[test]
fn frames_go_both_ways_with_one_interrupt_for_a_burst() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on, MERGE);
        let mut buffers = f.add_receive_buffers(8, 256);
        f.guest.notify(0);
        for len in [60, 61, 62] {
            f.arrive(&frame(len));
        }
        f.guest.run();
        assert_eq!(f.guest.interrupts(), 1);
        for len in [60, 61, 62] {
            assert_eq!(f.received(&mut buffers), Some(frame(len)));
        }
        let head = f.send(PLAIN, &frame(100));
        assert_eq!(f.tx.used(), Some((head, 0)));
        assert_eq!(f.sent().unwrap(), [&PLAIN[..], &frame(100)].concat());
    }
}

#[test]
fn flood_without_buffers_costs_nothing_and_ends_when_there_are_some() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on, MERGE);
        let mut arrived = 0;
        while (&f.neighbour).write(&[0; 15_012]).is_ok() {
            arrived += 1;
            assert!(f.guest.run() <= 1, "one look for each edge at most");
        }
        assert!(arrived > 1, "the neighbour sends until the cable is full");
        assert_eq!(f.guest.run(), 0, "the device sleeps");
        let mut buffers = f.add_receive_buffers(arrived, 15_012);
        f.guest.notify(0);
        for _ in 0..arrived {
            let frame = f.received(&mut buffers);
            assert_eq!(frame.map(|frame| frame.len()), Some(15_000));
        }
        // And again, to the same driver.
        f.arrive(&frame(60));
        f.guest.run();
        assert_eq!(f.received(&mut buffers), None);
        buffers.extend(f.add_receive_buffers(1, 128));
        f.guest.notify(0);
        assert_eq!(f.received(&mut buffers), Some(frame(60)));
    }
}

#[test]
fn a_frame_longer_than_the_ring_waits_for_the_rest_of_its_buffers() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on, MERGE);
        let mut buffers = f.add_receive_buffers(2, 100);
        f.guest.notify(0);
        f.arrive(&frame(350));
        f.arrive(&frame(60));
        f.guest.run();
        assert_eq!(f.received(&mut buffers), None);
        buffers.extend(f.add_receive_buffers(1, 100));
        f.guest.notify(0);
        assert_eq!(f.received(&mut buffers), None);
        buffers.extend(f.add_receive_buffers(2, 100));
        f.guest.notify(0);
        assert_eq!(f.received(&mut buffers), Some(frame(350)));
        assert_eq!(f.received(&mut buffers), Some(frame(60)));
    }
}

#[test]
fn frames_that_can_never_fit_are_dropped() {
    for &on in Transport::ALL {
        // Without merging, a frame has one buffer; with it, at most the whole ring.
        for (features, count, len) in [(RING_FEATURES, 1, 200), (MERGE, 64, 20)] {
            let mut f = Fixture::new(on, features);
            let mut buffers = f.add_receive_buffers(count, len);
            f.guest.notify(0);
            f.arrive(&frame(1400));
            f.arrive(&frame(60));
            f.guest.run();
            assert_eq!(f.received(&mut buffers), Some(frame(60)));
            assert_eq!(f.guest.status() & NEEDS_RESET, 0);
        }
    }
}

#[test]
fn receive_buffers_of_the_wrong_kind_need_a_reset_and_get_it() {
    for &on in Transport::ALL {
        for (len, writable) in [(11, true), (100, false)] {
            let mut f = Fixture::new(on, MERGE);
            let buffer = f.rx.buffer(len, writable);
            f.rx.add(&[buffer]);
            f.guest.notify(0);
            assert_ne!(f.guest.status() & NEEDS_RESET, 0);
            f.arrive(&frame(60));
            f.guest.run();
            (f.rx, f.tx) = start(&mut f.guest, MERGE);
            let mut buffers = f.add_receive_buffers(1, 100);
            f.guest.notify(0);
            assert_eq!(f.received(&mut buffers), Some(frame(60)));
        }
    }
}

#[test]
fn full_backend_holds_frames_up_and_loses_none() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on, MERGE);
        // More than the cable holds; they differ in length, so one piece of memory serves for all.
        let lens = 20_000..20_040_u32;
        fill(&mut f, lens.clone());
        let done = std::iter::from_fn(|| f.tx.used()).count();
        assert!((1..40).contains(&done), "{done} of 40 frames are taken");
        assert_eq!(f.guest.run(), 0, "the device sleeps");
        for len in lens {
            assert_eq!(f.sent().unwrap().len(), len as usize);
            f.guest.run();
        }
        assert_eq!(done + std::iter::from_fn(|| f.tx.used()).count(), 40);
        assert_eq!(f.sent(), None);
    }
}

/// Lets the guest send frames of these lengths, header included, more than the cable holds.
fn fill(f: &mut Fixture, lens: std::ops::Range<u32>) {
    let memory = f.tx.data(&[0; 21_000]);
    for len in lens {
        f.tx.add(&[Buffer { len, ..memory }]);
        f.guest.notify(1);
    }
}

#[test]
fn reset_with_frames_held_up_both_ways_starts_anew() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on, MERGE);
        f.add_receive_buffers(2, 100);
        f.guest.notify(0);
        f.arrive(&frame(350));
        fill(&mut f, 20_000..20_040);
        f.guest.reset();
        while f.sent().is_some() {}
        f.guest.run();
        (f.rx, f.tx) = start(&mut f.guest, MERGE);
        let mut buffers = f.add_receive_buffers(2, 100);
        f.guest.notify(0);
        f.arrive(&frame(60));
        f.guest.run();
        assert_eq!(f.received(&mut buffers), Some(frame(60)));
        f.send(PLAIN, &frame(70));
        assert_eq!(f.sent().unwrap()[HEADER_LEN..], frame(70));
    }
}

#[test]
fn bad_frames_are_dropped_and_good_ones_after_them_sent() {
    let cut = |flags, kind, size| [flags, kind, 0, 0, size, 0, 0, 0, 0, 0, 0, 0];
    for &on in Transport::ALL {
        let features = MERGE
            | 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1_u64 << VIRTIO_NET_F_HOST_USO;
        let mut f = Fixture::new(on, features);
        for (header, len) in [
            // Not agreed upon, or no kind at all; then without checksum, without size, marked.
            (cut(1, 4, 1), 60),
            (cut(1, 3, 1), 60),
            (cut(1, 77, 1), 60),
            (cut(0, 1, 1), 60),
            (cut(1, 1, 0), 60),
            (cut(1, 0x81, 1), 60),
            (cut(1, 0x85, 1), 60),
            // Of wrong length.
            (PLAIN, 0),
            (PLAIN, 13),
            (PLAIN, MAX_FRAME + 1),
        ] {
            let head = f.send(header, &vec![0; len]);
            assert_eq!(f.tx.used(), Some((head, 0)), "{header:?} {len}");
            assert_eq!(f.sent(), None, "{header:?} {len}");
            if len > MAX_FRAME {
                (f.rx, f.tx) = start(&mut f.guest, features);
            }
        }
        // Shorter than the header, and nothing to read at all.
        for writable in [true, false] {
            let buffer = f.tx.buffer(11, writable);
            let head = f.tx.add(&[buffer]);
            f.guest.notify(1);
            assert_eq!(f.tx.used(), Some((head, 0)));
        }
        for header in [PLAIN, cut(1, 1, 1), cut(1, 5, 1)] {
            f.send(header, &frame(60));
            assert_eq!(f.sent().unwrap()[..HEADER_LEN], header);
        }
        // Flags meant for frames to the driver are no concern of the host's.
        f.send([0xfe, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 9], &frame(60));
        assert_eq!(f.sent().unwrap()[..HEADER_LEN], PLAIN);
        assert_eq!(f.guest.status() & NEEDS_RESET, 0);
    }
}

#[test]
fn checksums_are_left_out_only_where_agreed_upon() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on, MERGE);
        f.send([1, 0, 0, 0, 0, 0, 14, 0, 0, 0, 0, 0], &frame(60));
        assert_eq!(f.sent(), None);
    }
}

#[test]
fn lost_backend_takes_the_link_down_and_nothing_else() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on, MERGE);
        f.add_receive_buffers(1, 100);
        f.guest.notify(0);
        f.guest.acknowledge();
        // The other end is closed; from here on there is nobody.
        f.neighbour = cable().0;
        f.guest.run();
        assert_eq!(f.guest.acknowledge(), 2, "the configuration has changed");
        assert_eq!(f.guest.config_u16(6), 0, "link down");
        let head = f.send(PLAIN, &frame(60));
        assert_eq!(f.tx.used(), Some((head, 0)));
        assert_eq!(f.guest.run(), 0);
        assert_eq!(f.guest.status() & NEEDS_RESET, 0);
    }
}

#[test]
fn interface_without_a_network_has_no_link_and_takes_what_is_sent() {
    for &on in Transport::ALL {
        let options = NetOptions {
            mac: MAC,
            mtu: None,
            receive_limiter: limiter(0, 0),
            transmit_limiter: limiter(0, 0),
            interceptor: None,
        };
        let nowhere = Unplugged::new().unwrap();
        let mut guest = TestGuest::new(on, Net::new(Box::new(nowhere), options));
        // Whatever a driver has agreed upon with a tap.
        let (_, mut tx) = start(
            &mut guest,
            MERGE | 1 << VIRTIO_NET_F_GUEST_CSUM | 1_u64 << VIRTIO_NET_F_GUEST_USO4,
        );
        guest.run();
        assert_eq!(guest.acknowledge() & 2, 2, "the configuration has changed");
        assert_eq!(guest.config_u16(6), 0, "link down");
        let buffer = tx.data(&[&PLAIN[..], &frame(60)].concat());
        let head = tx.add(&[buffer]);
        guest.notify(1);
        assert_eq!(tx.used(), Some((head, 0)));
        assert_eq!(guest.run(), 0, "and then there is nothing to do");
        assert_eq!(guest.status() & NEEDS_RESET, 0);
    }
}

#[test]
fn limited_directions_wait_and_go_on_by_themselves() {
    for &on in Transport::ALL {
        let mut f = Fixture::limited(on, MERGE, limiter(2, 60), limiter(2, 60));
        let mut buffers = f.add_receive_buffers(5, 100);
        f.guest.notify(0);
        for i in 0..5 {
            f.arrive(&frame(60 + i));
            f.send(PLAIN, &frame(70 + i));
        }
        f.guest.run();
        let at_once = std::iter::from_fn(|| f.sent()).count();
        assert!(at_once < 5);
        let mut received = Vec::new();
        let mut sent = at_once;
        while received.len() < 5 || sent < 5 {
            f.guest.run();
            received.extend(f.received(&mut buffers));
            sent += usize::from(f.sent().is_some());
        }
        assert_eq!(received, (60..65).map(frame).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the driver lays a frame out, it arrives as it is.
    #[test]
    fn layout_of_a_sent_frame_does_not_matter(
        cuts in prop::collection::vec(1_usize..500, 0..20),
        len in 14_usize..3000,
        indirect in any::<bool>(),
    ) {
        for &on in Transport::ALL {
            let mut f = Fixture::new(on, MERGE);
            let data = [&PLAIN[..], &frame(len)].concat();
            let mut rest = &data[..];
            let mut buffers = Vec::new();
            for &cut in &cuts {
                let (piece, more) = rest.split_at(cut.min(rest.len() - 1));
                if !piece.is_empty() {
                    buffers.push(f.tx.data(piece));
                }
                rest = more;
            }
            buffers.push(f.tx.data(rest));
            let head = if indirect { f.tx.add_indirect(&buffers) } else { f.tx.add(&buffers) };
            f.guest.notify(1);
            prop_assert_eq!(f.tx.used(), Some((head, 0)));
            prop_assert_eq!(f.sent(), Some(data));
        }
    }

    /// Whatever buffers the driver gives and when, frames arrive whole, in order and none twice.
    #[test]
    fn layout_of_receive_buffers_does_not_matter(
        rounds in prop::collection::vec((prop::collection::vec((12_u32..600, 1_u32..600), 0..6), 14_usize..1500), 1..6),
    ) {
        for &on in Transport::ALL {
            let mut f = Fixture::new(on, MERGE);
            let mut buffers = Vec::new();
            let mut expected = Vec::new();
            let mut received = Vec::new();
            for (lens, len) in &rounds {
                for &(first, second) in lens {
                    // One request of two buffers; what is in it is read back as one.
                    let whole = f.rx.buffer(first + second, true);
                    let a = Buffer { len: first, ..whole };
                    let b = Buffer { address: whole.address + u64::from(first), len: second, ..whole };
                    buffers.push((f.rx.add(&[a, b]), whole));
                }
                f.arrive(&frame(*len));
                expected.push(frame(*len));
                f.guest.notify(0);
                while let Some(frame) = f.received(&mut buffers) {
                    received.push(frame);
                }
            }
            buffers.extend(f.add_receive_buffers(20, 600));
            f.guest.notify(0);
            while let Some(frame) = f.received(&mut buffers) {
                received.push(frame);
            }
            prop_assert_eq!(received, expected);
        }
    }

    /// Any header and any frame end in a sent frame or a dropped one.
    #[test]
    fn hostile_frames_do_no_harm(
        features in any::<u64>(),
        requests in prop::collection::vec((any::<[u8; HEADER_LEN]>(), prop::collection::vec((any::<u16>(), any::<bool>()), 1..5)), 1..20),
    ) {
        for &on in Transport::ALL {
            let (end, _neighbour) = cable();
            let cable = Cable { end, offloads: Arc::default() };
            let options = NetOptions {
                mac: MAC,
                mtu: None,
                receive_limiter: limiter(0, 0),
                transmit_limiter: limiter(0, 0),
                interceptor: None,
            };
            let mut guest = TestGuest::new(on, Net::new(Box::new(cable), options));
            let features = features & guest.offered() | MERGE;
            let (mut rx, mut tx) = start(&mut guest, features);
            for (header, buffers) in &requests {
                let head = tx.data(header);
                let buffers: Vec<_> = buffers.iter().map(|&(len, writable)| {
                    Buffer { address: 0x2_0000, len: u32::from(len).max(1), writable }
                }).collect();
                tx.add(&[&[head], &buffers[..]].concat());
                rx.add(&buffers);
                guest.notify(0);
                guest.notify(1);
            }
        }
    }
}
