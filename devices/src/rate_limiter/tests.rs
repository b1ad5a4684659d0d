use proptest::prelude::*;

use super::*;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};

fn bucket(size: u64, burst: u64, refill_ms: u64) -> Option<BucketLimit> {
    BucketLimit::new(size, burst, Duration::from_millis(refill_ms))
}

/// Waits until the limiter's source is ready, as a device thread does.
fn wait_for(limiter: &RateLimiter) {
    let epoll = Epoll::new().unwrap();
    let Source { fd, events } = limiter.source();
    let event = EpollEvent::new(events, 0);
    epoll.ctl(ControlOperation::Add, fd, event).unwrap();
    assert_eq!(epoll.wait(-1, &mut [EpollEvent::default()]).unwrap(), 1);
}

#[test]
fn a_limiter_without_limits_is_always_open() {
    let mut limiter = RateLimiter::new(RateLimits::default()).unwrap();
    for _ in 0..1000 {
        assert!(limiter.is_open());
        limiter.charge(u64::MAX);
    }
    assert_eq!((bucket(0, 5, 100), bucket(5, 5, 0)), (None, None));
}

#[test]
fn debt_is_paid_before_the_next_request() {
    let limits = RateLimits {
        bandwidth: bucket(1000, 0, 1000),
        ops: None,
    };
    let mut limiter = RateLimiter::new(limits).unwrap();
    let start = Instant::now();
    assert!(limiter.is_open_at(start));
    limiter.charge(3000);
    // 2000 of debt and one token: 2.001 s.
    assert!(!limiter.is_open_at(start));
    assert!(!limiter.is_open_at(start + Duration::from_millis(1990)));
    assert!(limiter.is_open_at(start + Duration::from_millis(2002)));
}

#[test]
fn the_burst_comes_once() {
    let start = Instant::now();
    let mut tokens = TokenBucket::new(bucket(10, 5, 1000).unwrap(), start);
    tokens.charge(15);
    assert!(!tokens.wait(start).is_zero());
    let later = start + Duration::from_secs(60);
    tokens.wait(later);
    tokens.charge(10);
    assert_eq!(tokens.wait(later), Duration::from_millis(100));
}

#[test]
fn the_scarcer_bucket_decides() {
    let limits = RateLimits {
        bandwidth: bucket(1 << 30, 0, 1),
        ops: bucket(2, 0, 1000),
    };
    let mut limiter = RateLimiter::new(limits).unwrap();
    let start = Instant::now();
    for _ in 0..2 {
        assert!(limiter.is_open_at(start));
        limiter.charge(1);
    }
    assert!(!limiter.is_open_at(start));
    assert!(limiter.is_open_at(start + Duration::from_millis(501)));
}

#[test]
fn timer_wakes_who_was_refused_and_new_limits_wake_at_once() {
    let limits = RateLimits {
        bandwidth: None,
        ops: bucket(1, 0, 3_600_000),
    };
    let mut limiter = RateLimiter::new(limits).unwrap();
    limiter.charge(0);
    assert!(!limiter.is_open());
    let control = limiter.control();
    let limits = RateLimits {
        bandwidth: None,
        ops: bucket(1, 0, 1),
    };
    std::thread::spawn(move || control.set(limits).unwrap());
    wait_for(&limiter);
    assert!(limiter.is_open());
    limiter.charge(0);
    assert!(!limiter.is_open());
    wait_for(&limiter);
    assert!(limiter.is_open());
    limiter.control().set(RateLimits::default()).unwrap();
    for _ in 0..1000 {
        assert!(limiter.is_open());
        limiter.charge(1);
    }
}

proptest! {
    /// Over any run, no more passes than the bucket, the burst, what time brings, and the last request's overdraft; and
    /// a device that always waits as told gets all of it.
    #[test]
    fn what_passes_is_what_the_limit_says(
        size in 1_u64..1_000_000,
        burst in 0_u64..1_000_000,
        refill_ms in 1_u64..100_000,
        requests in prop::collection::vec(1_u64..3_000_000, 1..100),
    ) {
        let start = Instant::now();
        let mut tokens = TokenBucket::new(bucket(size, burst, refill_ms).unwrap(), start);
        let mut now = start;
        let mut passed = 0_u128;
        for request in requests {
            let before = passed;
            let wait = tokens.wait(now);
            if !wait.is_zero() {
                // Not a nanosecond too early, not one too late.
                prop_assert!(!tokens.clone().wait(now + wait - Duration::from_nanos(1)).is_zero());
            }
            now += wait;
            prop_assert!(tokens.wait(now).is_zero());
            tokens.charge(request);
            passed += u128::from(request);
            let came = (now - start).as_nanos() * u128::from(size) / (u128::from(refill_ms) * 1_000_000);
            prop_assert!(before < u128::from(size) + u128::from(burst) + came);
            if !wait.is_zero() {
                prop_assert_eq!(before + 1, u128::from(size) + u128::from(burst) + came);
            }
        }
    }

    /// How often it is asked changes nothing.
    #[test]
    fn tokens_are_not_lost_by_asking(steps in prop::collection::vec(1_u64..10_000_000, 1..200)) {
        let limit = bucket(1_000_003, 0, 7).unwrap();
        let start = Instant::now();
        let mut often = TokenBucket::new(limit, start);
        often.charge(u64::MAX);
        let mut once = often.clone();
        let mut now = start;
        for step in steps {
            now += Duration::from_nanos(step);
            often.wait(now);
        }
        prop_assert_eq!(often.wait(now), once.wait(now));
    }

    #[test]
    fn no_numbers_overflow(
        size in 1_u64..,
        burst in any::<u64>(),
        refill_ms in 1_u64..,
        charges in prop::collection::vec((any::<u64>(), any::<u32>()), 0..50),
    ) {
        let mut now = Instant::now();
        let mut limiter = RateLimiter::new(RateLimits {
            bandwidth: bucket(size, burst, refill_ms),
            ops: bucket(size, burst, refill_ms),
        }).unwrap();
        for (charge, seconds) in charges {
            limiter.charge(charge);
            now += Duration::from_secs(seconds.into());
            limiter.is_open_at(now);
        }
    }
}
