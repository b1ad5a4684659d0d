//! Frames from the driver to the network (virtio 1.2 §5.1.6.1, §5.1.6.2).

use super::header::{self, Header};
use super::wire::Wire;
use super::{FRAMES_PER_TURN, HEADER_LEN, MAX_FRAME, MIN_FRAME};
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
    header: Header,
    vectors: GuestVectors,
    /// The frame in `header` and `vectors` waits for the backend to take it.
    parked: bool,
    refused: Throttle,
}

impl Transmitter {
    pub(super) fn new(queue: Virtqueue, features: u64) -> Self {
        Self {
            vectors: GuestVectors::new(queue.memory().clone()),
            queue,
            chain: Chain::new(),
            features,
            header: [0; HEADER_LEN],
            parked: false,
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
        let progress = loop {
            if budget == 0 {
                break Progress::More;
            }
            if !self.parked {
                if !limiter.is_open() {
                    break Progress::Idle;
                }
                if !self.queue.pop(&mut self.chain)? {
                    if self.queue.resume_notifications()? {
                        continue;
                    }
                    break Progress::Idle;
                }
                budget -= 1;
                if let Err(what) = self.take()? {
                    self.refused
                        .warn(format_args!("A frame of a driver is dropped: {what}"));
                    self.queue.complete(self.chain.head(), 0)?;
                    continue;
                }
                limiter.charge(self.vectors.len() as u64);
            }
            self.parked = !wire.send(&mut self.header, &mut self.vectors);
            if self.parked {
                break Progress::Idle;
            }
            self.queue.complete(self.chain.head(), 0)?;
        };
        self.queue.signal_used()?;
        Ok(progress)
    }

    /// Takes the frame in `chain`, or says what is wrong with it.
    fn take(&mut self) -> Result<Result<(), &'static str>, QueueError> {
        let frame = &mut self.chain.readable;
        // The header is copied before it is looked at: what is checked is what is sent.
        if !frame.read(self.vectors.memory(), &mut self.header)? {
            return Ok(Err("it is shorter than its header"));
        }
        self.header = match header::check(self.header, self.features) {
            Ok(header) => header,
            Err(what) => return Ok(Err(what)),
        };
        if !(MIN_FRAME..=MAX_FRAME).contains(&(frame.len() as usize)) {
            return Ok(Err("its length is not that of an Ethernet frame"));
        }
        self.vectors.clear();
        self.vectors.push(frame.ranges())?;
        if self.vectors.pieces() > MAX_PIECES {
            return Ok(Err("it is in more pieces than one system call takes"));
        }
        Ok(Ok(()))
    }
}
