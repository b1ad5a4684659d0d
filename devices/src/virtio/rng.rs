//! The entropy device (virtio 1.2 §5.4): one queue of buffers to fill with random bytes.
//!
//! The smallest device there is; the one to start from when writing another.

use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::chain::Chain;
use super::device::{DeviceTraits, Progress, Source, VirtioDevice};
use super::queue::{QueueError, QueueState, Virtqueue};
use crate::memory::GuestMemory;
use crate::metrics::{EntropyMetrics, Metrics};
use crate::rate_limiter::RateLimiter;
use crate::throttle::Throttle;

/// Linux asks for one buffer at a time.
const QUEUE_SIZE: u16 = 16;
/// The most bytes one request gets. A driver takes what it is given, and a request for 4 GiB must not
/// keep the device thread busy.
const MAX_REQUEST: u32 = 64 * 1024;
/// How many bytes are made at a time, on the stack.
const CHUNK: usize = 4096;

/// An entropy device fed by the host kernel.
#[derive(Default)]
pub struct Rng {
    queue: Option<Virtqueue>,
    chain: Chain,
    limiter: Option<RateLimiter>,
    metrics: Arc<EntropyMetrics>,
    failures: Throttle,
}

impl Rng {
    /// A device without a driver.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`new`](Self::new), giving no more than `limiter` permits.
    pub fn limited(limiter: RateLimiter) -> Self {
        Self {
            limiter: Some(limiter),
            ..Self::default()
        }
    }
}

/// Fills `chain` as far as a single request may go and returns how many bytes that was.
fn fill(
    memory: &GuestMemory,
    chain: &mut Chain,
    metrics: &EntropyMetrics,
    failures: &mut Throttle,
) -> Result<u32, QueueError> {
    let wanted = chain.writable.len().min(MAX_REQUEST);
    let mut left = wanted as usize;
    let mut chunk = [0; CHUNK];
    while left > 0 {
        let part = &mut chunk[..left.min(CHUNK)];
        if let Err(error) = getrandom::fill(part) {
            metrics.host_rng_fails.count();
            failures.warn(format_args!("Host gives no random bytes: {error}"));
            // The driver learns by the length that the buffer is not full.
            return Ok(wanted - u32::try_from(left).unwrap_or(wanted));
        }
        chain.writable.write(memory, part)?;
        left -= part.len();
    }
    Ok(wanted)
}

impl VirtioDevice for Rng {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            device_id: VIRTIO_ID_RNG,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE],
            config_len: 0,
        }
    }

    fn metrics(&self) -> Option<Arc<dyn Metrics>> {
        Some(self.metrics.clone())
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn start_queue(&mut self, _index: u16, queue: Virtqueue, _features: u64) {
        self.queue = Some(queue);
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        self.queue.take().map(|queue| queue.state())
    }

    fn process(&mut self, _index: u16) -> Result<Progress, QueueError> {
        let Self {
            queue,
            chain,
            limiter,
            metrics,
            failures,
        } = self;
        let Some(queue) = queue else {
            return Ok(Progress::Idle);
        };
        let progress = queue.serve_limited(chain, limiter.as_mut(), |memory, chain| {
            let filled = fill(memory, chain, metrics, failures)?;
            metrics.entropy_event_count.count();
            metrics.entropy_bytes.add(filled.into());
            Ok(filled)
        })?;
        if limiter.as_mut().is_some_and(|limiter| !limiter.is_open()) {
            metrics.entropy_rate_limiter_throttled.count();
        }
        Ok(progress)
    }

    fn sources(&self) -> Vec<Source> {
        self.limiter.iter().map(RateLimiter::source).collect()
    }

    fn wake(&mut self, _index: usize) -> Result<Progress, QueueError> {
        // The limiter is open again.
        self.metrics.rate_limiter_event_count.count();
        self.process(0)
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests;
