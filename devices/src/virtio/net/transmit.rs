//! Frames from the driver to the network (virtio 1.2 §5.1.6.1, §5.1.6.2).

use std::sync::Arc;
use std::time::Instant;

use super::header;
use super::interceptor::START_LEN;
use super::wire::Wire;
use super::{FRAMES_PER_TURN, HEADER_LEN, MAX_FRAME, MIN_FRAME};
use crate::metrics::NetMetrics;
use crate::rate_limiter::RateLimiter;
use crate::throttle::Throttle;
use crate::virtio::chain::Chain;
use crate::virtio::device::Progress;
use crate::virtio::queue::{QueueError, QueueState, Virtqueue};
use crate::virtio::vectors::{GuestVectors, MAX_PIECES};

pub(super) struct Transmitter {
    queue: Virtqueue,
    chain: Chain,
    features: u64,
    /// Who may send by the guest's address.
    mac: [u8; 6],
    /// The header, and as much of the frame as others look at: what is looked at is what is sent.
    start: [u8; HEADER_LEN + START_LEN],
    start_len: usize,
    vectors: GuestVectors,
    /// The frame in `start` and `vectors` waits for the backend to take it.
    parked: bool,
    metrics: Arc<NetMetrics>,
    refused: Throttle,
}

impl Transmitter {
    pub(super) fn new(
        queue: Virtqueue,
        features: u64,
        mac: [u8; 6],
        metrics: Arc<NetMetrics>,
    ) -> Self {
        Self {
            vectors: GuestVectors::new(queue.memory().clone()),
            queue,
            chain: Chain::new(),
            features,
            mac,
            start: [0; HEADER_LEN + START_LEN],
            start_len: HEADER_LEN,
            parked: false,
            metrics,
            refused: Throttle::default(),
        }
    }

    /// Where the queue stands, a parked frame counted as not taken.
    pub(super) fn stop(self) -> QueueState {
        let state = self.queue.state();
        QueueState {
            next_available: state.next_available.wrapping_sub(self.parked.into()),
            ..state
        }
    }

    /// A frame waits for the backend.
    pub(super) fn is_parked(&self) -> bool {
        self.parked
    }

    /// Sends frames until there are none, or the backend takes no more.
    pub(super) fn pump(
        &mut self,
        wire: &mut Wire,
        limiter: &mut RateLimiter,
    ) -> Result<Progress, QueueError> {
        self.queue.pause_notifications()?;
        let mut budget = FRAMES_PER_TURN;
        let mut now = Instant::now();
        let (mut sent, mut bytes) = (0, 0);
        let progress = loop {
            if budget == 0 {
                break Progress::More;
            }
            if !self.parked {
                if !limiter.is_open() {
                    self.metrics.tx_rate_limiter_throttled.count();
                    break Progress::Idle;
                }
                if !self.queue.pop(&mut self.chain)? {
                    if self.queue.resume_notifications()? {
                        continue;
                    }
                    if budget == FRAMES_PER_TURN {
                        self.metrics.no_tx_avail_buffer.count();
                    }
                    break Progress::Idle;
                }
                budget -= 1;
                if let Err(what) = self.take(wire.start_len())? {
                    self.metrics.tx_malformed_frames.count();
                    self.refused
                        .warn(format_args!("A frame of a driver is dropped: {what}"));
                    self.queue.complete(self.chain.head(), 0)?;
                    continue;
                }
                limiter.charge(self.frame_len());
            }
            self.parked = !wire.send(&mut self.start[..self.start_len], &mut self.vectors);
            if self.parked {
                break Progress::Idle;
            }
            // One look at the clock a frame: the end of one is the beginning of the next.
            let before = std::mem::replace(&mut now, Instant::now());
            let took = now.saturating_duration_since(before);
            self.metrics.tap_write_agg.record(took);
            sent += 1;
            bytes += self.frame_len();
            self.queue.complete(self.chain.head(), 0)?;
        };
        self.queue.signal_used()?;
        let metrics = &self.metrics;
        metrics
            .tx_remaining_reqs_count
            .add(self.queue.waiting().into());
        if sent > 0 {
            metrics.tx_count.count();
            metrics.tx_packets_count.add(sent);
            metrics.tx_bytes_count.add(bytes);
        }
        Ok(progress)
    }

    /// Length of the frame that was taken, without the virtio header.
    fn frame_len(&self) -> u64 {
        (self.start_len - HEADER_LEN + self.vectors.len()) as u64
    }

    /// Takes the frame in `chain`, with a copy of its first `known` bytes, or says what is wrong with it.
    fn take(&mut self, known: usize) -> Result<Result<(), &'static str>, QueueError> {
        let frame = &mut self.chain.readable;
        let Some(len) = (frame.len() as usize).checked_sub(HEADER_LEN) else {
            return Ok(Err("it is shorter than its header"));
        };
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return Ok(Err("its length is not that of an Ethernet frame"));
        }
        // What is looked at is copied before: what is checked is what is sent.
        self.start_len = HEADER_LEN + known.min(len);
        let start = &mut self.start[..self.start_len];
        frame.read(self.vectors.memory(), start)?;
        let Some((header, ethernet)) = start.split_first_chunk_mut::<HEADER_LEN>() else {
            return Ok(Err("it is shorter than its header"));
        };
        *header = match header::check(*header, self.features) {
            Ok(header) => header,
            Err(what) => return Ok(Err(what)),
        };
        if ethernet[6..12] != self.mac {
            self.metrics.tx_spoofed_mac_count.count();
        }
        self.vectors.clear();
        self.vectors.push(frame.ranges())?;
        if self.vectors.pieces() > MAX_PIECES {
            return Ok(Err("it is in more pieces than one system call takes"));
        }
        Ok(Ok(()))
    }
}
