//! One port: two queues and the host's end.

use std::sync::Arc;

use super::super::chain::Chain;
use super::super::device::Progress;
use super::super::queue::{QueueError, QueueState, Virtqueue};
use super::super::saved::PortState;
use super::host::{Input, Link};
use crate::metrics::ConsoleMetrics;

/// Most bytes that wait on the host's side, each way.
const BUFFER: usize = 4096;
/// Buffers of one turn, each way.
const TURN: usize = 64;

/// A port of the console device.
pub(super) struct Port {
    pub(super) name: String,
    /// The driver makes a terminal of it. Its driver waits, spinning, until its output is taken: so that always is.
    pub(super) console: bool,
    pub(super) link: Link,
    pub(super) receive: Option<Virtqueue>,
    pub(super) transmit: Option<Virtqueue>,
    /// The driver has it open.
    pub(super) open: bool,
    /// The peer the driver knows of.
    pub(super) told: Option<u64>,
    /// The last turn was not enough.
    pub(super) unfinished: bool,
    /// Input the guest has not taken yet.
    input: Vec<u8>,
    /// Output the host has not taken yet, of the request in `pending`.
    output: Vec<u8>,
    pending: Option<Chain>,
    /// Bytes of the request in `pending` that were read.
    consumed: u32,
    /// Bytes of the next request that the host has taken already, before the queue was stopped.
    taken: u32,
    chain: Chain,
    metrics: Arc<ConsoleMetrics>,
}

impl Port {
    pub(super) fn new(
        name: String,
        console: bool,
        link: Link,
        metrics: Arc<ConsoleMetrics>,
    ) -> Self {
        Self {
            name,
            console,
            told: link.connection(),
            link,
            receive: None,
            transmit: None,
            open: false,
            unfinished: false,
            input: Vec::new(),
            output: Vec::new(),
            pending: None,
            consumed: 0,
            taken: 0,
            chain: Chain::new(),
            metrics,
        }
    }

    /// Moves bytes both ways as far as they go.
    pub(super) fn pump(&mut self) -> Result<Progress, QueueError> {
        self.unfinished = self.pump_both()?;
        // Who comes finds the place free as soon as what the last peer said has gone where it can go.
        if !self.unfinished && self.link.accept() {
            self.unfinished = self.pump_both()?;
        }
        let may_read = self.input.is_empty();
        self.link.watch(may_read, !self.output.is_empty());
        Ok(if self.unfinished {
            Progress::More
        } else {
            Progress::Idle
        })
    }

    fn pump_both(&mut self) -> Result<bool, QueueError> {
        Ok(self.pump_input()? | self.pump_output()?)
    }

    /// From the host to the guest. `true` where a turn was not enough.
    fn pump_input(&mut self) -> Result<bool, QueueError> {
        let mut completed = false;
        let mut left = TURN;
        while left > 0 {
            if self.input.is_empty() {
                self.input.resize(BUFFER, 0);
                match self.link.read(&mut self.input) {
                    Input::Bytes(length) => self.input.truncate(length),
                    Input::Nothing => {
                        self.input.clear();
                        break;
                    }
                }
            }
            let (true, Some(queue)) = (self.open, &mut self.receive) else {
                break;
            };
            if !queue.pop(&mut self.chain)? {
                if queue.resume_notifications()? {
                    continue;
                }
                break;
            }
            let memory = queue.memory().clone();
            let room = usize::try_from(self.chain.writable.len()).unwrap_or(usize::MAX);
            let length = room.min(self.input.len());
            self.chain.writable.write(&memory, &self.input[..length])?;
            queue.complete(self.chain.head(), u32::try_from(length).unwrap_or(0))?;
            self.metrics.rx_bytes_count.add(length as u64);
            self.input.drain(..length);
            completed = true;
            left -= 1;
        }
        if let (true, Some(queue)) = (completed, &mut self.receive) {
            queue.signal_used()?;
        }
        Ok(left == 0)
    }

    /// From the guest to the host. `true` where a turn was not enough.
    fn pump_output(&mut self) -> Result<bool, QueueError> {
        let Some(queue) = &mut self.transmit else {
            return Ok(false);
        };
        let memory = queue.memory().clone();
        let mut completed = false;
        let mut left = TURN;
        while left > 0 {
            if !self.output.is_empty() {
                let written = self.link.write(&self.output);
                self.metrics.tx_bytes_count.add(written as u64);
                self.output.drain(..written);
                if self.console {
                    self.output.clear();
                }
                if !self.output.is_empty() {
                    break;
                }
            }
            let mut chain = match self.pending.take() {
                Some(chain) => chain,
                None => {
                    let mut chain = std::mem::take(&mut self.chain);
                    if !queue.pop(&mut chain)? {
                        self.chain = chain;
                        if queue.resume_notifications()? {
                            continue;
                        }
                        break;
                    }
                    self.consumed = std::mem::take(&mut self.taken);
                    chain.readable.skip(self.consumed);
                    chain
                }
            };
            let length = usize::try_from(chain.readable.len()).unwrap_or(usize::MAX);
            if length == 0 {
                queue.complete(chain.head(), 0)?;
                self.chain = chain;
                completed = true;
            } else {
                self.output.resize(length.min(BUFFER), 0);
                chain.readable.read(&memory, &mut self.output)?;
                let read = u32::try_from(self.output.len()).unwrap_or(u32::MAX);
                self.consumed = self.consumed.saturating_add(read);
                self.pending = Some(chain);
            }
            left -= 1;
        }
        if completed {
            queue.signal_used()?;
        }
        Ok(left == 0)
    }

    /// Where the transmitting queue stands, a request that the host has not taken whole counted as not taken: who goes on
    /// with the queue goes on in its middle.
    pub(super) fn stop_transmit(&mut self) -> Option<QueueState> {
        let state = self.transmit.take()?.state();
        let Some(_) = self.pending.take() else {
            return Some(state);
        };
        let waiting = u32::try_from(self.output.len()).unwrap_or(u32::MAX);
        self.output.clear();
        self.taken = self.consumed.saturating_sub(waiting);
        Some(QueueState {
            next_available: state.next_available.wrapping_sub(1),
            ..state
        })
    }

    /// Forgets the driver.
    pub(super) fn reset(&mut self) {
        self.open = false;
        self.taken = 0;
    }

    /// What the driver and the host have agreed on. The transmitting queue is stopped.
    pub(super) fn save(&self) -> PortState {
        PortState {
            open: self.open,
            told: self.told,
            input: self.input.clone(),
            taken: self.taken,
        }
    }

    /// Goes on from `state`, if it can be a port's.
    pub(super) fn restore(&mut self, state: &PortState) -> bool {
        if state.input.len() > BUFFER {
            return false;
        }
        self.open = state.open;
        self.told = state.told;
        self.input.clone_from(&state.input);
        self.taken = state.taken;
        true
    }
}
