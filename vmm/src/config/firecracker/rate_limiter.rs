//! `rate_limiter` of several sections.

use api::model::{RateLimiter, TokenBucket};

use crate::config::{BucketConfig, RateLimiterConfig};

/// A limiter that may be absent, which is no limit.
pub(crate) fn read(limiter: Option<RateLimiter>) -> RateLimiterConfig {
    let bucket = |bucket: TokenBucket| BucketConfig {
        size: bucket.size,
        one_time_burst: bucket.one_time_burst.unwrap_or_default(),
        refill_time_ms: bucket.refill_time,
    };
    let limiter = limiter.unwrap_or_default();
    RateLimiterConfig {
        bandwidth: limiter.bandwidth.map(bucket),
        ops: limiter.ops.map(bucket),
    }
}
