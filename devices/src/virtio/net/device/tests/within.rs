//! Frames that somebody within the VMM answers, and what is counted.

use vmm_sys_util::timerfd::TimerFd;

use super::*;
use crate::metrics::Value;
use crate::virtio::net::interceptor::{MAX_INTERCEPTED, START_LEN};

/// Gives back every frame of one type, as long as it is.
struct Echo {
    frames: Vec<Vec<u8>>,
    timer: TimerFd,
}

/// The type of the frames that [`Echo`] wants.
const WANTED: [u8; 2] = [8, 6];

impl Interceptor for Echo {
    fn wants(&mut self, start: &[u8]) -> bool {
        assert!(start.len() <= START_LEN);
        start[12..14] == WANTED
    }

    fn take(&mut self, frame: &[u8]) {
        self.frames.push(frame.to_vec());
    }

    fn next(&mut self, frame: &mut [u8]) -> Option<usize> {
        let next = (!self.frames.is_empty()).then(|| self.frames.remove(0))?;
        frame[..next.len()].copy_from_slice(&next);
        Some(next.len())
    }

    fn has_next(&mut self) -> bool {
        !self.frames.is_empty()
    }

    fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    fn wake(&mut self) {}

    fn reset(&mut self) {
        self.frames.clear();
    }
}

/// A guest with [`Echo`] on its network, and what its interface counts.
fn echo(on: Transport) -> (Fixture, Arc<dyn Metrics>) {
    let (end, neighbour) = cable();
    let offloads = Arc::default();
    let cable = Cable {
        end,
        offloads: Arc::clone(&offloads),
    };
    let interceptor = Echo {
        frames: Vec::new(),
        timer: TimerFd::new().unwrap(),
    };
    let options = NetOptions {
        mac: MAC,
        mtu: None,
        receive_limiter: limiter(0, 0),
        transmit_limiter: limiter(0, 0),
        interceptor: Some(Box::new(interceptor)),
    };
    let device = Net::new(Box::new(cable), options);
    let metrics = device.metrics().unwrap();
    let mut guest = TestGuest::new(on, device);
    let (rx, tx) = start(&mut guest, MERGE);
    let fixture = Fixture {
        guest,
        neighbour,
        offloads,
        rx,
        tx,
    };
    (fixture, metrics)
}

fn count(metrics: &Arc<dyn Metrics>, wanted: &str) -> u64 {
    let mut found = None;
    metrics.each(&mut |name, value| {
        if let (true, Value::Count(count)) = (name == wanted, value) {
            found = Some(count);
        }
    });
    found.unwrap()
}

/// A frame of `len` bytes from the guest's address, of this type.
fn typed(len: usize, kind: [u8; 2]) -> Vec<u8> {
    let mut frame = frame(len);
    frame[6..12].copy_from_slice(&MAC);
    frame[12..14].copy_from_slice(&kind);
    frame
}

#[test]
fn frames_for_somebody_within_are_answered_and_never_reach_the_network() {
    for &on in Transport::ALL {
        let (mut f, _) = echo(on);
        let mut buffers = f.add_receive_buffers(16, 1000);
        f.guest.notify(0);
        // Shorter than what is looked at, and longer than one buffer of the guest's.
        for len in [14, START_LEN, START_LEN + 1, 4000] {
            let wanted = typed(len, WANTED);
            let head = f.send(PLAIN, &wanted);
            assert_eq!(f.tx.used(), Some((head, 0)));
            assert_eq!(f.received(&mut buffers), Some(wanted), "{len}");
            assert_eq!(f.sent(), None);
            let other = typed(len, [8, 0]);
            f.send(PLAIN, &other);
            f.tx.used().unwrap();
            assert_eq!(f.sent().unwrap()[HEADER_LEN..], other);
            assert_eq!(f.received(&mut buffers), None);
        }
    }
}

#[test]
fn answers_wait_for_buffers_and_end_with_the_driver() {
    for &on in Transport::ALL {
        let (mut f, _) = echo(on);
        let wanted = typed(60, WANTED);
        f.send(PLAIN, &wanted);
        let mut buffers = f.add_receive_buffers(2, 1000);
        f.guest.notify(0);
        assert_eq!(f.received(&mut buffers), Some(wanted.clone()));

        let (mut f, _) = echo(on);
        f.send(PLAIN, &wanted);
        f.guest.reset();
        (f.rx, f.tx) = start(&mut f.guest, MERGE);
        let mut buffers = f.add_receive_buffers(2, 1000);
        f.guest.notify(0);
        assert_eq!(f.received(&mut buffers), None);
    }
}

#[test]
fn a_longer_frame_than_anybody_within_takes_is_cut() {
    for &on in Transport::ALL {
        let (mut f, _) = echo(on);
        let mut buffers = f.add_receive_buffers(16, 1000);
        let wanted = typed(MAX_INTERCEPTED + 100, WANTED);
        f.send(PLAIN, &wanted);
        let answer = f.received(&mut buffers).unwrap();
        assert_eq!(answer, wanted[..MAX_INTERCEPTED]);
    }
}

#[test]
fn frames_are_counted_both_ways() {
    for &on in Transport::ALL {
        let (mut f, metrics) = echo(on);
        let mut buffers = f.add_receive_buffers(4, 2000);
        f.guest.notify(0);
        f.arrive(&frame(100));
        f.guest.run();
        assert_eq!(f.received(&mut buffers).unwrap().len(), 100);
        f.send(PLAIN, &typed(60, [8, 0]));
        // Not from the guest's address.
        f.send(PLAIN, &frame(70));
        f.send(PLAIN, b"no frame");
        for (name, expected) in [
            ("rx_packets_count", 1),
            ("rx_bytes_count", 100),
            ("tx_packets_count", 2),
            ("tx_bytes_count", 130),
            ("tx_malformed_frames", 1),
            ("tx_spoofed_mac_count", 1),
            ("tx_queue_event_count", 4),
            ("tap_write_fails", 0),
            ("event_fails", 0),
        ] {
            assert_eq!(count(&metrics, name), expected, "{name}");
        }
    }
}
