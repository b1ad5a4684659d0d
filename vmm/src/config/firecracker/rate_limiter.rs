//! `rate_limiter` of several sections.

use serde::Deserialize;

use crate::config::{BucketConfig, RateLimiterConfig};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RateLimiter {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bucket {
    size: u64,
    one_time_burst: Option<u64>,
    refill_time: u64,
}

impl From<RateLimiter> for RateLimiterConfig {
    fn from(limiter: RateLimiter) -> Self {
        let bucket = |bucket: Bucket| BucketConfig {
            size: bucket.size,
            one_time_burst: bucket.one_time_burst.unwrap_or_default(),
            refill_time_ms: bucket.refill_time,
        };
        Self {
            bandwidth: limiter.bandwidth.map(bucket),
            ops: limiter.ops.map(bucket),
        }
    }
}

/// A limiter that may be absent, which is no limit.
pub(super) fn check(limiter: Option<RateLimiter>) -> RateLimiterConfig {
    limiter.unwrap_or_default().into()
}
