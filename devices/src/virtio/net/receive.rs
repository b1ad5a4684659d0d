//! Frames from the network to the driver (virtio 1.2 §5.1.6.3, §5.1.6.4).
//!
//! How long the next frame is only the read itself says. So buffers are staged beforehand, enough for the longest if
//! the driver has that many, and what a frame needs beyond them goes to a place of our own until the driver adds some:
//! no frame is lost because the ring runs low, and nothing is read while there is no buffer at all.

use std::collections::VecDeque;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_MRG_RXBUF,
};

use super::wire::Wire;
use super::{FRAMES_PER_TURN, HEADER_LEN, MAX_FRAME};
use crate::metrics::NetMetrics;
use crate::rate_limiter::RateLimiter;
use crate::throttle::Throttle;
use crate::virtio::chain::Chain;
use crate::virtio::device::Progress;
use crate::virtio::queue::{QueueError, QueueState, Virtqueue};
use crate::virtio::vectors::{GuestVectors, MAX_PIECES};

/// Room to stage for frames that are not longer than Ethernet's.
const SHORT_FRAME: usize = HEADER_LEN + 1514 + 4;
/// Most pieces of one buffer; Linux has 19 at most. Two of them fit one system call.
const MAX_BUFFER_PIECES: usize = MAX_PIECES / 2 - 8;
/// Where `num_buffers` is in the header.
const NUM_BUFFERS: usize = 10;

/// A buffer taken from the queue for frames to come.
struct Staged {
    head: u16,
    len: usize,
    pieces: usize,
}

pub(super) struct Receiver {
    queue: Virtqueue,
    chain: Chain,
    staged: VecDeque<Staged>,
    /// The staged buffers' memory.
    vectors: GuestVectors,
    used: Vec<(u16, u32)>,
    mergeable: bool,
    /// Room for the longest frame to be expected.
    wanted: usize,
    spill: Box<[u8]>,
    /// Length of a frame that is read, and how much of it is in the buffers; the rest is in `spill`.
    unfinished: Option<(usize, usize)>,
    metrics: Arc<NetMetrics>,
    dropped: Throttle,
}

/// What one attempt came to.
enum Step {
    Frame,
    NoFrame,
    NoBuffer,
}

impl Receiver {
    pub(super) fn new(queue: Virtqueue, features: u64, metrics: Arc<NetMetrics>) -> Self {
        let has = |feature: u32| features & 1 << feature != 0;
        let long = [
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_USO4,
            VIRTIO_NET_F_GUEST_USO6,
        ];
        Self {
            vectors: GuestVectors::new(queue.memory().clone()),
            queue,
            chain: Chain::new(),
            staged: VecDeque::new(),
            used: Vec::new(),
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
            wanted: if long.into_iter().any(has) {
                HEADER_LEN + MAX_FRAME
            } else {
                SHORT_FRAME
            },
            spill: vec![0; HEADER_LEN + MAX_FRAME].into_boxed_slice(),
            unfinished: None,
            metrics,
            dropped: Throttle::default(),
        }
    }

    /// Where the queue stands, staged buffers counted as not taken.
    pub(super) fn stop(self) -> QueueState {
        let state = self.queue.state();
        let staged = u16::try_from(self.staged.len()).unwrap_or(u16::MAX);
        QueueState {
            next_available: state.next_available.wrapping_sub(staged),
            ..state
        }
    }

    /// Moves frames until there are none, or no buffers for them.
    pub(super) fn pump(
        &mut self,
        wire: &mut Wire,
        limiter: &mut RateLimiter,
    ) -> Result<Progress, QueueError> {
        self.queue.pause_notifications()?;
        let mut budget = FRAMES_PER_TURN;
        let progress = loop {
            if budget == 0 {
                break Progress::More;
            }
            match self.step(wire, limiter)? {
                Step::Frame => budget -= 1,
                Step::NoFrame => break Progress::Idle,
                Step::NoBuffer if self.queue.resume_notifications()? => {}
                // The driver rings when it has added some; until then frames wait in the backend, and are lost there
                // when it is full.
                Step::NoBuffer => {
                    self.metrics.no_rx_avail_buffer.count();
                    break Progress::Idle;
                }
            }
        };
        if budget < FRAMES_PER_TURN {
            self.metrics.rx_count.count();
        }
        self.queue.signal_used()?;
        Ok(progress)
    }

