//! One token bucket. All arithmetic is exact: no token is lost or won by rounding, however often it is asked.

use std::time::{Duration, Instant};

/// Parameters of a bucket, none of them zero but the burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketLimit {
    size: u64,
    one_time_burst: u64,
    refill: Duration,
}

impl BucketLimit {
    /// A bucket of `size` tokens that an empty one needs `refill` to be filled with, and `one_time_burst` tokens more
    /// at the start. `None`, meaning no limit, where size or time is zero (Firecracker's rule).
    pub fn new(size: u64, one_time_burst: u64, refill: Duration) -> Option<Self> {
        (size > 0 && !refill.is_zero()).then_some(Self {
            size,
            one_time_burst,
            refill,
        })
    }

    /// Most tokens that come by time.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn refill_nanos(&self) -> u128 {
        self.refill.as_nanos()
    }
}

/// A bucket with a limit, and what is in it.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    limit: BucketLimit,
    burst: u64,
    /// Tokens, or debt where it is negative.
    balance: i128,
    /// What has come of the next token, in parts of the refill time in nanoseconds.
    fraction: u128,
    updated: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(limit: BucketLimit, now: Instant) -> Self {
        Self {
            limit,
            burst: limit.one_time_burst,
            balance: limit.size.into(),
            fraction: 0,
            updated: now,
        }
    }

    /// Puts in what came since the last call.
    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.updated);
        self.updated = self.updated.max(now);
        // Nanoseconds of 584 years: beyond that the bucket is as full as it gets.
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let parts = (u128::from(nanos) * u128::from(self.limit.size)).saturating_add(self.fraction);
        let refill = self.limit.refill_nanos();
        let tokens = i128::try_from(parts / refill).unwrap_or(i128::MAX);
        self.balance = self.balance.saturating_add(tokens);
        self.fraction = parts % refill;
        let size = i128::from(self.limit.size);
        if self.balance >= size {
            (self.balance, self.fraction) = (size, 0);
        }
    }

    /// How long until there is a token: zero where there is one now.
    pub fn wait(&mut self, now: Instant) -> Duration {
        self.refill(now);
        if self.burst > 0 || self.balance > 0 {
            return Duration::ZERO;
        }
        let missing = (1 - self.balance).unsigned_abs();
        let parts = missing.saturating_mul(self.limit.refill_nanos());
        let nanos = parts
            .saturating_sub(self.fraction)
            .div_ceil(self.limit.size.into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Takes `tokens` out, those of the one-time burst first.
    pub fn charge(&mut self, tokens: u64) {
        let of_burst = tokens.min(self.burst);
        self.burst -= of_burst;
        self.balance = self.balance.saturating_sub((tokens - of_burst).into());
    }
}
