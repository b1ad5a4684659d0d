//! Rate limits by token buckets, with the parameters of Firecracker's API.
//!
//! A request starts when every bucket has a token; it may overdraw, and the debt is paid before the next one starts.
//! So a device need not know how long a request is before it is taken (a frame waiting in a tap), a request larger than
//! the bucket passes, and the rate over time is exact. A device asks [`RateLimiter::is_open`] before it takes a request
//! and [`RateLimiter::charge`]s what it moved; when the limiter was closed, its [`RateLimiter::source`] wakes the device
//! as soon as it is open again.

mod bucket;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_manager::EventSet;
use vmm_sys_util::timerfd::TimerFd;

pub use self::bucket::{BucketLimit, TokenBucket};
use crate::throttle::Throttle;
use crate::virtio::device::Source;

/// The shortest wait: a limiter of millions of tokens per second must not cost a wake-up for each of them.
const SHORTEST_WAIT: Duration = Duration::from_micros(100);
/// The longest wait: after it the limiter is asked again. Keeps absurd limits within what a timer takes.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The limits of one direction of one device; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Bytes.
    pub bandwidth: Option<BucketLimit>,
    /// Requests or frames.
    pub ops: Option<BucketLimit>,
}

/// Says when a device may take its next request.
#[derive(Debug)]
pub struct RateLimiter {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
    shared: Arc<Shared>,
    /// When the armed timer fires.
    reopens: Option<Instant>,
    failures: Throttle,
}

/// What a limiter has in common with its controls.
#[derive(Debug)]
struct Shared {
    timer: Mutex<TimerFd>,
    /// There are new limits: looked at before every request, so it must cost nothing.
    changed: AtomicBool,
    limits: Mutex<RateLimits>,
}

impl Shared {
    fn reset_timer(&self, wait: Duration) -> io::Result<()> {
        let mut timer = lock(&self.timer);
        timer.reset(wait, None).map_err(Into::into)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Changes the limits of a device that a guest has, from any thread.
#[derive(Clone, Debug)]
pub struct LimitsControl(Arc<Shared>);

impl LimitsControl {
    /// Puts `limits` into force, with full buckets, before the next request. A device that waits goes on.
    pub fn set(&self, limits: RateLimits) -> io::Result<()> {
        *lock(&self.0.limits) = limits;
        self.0.changed.store(true, Ordering::Release);
        self.0.reset_timer(Duration::from_nanos(1))
    }
}

impl RateLimiter {
    /// A limiter with full buckets.
    pub fn new(limits: RateLimits) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            bandwidth: limits.bandwidth.map(|limit| TokenBucket::new(limit, now)),
            ops: limits.ops.map(|limit| TokenBucket::new(limit, now)),
            shared: Arc::new(Shared {
                timer: Mutex::new(TimerFd::new()?),
                changed: AtomicBool::new(false),
                limits: Mutex::new(limits),
            }),
            reopens: None,
            failures: Throttle::default(),
        })
    }

    /// Changes the limits later.
    pub fn control(&self) -> LimitsControl {
        LimitsControl(self.shared.clone())
    }

    fn take_change(&mut self) -> bool {
        // The load alone is what it costs where nothing changes.
        let changed = self.shared.changed.load(Ordering::Relaxed)
            && self.shared.changed.swap(false, Ordering::Acquire);
        if changed {
            let limits = *lock(&self.shared.limits);
            let now = Instant::now();
            self.bandwidth = limits.bandwidth.map(|limit| TokenBucket::new(limit, now));
            self.ops = limits.ops.map(|limit| TokenBucket::new(limit, now));
            self.reopens = None;
        }
        changed
    }

    /// Whether the next request may start. If not, the source will be ready when it may.
    pub fn is_open(&mut self) -> bool {
        self.take_change();
        if self.bandwidth.is_none() && self.ops.is_none() {
            return true;
        }
        self.is_open_at(Instant::now())
    }

    /// As [`is_open`](Self::is_open), at the time `now`.
    pub fn is_open_at(&mut self, now: Instant) -> bool {
        let buckets = self.bandwidth.iter_mut().chain(&mut self.ops);
        let wait = buckets
            .map(|bucket| bucket.wait(now))
            .max()
            .unwrap_or_default();
        if wait.is_zero() {
            return true;
        }
        if self.reopens.is_some_and(|reopens| reopens > now) {
            return false;
        }
        let wait = wait.clamp(SHORTEST_WAIT, LONGEST_WAIT);
        if let Err(error) = self.shared.reset_timer(wait) {
            // A device that is never woken would stand still for ever: rather no limit.
            self.failures.warn(format_args!(
                "The timer of a rate limiter cannot be set: {error}"
            ));
            return true;
        }
        self.reopens = now.checked_add(wait);
        // New limits that came in before the timer was set have woken nobody.
        if self.take_change() {
            return self.is_open_at(Instant::now());
        }
        false
    }

    /// Takes one operation and `bytes` from the buckets.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.ops {
            bucket.charge(1);
        }
        if let Some(bucket) = &mut self.bandwidth {
            bucket.charge(bytes);
        }
    }

    /// Ready when a closed limiter is open again. Needs no reading: it is an edge.
    pub fn source(&self) -> Source {
        Source {
            fd: lock(&self.shared.timer).as_raw_fd(),
            events: EventSet::IN | EventSet::EDGE_TRIGGERED,
        }
    }
}

#[cfg(test)]
mod tests;
