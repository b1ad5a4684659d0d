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
    timer: TimerFd,
    /// When the armed timer fires.
    reopens: Option<Instant>,
    failures: Throttle,
}

impl RateLimiter {
    /// A limiter with full buckets.
    pub fn new(limits: RateLimits) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            bandwidth: limits.bandwidth.map(|limit| TokenBucket::new(limit, now)),
            ops: limits.ops.map(|limit| TokenBucket::new(limit, now)),
            timer: TimerFd::new()?,
            reopens: None,
            failures: Throttle::default(),
        })
    }

    /// Whether the next request may start. If not, the source will be ready when it may.
    pub fn is_open(&mut self) -> bool {
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
        if let Err(error) = self.timer.reset(wait, None) {
            // A device that is never woken would stand still for ever: rather no limit.
            self.failures.warn(format_args!(
                "The timer of a rate limiter cannot be set: {error}"
            ));
            return true;
        }
        self.reopens = now.checked_add(wait);
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

    /// Puts new limits into force, with full buckets, and wakes the device if it waits for the old ones.
    pub fn set_limits(&mut self, limits: RateLimits) {
        let now = Instant::now();
        self.bandwidth = limits.bandwidth.map(|limit| TokenBucket::new(limit, now));
        self.ops = limits.ops.map(|limit| TokenBucket::new(limit, now));
        if self.reopens.take().is_some()
            && let Err(error) = self.timer.reset(Duration::from_nanos(1), None)
        {
            self.failures.warn(format_args!(
                "The timer of a rate limiter cannot be set: {error}"
            ));
        }
    }

    /// Ready when a closed limiter is open again. Needs no reading: it is an edge.
    pub fn source(&self) -> Source {
        Source {
            fd: self.timer.as_raw_fd(),
            events: EventSet::IN | EventSet::EDGE_TRIGGERED,
        }
    }
}

#[cfg(test)]
mod tests;
