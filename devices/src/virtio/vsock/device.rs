//! The socket device's queues.

use std::io;
use std::sync::Arc;

use event_manager::EventSet;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::Host;
use super::packet::{HEADER_LEN, Header};
use super::switch::Switch;
use crate::metrics::{Metrics, VsockMetrics};
use crate::throttle::Throttle;
use crate::virtio::chain::Chain;
use crate::virtio::device::{DeviceTraits, Progress, Source, VirtioDevice, copy_config};
use crate::virtio::queue::{QueueError, QueueState, Virtqueue};
use crate::virtio::saved::{DeviceState, RestoreError};
use crate::virtio::vectors::{GuestVectors, MAX_PIECES};

const QUEUE_SIZE: u16 = 128;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// `VIRTIO_VSOCK_F_STREAM` (§5.10.3).
const FEATURE_STREAM: u64 = 1 << 0;
/// Most packets of one direction before others have a turn.
const PACKETS_PER_TURN: u32 = 64;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (§5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

/// A queue with what is needed to work on it.
struct Lane {
    queue: Virtqueue,
    chain: Chain,
    vectors: GuestVectors,
    /// A request in `chain` is taken and not yet used.
    held: bool,
}

/// A socket device.
pub struct Vsock {
    switch: Switch,
    receive: Option<Lane>,
    transmit: Option<Lane>,
    events: Option<Lane>,
    /// The guest is to be told that its streams are gone.
    transport_reset: bool,
    metrics: Arc<VsockMetrics>,
    refused: Throttle,
}

impl Vsock {
    /// The device of the guest with address `cid`, which reaches `host`.
    pub fn new(cid: u64, host: Box<dyn Host>) -> io::Result<Self> {
        let switch = Switch::new(cid, host)?;
        Ok(Self {
            metrics: switch.metrics.clone(),
            switch,
            receive: None,
            transmit: None,
            events: None,
            transport_reset: false,
            refused: Throttle::default(),
        })
    }

    /// Takes the guest's packets.
    fn transmit(&mut self) -> Result<Progress, QueueError> {
        let Some(lane) = &mut self.transmit else {
            return Ok(Progress::Idle);
        };
        let Lane {
            queue,
            chain,
            vectors,
            ..
        } = lane;
        queue.pause_notifications()?;
        let mut budget = PACKETS_PER_TURN;
        let progress = loop {
            // While answers wait for the guest to take them, its packets wait as well.
            if !self.switch.has_room() {
                break Progress::Idle;
            }
            if budget == 0 {
                break Progress::More;
            }
            if !queue.pop(chain)? {
                if queue.resume_notifications()? {
                    continue;
                }
                break Progress::Idle;
            }
            budget -= 1;
            // Copied before it is looked at: the guest cannot change what was checked.
            let mut header = [0; HEADER_LEN];
            let data = &mut chain.readable;
            if data.read(vectors.memory(), &mut header)? && data.segments() <= MAX_PIECES {
                let header = Header::parse(&header);
                self.metrics.tx_packets_count.count();
                let bytes = header.len.min(data.len());
                self.metrics.tx_bytes_count.add(bytes.into());
                self.switch.take(&header, data, vectors)?;
            } else {
                let what = "A packet of a guest's socket is no packet and is dropped";
                self.metrics.tx_queue_event_fails.count();
                self.refused.warn(what);
            }
            queue.complete(chain.head(), 0)?;
        };
        queue.signal_used()?;
        Ok(progress)
    }

    /// Gives the guest what there is for it.
    fn receive(&mut self) -> Result<Progress, QueueError> {
        let Some(lane) = &mut self.receive else {
            return Ok(Progress::Idle);
        };
        lane.queue.pause_notifications()?;
        let mut budget = PACKETS_PER_TURN;
        let progress = loop {
            if !self.switch.has_something() {
                break Progress::Idle;
            }
            if budget == 0 {
                break Progress::More;
            }
            budget -= 1;
            if !lane.hold()? {
                if lane.queue.resume_notifications()? {
                    continue;
                }
                break Progress::Idle;
            }
            // The header's place is kept free in front of the data.
            lane.vectors.clear();
            lane.vectors.push(lane.chain.writable.ranges())?;
            lane.vectors.skip(HEADER_LEN);
            if let Some(header) = self.switch.next(&mut lane.vectors) {
                lane.held = false;
                let memory = lane.queue.memory().clone();
                lane.chain.writable.write(&memory, &header.bytes())?;
                self.metrics.rx_packets_count.count();
                self.metrics.rx_bytes_count.add(header.len.into());
                let len = u32::try_from(HEADER_LEN).unwrap_or(u32::MAX);
                lane.queue
                    .complete(lane.chain.head(), len.saturating_add(header.len))?;
            }
        };
        lane.queue.signal_used()?;
        Ok(progress)
    }

    /// Tells the guest that its streams are gone, if it is to be told.
    fn event(&mut self) -> Result<(), QueueError> {
        if let Some(lane) = &mut self.events
            && self.transport_reset
            && lane.queue.pop(&mut lane.chain)?
        {
            let memory = lane.queue.memory().clone();
            let event = TRANSPORT_RESET.to_le_bytes();
            let written = lane.chain.writable.write(&memory, &event)?;
            self.transport_reset = !written;
            if !written {
                self.metrics.ev_queue_event_fails.count();
            }
            let len = if written { 4 } else { 0 };
            lane.queue.complete(lane.chain.head(), len)?;
            lane.queue.signal_used()?;
        }
        Ok(())
    }

    /// Works in both directions: each may have what the other waits for.
    fn work(&mut self) -> Result<Progress, QueueError> {
        let sent = self.transmit()?;
        let stalled = !self.switch.has_room();
        let received = self.receive()?;
        let more = sent == Progress::More
            || received == Progress::More
            || stalled && self.switch.has_room();
        Ok(if more { Progress::More } else { Progress::Idle })
    }
}

impl Lane {
    fn new(queue: Virtqueue) -> Self {
        Self {
            vectors: GuestVectors::new(queue.memory().clone()),
            queue,
            chain: Chain::new(),
            held: false,
        }
    }

    /// Takes a buffer for a packet to the guest, unless there is one already.
    fn hold(&mut self) -> Result<bool, QueueError> {
        if !self.held && self.queue.pop(&mut self.chain)? {
            let (head, room) = (self.chain.head(), &self.chain.writable);
            let usable = self.chain.readable.is_empty() && room.len() as usize > HEADER_LEN;
            if !usable || room.segments() > MAX_PIECES / 2 {
                let what = "a receive buffer is all writable, has room for a header and data, and has no \
                            more than 511 pieces";
                return Err(QueueError::Request { head, what });
            }
            self.held = true;
        }
        Ok(self.held)
    }

    /// Where the queue stands, a request that is held counted as not taken.
    fn stop(self) -> QueueState {
        let state = self.queue.state();
        QueueState {
            next_available: state.next_available.wrapping_sub(self.held.into()),
            ..state
        }
    }
}

impl VirtioDevice for Vsock {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            device_id: VIRTIO_ID_VSOCK,
            features: FEATURE_STREAM,
            queue_sizes: vec![QUEUE_SIZE; 3],
            config_len: 8,
        }
    }

    fn metrics(&self) -> Option<Arc<dyn Metrics>> {
        Some(self.metrics.clone())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.switch.cid().to_le_bytes(), offset, data);
    }

    fn start_queue(&mut self, index: u16, queue: Virtqueue, _features: u64) {
        let lane = Some(Lane::new(queue));
        match index {
            RECEIVE => self.receive = lane,
            TRANSMIT => self.transmit = lane,
            _ => self.events = lane,
        }
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let lane = match index {
            RECEIVE => self.receive.take(),
            TRANSMIT => self.transmit.take(),
            _ => self.events.take(),
        };
        lane.map(Lane::stop)
    }

    fn process(&mut self, index: u16) -> Result<Progress, QueueError> {
        match index {
            RECEIVE => self.metrics.rx_queue_event_count.count(),
            TRANSMIT => self.metrics.tx_queue_event_count.count(),
            _ => {}
        }
        match index {
            RECEIVE | TRANSMIT => self.work(),
            _ => {
                self.event()?;
                Ok(Progress::Idle)
            }
        }
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.switch.fd(),
            events: EventSet::IN,
        }]
    }

    fn wake(&mut self, _index: usize) -> Result<Progress, QueueError> {
        let serve = self.receive.is_some() && self.transmit.is_some();
        self.switch.look(serve);
        self.work()
    }

    fn reset(&mut self) {
        self.switch.clear();
    }

    fn save(&self) -> DeviceState {
        let cid = self.switch.cid();
        DeviceState::Vsock { cid }
    }

    /// The guest still believes in streams that were open when the state was taken, and is told that they are gone. It
    /// then reads its address again (§5.10.6.7), which may be another one.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Vsock { .. } => {
                self.transport_reset = true;
                Ok(())
            }
            other => Err(RestoreError::kind(VIRTIO_ID_VSOCK, other)),
        }
    }
}

#[cfg(test)]
mod tests;
