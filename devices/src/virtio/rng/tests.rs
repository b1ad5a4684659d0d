use std::time::Duration;

use super::*;
use crate::rate_limiter::{BucketLimit, RateLimits};
use crate::virtio::testing::{TestGuest, Transport};

fn random_enough(data: &[u8]) -> bool {
    // 64 bytes without a repeated eight-byte group: chance says no only once in 2⁵⁸ runs.
    let groups: std::collections::HashSet<_> = data[..64].chunks(8).collect();
    groups.len() == 8
}

#[test]
fn buffers_are_filled_to_the_last_byte() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        let mut ring = guest.start_all();
        let buffers = [ring.buffer(64, true), ring.buffer(5000, true)];
        let head = ring.add(&buffers);
        guest.notify(0);
        assert_eq!(ring.used(), Some((head, 5064)));
        assert_eq!(guest.interrupts(), 1);
        for buffer in buffers {
            let data = ring.contents(buffer);
            assert!(random_enough(&data));
            assert!(random_enough(&data[data.len() - 64..]));
        }
    }
}

#[test]
fn one_request_gets_no_more_than_the_limit() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        let mut ring = guest.start_all();
        let buffer = ring.buffer(MAX_REQUEST + 100, true);
        let head = ring.add(&[buffer]);
        guest.notify(0);
        assert_eq!(ring.used(), Some((head, MAX_REQUEST)));
        assert_eq!(ring.contents(buffer)[MAX_REQUEST as usize..], [0; 100]);
    }
}

#[test]
fn buffers_the_device_may_not_write_are_given_back_empty() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        let mut ring = guest.start_all();
        let buffer = ring.data(&[7; 64]);
        let head = ring.add(&[buffer]);
        guest.notify(0);
        assert_eq!(ring.used(), Some((head, 0)));
        assert_eq!(ring.contents(buffer), [7; 64]);
    }
}

#[test]
fn two_buffers_differ() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        let mut ring = guest.start_all();
        let buffers = [ring.buffer(64, true), ring.buffer(64, true)];
        for buffer in buffers {
            ring.add(&[buffer]);
        }
        guest.notify(0);
        assert_ne!(ring.contents(buffers[0]), ring.contents(buffers[1]));
    }
}

#[test]
fn a_limited_device_waits_and_goes_on_by_itself() {
    for &on in Transport::ALL {
        let limits = RateLimits {
            bandwidth: None,
            ops: BucketLimit::new(1, 0, Duration::from_millis(50)),
        };
        let mut guest = TestGuest::new(on, Rng::limited(RateLimiter::new(limits).unwrap()));
        let mut ring = guest.start_all();
        for _ in 0..3 {
            let buffer = ring.buffer(64, true);
            ring.add(&[buffer]);
        }
        guest.notify(0);
        assert!(ring.used().is_some());
        assert_eq!(ring.used(), None, "one in 50 ms is permitted");
        for _ in 0..2 {
            while ring.used().is_none() {
                guest.run();
            }
        }
    }
}
