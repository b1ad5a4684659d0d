//! The file system device (virtio 1.2 §5.11): carries FUSE requests to a program of the host, by vhost-user.
//!
//! Once that program is gone for whatever reason, the device answers every request by itself: not connected. So it
//! does what the program has left unanswered.

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ids::VIRTIO_ID_FS;

use super::chain::Chain;
use super::device::{DeviceTraits, Progress, Source, VirtioDevice, copy_config};
use super::queue::{QueueError, QueueState, Virtqueue};
use super::vhost_user::{Backend, BackendError, Begin};
use crate::memory::GuestMemory;
use crate::metrics::{Metrics, VhostUserMetrics};

/// The most bytes of a file system's name.
pub const MAX_TAG: usize = 36;
/// Requests of high priority, and others (§5.11.2).
const QUEUES: u16 = 2;
/// Linux makes requests as large as the queue permits: 1 MiB is 256 pages and a few more.
const QUEUE_SIZE: u16 = 1024;
/// `struct virtio_fs_config` without what comes with features that we do not have: `tag`, `num_request_queues`.
const CONFIG_LEN: usize = MAX_TAG + 4;

/// Bytes of `struct fuse_in_header` up to and including `unique`: its length and its operation come before.
const REQUEST_START: usize = 16;
/// Bytes of `struct fuse_out_header`: length, error, `unique`.
const ANSWER_LEN: u32 = 16;

/// A file system device.
pub struct Fs {
    tag: String,
    config: [u8; CONFIG_LEN],
    backend: Backend,
    queues: [Option<Virtqueue>; QUEUES as usize],
    chain: Chain,
    metrics: Arc<VhostUserMetrics>,
}

impl Fs {
    /// A device for the file system `tag`, of at most [`MAX_TAG`] bytes, which the program at the other end of `stream`
    /// serves. Each thread of its own calls `begin` first.
    pub fn new(tag: &str, stream: UnixStream, begin: Begin) -> Result<Self, BackendError> {
        let metrics = Arc::<VhostUserMetrics>::default();
        let start = Instant::now();
        let mut config = [0; CONFIG_LEN];
        for (place, byte) in config[..MAX_TAG].iter_mut().zip(tag.bytes()) {
            *place = byte;
        }
        config[MAX_TAG..].copy_from_slice(&u32::from(QUEUES - 1).to_le_bytes());
        let backend = Backend::new(stream, QUEUES, begin)?;
        metrics.init_time_us.set(micros(start.elapsed()));
        Ok(Self {
            tag: tag.into(),
            config,
            metrics,
            backend,
            queues: [const { None }; QUEUES as usize],
            chain: Chain::default(),
        })
    }

    /// Goes on without the backend.
    fn lose(&mut self, error: &BackendError) {
        if !self.backend.is_alive() {
            return;
        }
        // What the end of the connection wakes is `serve` for all queues.
        self.backend.close();
        self.metrics.backend_lost_count.count();
        let mut lost = 0;
        for queue in self.queues.iter_mut().flatten() {
            // What a driver has broken is found again when the queue is served next.
            lost += queue.recover(&mut self.chain, refuse).map_or(0, u32::from);
        }
        let cause = error.source().map(|cause| format!(": {cause}"));
        log::error!(
            "File system \"{}\" is lost, {lost} of its requests stay unanswered: {error}{}",
            self.tag,
            cause.unwrap_or_default()
        );
    }

    /// Answers the requests of queue `index` in place of the backend.
    fn serve(&mut self, index: u16) -> Result<Progress, QueueError> {
        let Some(Some(queue)) = self.queues.get_mut(usize::from(index)) else {
            return Ok(Progress::Idle);
        };
        queue.serve(&mut self.chain, refuse)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Answers one FUSE request with an error.
fn refuse(memory: &GuestMemory, chain: &mut Chain) -> Result<u32, QueueError> {
    let mut request = [0; REQUEST_START];
    if !chain.readable.read(memory, &mut request)? {
        return Ok(0);
    }
    let mut answer = [0; ANSWER_LEN as usize];
    answer[..4].copy_from_slice(&ANSWER_LEN.to_le_bytes());
    answer[4..8].copy_from_slice(&(-libc::ENOTCONN).to_le_bytes());
    answer[8..].copy_from_slice(&request[8..]);
    // A request without room for an answer wants none (FUSE_FORGET).
    let answered = chain.writable.write(memory, &answer)?;
    Ok(if answered { ANSWER_LEN } else { 0 })
}

impl VirtioDevice for Fs {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            device_id: VIRTIO_ID_FS,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE; QUEUES.into()],
            config_len: CONFIG_LEN as u64,
        }
    }

    fn metrics(&self) -> Option<Arc<dyn Metrics>> {
        Some(self.metrics.clone())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn start_queue(&mut self, index: u16, queue: Virtqueue, features: u64) {
        if self.backend.is_alive() {
            let start = Instant::now();
            match self.backend.start(index, &queue, features) {
                Ok(()) => self.metrics.activate_time_us.set(micros(start.elapsed())),
                Err(error) => {
                    self.metrics.activate_fails.count();
                    self.lose(&error);
                }
            }
        }
        if let Some(place) = self.queues.get_mut(usize::from(index)) {
            *place = Some(queue);
        }
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let number = usize::from(index);
        let queue = self.queues.get_mut(number)?.as_mut()?;
        if self.backend.is_alive() {
            match self.backend.stop(index) {
                // Memory that was there at the start of the queue is there still.
                Ok(Some(next_available)) => drop(queue.stopped_at(next_available)),
                Ok(None) => {}
                Err(error) => self.lose(&error),
            }
        }
        let queue = self.queues.get_mut(number)?.take()?;
        Some(queue.state())
    }

    fn process(&mut self, index: u16) -> Result<Progress, QueueError> {
        if !self.backend.is_alive() {
            return self.serve(index);
        }
        self.metrics.queue_event_count.count();
        self.backend.kick(index);
        if let Some(Some(queue)) = self.queues.get_mut(usize::from(index)) {
            queue.follow()?;
        }
        Ok(Progress::Idle)
    }

    fn sources(&self) -> Vec<Source> {
        self.backend.sources()
    }

    fn wake(&mut self, index: usize) -> Result<Progress, QueueError> {
        if index < self.queues.len() {
            if self.backend.is_alive()
                && let Some(queue) = &mut self.queues[index]
            {
                queue.follow()?;
                queue.pass_on_interrupt();
            }
            return Ok(Progress::Idle);
        }
        self.lose(&BackendError::Closed);
        let mut progress = Progress::Idle;
        for index in 0..QUEUES {
            if self.serve(index)? == Progress::More {
                progress = Progress::More;
            }
        }
        Ok(progress)
    }

    fn reset(&mut self) {}

    fn unsavable(&self) -> Option<&'static str> {
        Some("what the guest has open there is known to the file system's program alone")
    }
}

#[cfg(test)]
mod tests;
