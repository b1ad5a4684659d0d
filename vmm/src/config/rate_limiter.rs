//! Rate limits of a device.

use std::time::Duration;

use devices::rate_limiter::{BucketLimit, RateLimits};

/// One token bucket as Firecracker's API describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketConfig {
    /// Tokens (bytes or operations) that come in `refill_time_ms`, and the most that are kept.
    pub size: u64,
    /// Tokens the device has in addition at the start, once.
    pub one_time_burst: u64,
    /// Milliseconds until an empty bucket is full.
    pub refill_time_ms: u64,
}

/// Limits of one direction of a device. A bucket whose size or refill time is zero is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimiterConfig {
    /// Limit of bytes.
    pub bandwidth: Option<BucketConfig>,
    /// Limit of operations.
    pub ops: Option<BucketConfig>,
}

impl From<RateLimiterConfig> for RateLimits {
    fn from(config: RateLimiterConfig) -> Self {
        let limit = |bucket: BucketConfig| {
            let refill = Duration::from_millis(bucket.refill_time_ms);
            BucketLimit::new(bucket.size, bucket.one_time_burst, refill)
        };
        Self {
            bandwidth: config.bandwidth.and_then(limit),
            ops: config.ops.and_then(limit),
        }
    }
}
