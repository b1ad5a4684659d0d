//! Messages of the control queues (virtio 1.2 §5.3.6.2).

use super::super::chain::Chain;
use super::super::queue::{QueueError, Virtqueue};
use crate::throttle::Throttle;
use std::collections::VecDeque;

/// Most messages that wait for the driver: far more than one round of introductions of all ports.
const MAX_WAITING: usize = 256;

/// Driver: ready for messages, or failed to.
pub(super) const DEVICE_READY: u16 = 0;
/// Device: there is this port.
pub(super) const PORT_ADD: u16 = 1;
/// Driver: the port is set up, or could not be.
pub(super) const PORT_READY: u16 = 3;
/// Device: the port is a console.
pub(super) const CONSOLE_PORT: u16 = 4;
/// Device: the console's size has changed.
pub(super) const RESIZE: u16 = 5;
/// Both: the port is open at the sender's end, or closed.
pub(super) const PORT_OPEN: u16 = 6;
/// Device: the port's name.
pub(super) const PORT_NAME: u16 = 7;

/// One message: port, event, value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) port: u32,
    pub(super) event: u16,
    pub(super) value: u16,
}

/// Bytes of a message without what may follow it.
const MESSAGE_LEN: usize = 8;
/// Most bytes of a message with what follows it: a port's name.
const MAX_MESSAGE: usize = 4096;

impl Message {
    fn parse(bytes: [u8; MESSAGE_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }
}

/// The pair of control queues and what waits for the driver.
#[derive(Default)]
pub(super) struct Control {
    /// To the driver.
    pub(super) receive: Option<Virtqueue>,
    /// From the driver.
    pub(super) transmit: Option<Virtqueue>,
    waiting: VecDeque<Vec<u8>>,
    chain: Chain,
    lost: Throttle,
}

impl Control {
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// What waits for the driver.
    pub(super) fn waiting(&self) -> Vec<Vec<u8>> {
        self.waiting.iter().cloned().collect()
    }

    /// Lets `messages` wait for the driver, if they can be ours.
    pub(super) fn restore(&mut self, messages: &[Vec<u8>]) -> bool {
        let can_be = |message: &Vec<u8>| (MESSAGE_LEN..=MAX_MESSAGE).contains(&message.len());
        if messages.len() > MAX_WAITING || !messages.iter().all(can_be) {
            return false;
        }
        self.waiting = messages.iter().cloned().collect();
        true
    }

    /// Queues a message with `more` behind it.
    pub(super) fn send(&mut self, message: Message, more: &[u8]) {
        if self.waiting.len() == MAX_WAITING {
            self.lost.warn("Console's driver takes no control messages");
            return;
        }
        let mut bytes = message.port.to_le_bytes().to_vec();
        bytes.extend(message.event.to_le_bytes());
        bytes.extend(message.value.to_le_bytes());
        bytes.extend(more);
        self.waiting.push_back(bytes);
    }

    /// Gives the driver what waits, as far as it has buffers.
    pub(super) fn flush(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.receive else {
            return Ok(());
        };
        let memory = queue.memory().clone();
        let mut completed = false;
        while let Some(message) = self.waiting.front() {
            if !queue.pop(&mut self.chain)? {
                if queue.resume_notifications()? {
                    continue;
                }
                break;
            }
            let head = self.chain.head();
            let fits = self.chain.writable.write(&memory, message)?;
            let written = if fits { message.len() } else { 0 };
            queue.complete(head, u32::try_from(written).unwrap_or(0))?;
            self.waiting.pop_front();
            completed = true;
        }
        if completed {
            queue.signal_used()?;
        }
        Ok(())
    }

    /// The driver's next message, and whether there was a request at all.
    pub(super) fn take(&mut self) -> Result<(bool, Option<Message>), QueueError> {
        let Some(queue) = &mut self.transmit else {
            return Ok((false, None));
        };
        while !queue.pop(&mut self.chain)? {
            if !queue.resume_notifications()? {
                return Ok((false, None));
            }
        }
        let mut bytes = [0; MESSAGE_LEN];
        let whole = self
            .chain
            .readable
            .read(&queue.memory().clone(), &mut bytes)?;
        queue.complete(self.chain.head(), 0)?;
        queue.signal_used()?;
        Ok((true, whole.then(|| Message::parse(bytes))))
    }
}
