//! The persistent memory device (virtio 1.2 §5.19): tells the driver where the memory is, and writes it out on request.
//!
//! The memory itself is the VMM's: mapped into the guest, it needs no requests to be read and written.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;

use super::chain::Chain;
use super::device::{DeviceTraits, Progress, VirtioDevice, copy_config};
use super::queue::{QueueError, QueueState, Virtqueue};
use crate::metrics::{Metrics, PmemMetrics};
use crate::throttle::Throttle;

/// Linux flushes with one request at a time for each file system.
const QUEUE_SIZE: u16 = 64;
/// `VIRTIO_PMEM_REQ_TYPE_FLUSH` (§5.19.6.1).
const FLUSH: u32 = 0;
/// `struct virtio_pmem_resp.ret`: done, or not.
const DONE: u32 = 0;
const FAILED: u32 = 1;
/// `struct virtio_pmem_config`: `start` and `size`, 64 bits each (§5.19.4).
const CONFIG_LEN: usize = 16;

/// What is behind the memory.
pub trait Backing: Send {
    /// Returns when everything that was written to the memory is on its medium.
    fn flush(&mut self) -> io::Result<()>;
}

/// A persistent memory device.
pub struct Pmem {
    config: [u8; CONFIG_LEN],
    backing: Box<dyn Backing>,
    queue: Option<Virtqueue>,
    chain: Chain,
    metrics: Arc<PmemMetrics>,
    failures: Throttle,
}

impl Pmem {
    /// A device for `size` bytes of memory that the guest finds at the physical address `start`.
    pub fn new(start: u64, size: u64, backing: impl Backing + 'static) -> Self {
        let mut config = [0; CONFIG_LEN];
        config[..8].copy_from_slice(&start.to_le_bytes());
        config[8..].copy_from_slice(&size.to_le_bytes());
        Self {
            config,
            backing: Box::new(backing),
            queue: None,
            chain: Chain::default(),
            metrics: Arc::default(),
            failures: Throttle::default(),
        }
    }
}

impl VirtioDevice for Pmem {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            device_id: VIRTIO_ID_PMEM,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE],
            config_len: CONFIG_LEN as u64,
        }
    }

    fn metrics(&self) -> Option<Arc<dyn Metrics>> {
        Some(self.metrics.clone())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn start_queue(&mut self, _index: u16, queue: Virtqueue, _features: u64) {
        self.queue = Some(queue);
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        self.queue.take().map(|queue| queue.state())
    }

    fn process(&mut self, _index: u16) -> Result<Progress, QueueError> {
        let Self {
            backing,
            queue,
            chain,
            metrics,
            failures,
            ..
        } = self;
        let Some(queue) = queue else {
            return Ok(Progress::Idle);
        };
        metrics.queue_event_count.count();
        queue.serve(chain, |memory, chain| {
            let mut kind = [0; 4];
            let known =
                chain.readable.read(memory, &mut kind)? && u32::from_le_bytes(kind) == FLUSH;
            let result = match known.then(|| backing.flush()) {
                Some(Ok(())) => {
                    metrics.flush_count.count();
                    DONE
                }
                Some(Err(error)) => {
                    metrics.event_fails.count();
                    failures.warn(format_args!("Cannot write persistent memory out: {error}"));
                    FAILED
                }
                // A request that nobody defined is answered, not done.
                None => FAILED,
            };
            let answered = chain.writable.write(memory, &result.to_le_bytes())?;
            Ok(if answered { 4 } else { 0 })
        })
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::virtio::testing::{TestGuest, Transport};

    /// Counts, and fails from the second time on.
    #[derive(Clone, Default)]
    struct Medium(Arc<AtomicU32>);

    impl Backing for Medium {
        fn flush(&mut self) -> io::Result<()> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 => Ok(()),
                _ => Err(io::ErrorKind::StorageFull.into()),
            }
        }
    }

    #[test]
    fn place_and_size_are_in_the_configuration_space() {
        let device = Pmem::new(0x1_4000_0000, 2 << 20, Medium::default());
        let mut space = [0; CONFIG_LEN];
        device.read_config(0, &mut space);
        assert_eq!(space[..8], 0x1_4000_0000_u64.to_le_bytes());
        assert_eq!(space[8..], (2u64 << 20).to_le_bytes());
        let mut high = [0; 4];
        device.read_config(4, &mut high);
        assert_eq!(high, [1, 0, 0, 0]);
    }

    #[test]
    fn a_flush_is_answered_when_it_is_done_and_says_if_it_failed() {
        for &on in Transport::ALL {
            let medium = Medium::default();
            let mut guest = TestGuest::new(on, Pmem::new(1 << 32, 2 << 20, medium.clone()));
            let mut ring = guest.start_all();
            for (count, expected) in [(1, DONE), (2, FAILED)] {
                let answer = ring.buffer(4, true);
                let request = ring.data(&FLUSH.to_le_bytes());
                let head = ring.add(&[request, answer]);
                guest.notify(0);
                assert_eq!(ring.used(), Some((head, 4)));
                assert_eq!(ring.contents(answer), expected.to_le_bytes());
                assert_eq!(medium.0.load(Ordering::Relaxed), count);
            }
        }
    }

    #[test]
    fn requests_that_are_none_flush_nothing() {
        for &on in Transport::ALL {
            let medium = Medium::default();
            let mut guest = TestGuest::new(on, Pmem::new(1 << 32, 2 << 20, medium.clone()));
            let mut ring = guest.start_all();
            let unknown = ring.data(&7u32.to_le_bytes());
            let short = ring.data(&[0; 3]);
            for request in [unknown, short] {
                let answer = ring.buffer(4, true);
                let head = ring.add(&[request, answer]);
                guest.notify(0);
                assert_eq!(ring.used(), Some((head, 4)));
                assert_eq!(ring.contents(answer), FAILED.to_le_bytes());
            }
            // No room for an answer.
            let small = ring.buffer(3, true);
            let head = ring.add(&[short, small]);
            guest.notify(0);
            assert_eq!(ring.used(), Some((head, 0)));
            assert_eq!(medium.0.load(Ordering::Relaxed), 0);
        }
    }
}