    fn step(&mut self, wire: &mut Wire, limiter: &mut RateLimiter) -> Result<Step, QueueError> {
        let Some((len, filled)) = self.unfinished else {
            self.stage(self.wanted)?;
            if self.staged.is_empty() {
                return Ok(Step::NoBuffer);
            }
            if !limiter.is_open() {
                self.metrics.rx_rate_limiter_throttled.count();
                return Ok(Step::NoFrame);
            }
            let filled = self.vectors.len();
            let Some(len) = wire.receive(&mut self.vectors, &mut self.spill) else {
                return Ok(Step::NoFrame);
            };
            limiter.charge(len.saturating_sub(HEADER_LEN) as u64);
            self.unfinished = Some((len, filled.min(len)));
            return self.finish(len, filled.min(len));
        };
        self.finish(len, filled)
    }

    /// Gives the frame of `len` bytes, of which `filled` are in buffers, to the driver.
    fn finish(&mut self, len: usize, filled: usize) -> Result<Step, QueueError> {
        self.stage(len)?;
        if self.vectors.len() < len {
            let never = !self.mergeable
                || self.staged.len() >= self.queue.size().into()
                || self.vectors.pieces() >= MAX_PIECES / 2;
            if !never {
                return Ok(Step::NoBuffer);
            }
            self.unfinished = None;
            self.metrics.rx_fails.count();
            self.dropped.warn(format_args!(
                "A frame of {len} bytes does not fit the driver's receive buffers and is dropped"
            ));
            return Ok(Step::Frame);
        }
        self.vectors.write_at(filled, &self.spill[..len - filled])?;
        self.unfinished = None;
        self.deliver(len)?;
        self.metrics.rx_packets_count.count();
        let bytes = len.saturating_sub(HEADER_LEN) as u64;
        self.metrics.rx_bytes_count.add(bytes);
        Ok(Step::Frame)
    }

    /// Takes buffers until they have room for `len` bytes, as far as there are any. A driver that cannot merge gets each
    /// frame in one.
    fn stage(&mut self, len: usize) -> Result<(), QueueError> {
        while self.vectors.len() < len
            && self.vectors.pieces() < MAX_PIECES / 2
            && (self.mergeable || self.staged.is_empty())
            && self.queue.pop(&mut self.chain)?
        {
            let (head, pieces) = (self.chain.head(), self.vectors.pieces());
            let (readable, writable) = (&self.chain.readable, &self.chain.writable);
            let room = writable.len() as usize;
            if !readable.is_empty() || room < HEADER_LEN || writable.segments() > MAX_BUFFER_PIECES
            {
                let what = "a receive buffer is all writable, has room for a header, and has \
                            no more than 503 pieces";
                return Err(QueueError::Request { head, what });
            }
            self.vectors.push(writable.ranges())?;
            self.staged.push_back(Staged {
                head,
                len: room,
                pieces: self.vectors.pieces() - pieces,
            });
        }
        Ok(())
    }

    /// Gives the first `len` bytes of the staged buffers to the driver.
    fn deliver(&mut self, len: usize) -> Result<(), QueueError> {
        self.used.clear();
        let (mut left, mut pieces) = (len, 0);
        while left > 0
            && let Some(buffer) = self.staged.pop_front()
        {
            let part = left.min(buffer.len);
            let written = u32::try_from(part).unwrap_or(u32::MAX);
            self.used.push((buffer.head, written));
            pieces += buffer.pieces;
            left -= part;
        }
        let buffers = u16::try_from(self.used.len()).unwrap_or(u16::MAX);
        self.vectors.write_at(NUM_BUFFERS, &buffers.to_le_bytes())?;
        self.vectors.drop_front(pieces);
        self.queue.complete_together(&self.used)
    }
}
