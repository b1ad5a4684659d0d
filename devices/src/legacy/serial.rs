//! A serial port: a 16550A whose output goes to a writer and whose input comes from a bounded buffer.
//!
//! The host never makes the guest's memory its own: at most [`INPUT_CAPACITY`] bytes wait on the
//! host's side, and a source with more to say is left unread until the guest has caught up.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState as UartState};
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use thiserror::Error;

use crate::bus::MutBusDevice;
use crate::interrupt::Interrupt;
use crate::metrics::SerialMetrics;
use crate::throttle::Throttle;

/// I/O port of COM1.
pub const COM1_PORT: u64 = 0x3f8;
/// Interrupt of COM1.
pub const COM1_IRQ: u32 = 4;
/// Ports of a 16550.
pub const LEN: u64 = 8;
/// How many bytes of input wait on the host's side, beyond the chip's own FIFO.
pub const INPUT_CAPACITY: usize = 4096;

/// The data register, whose reading makes room in the FIFO.
const DATA: u8 = 0;
/// The modem control register, which leaves loopback mode.
const MODEM_CONTROL: u8 = 4;

/// The chip's interrupt line.
struct Line(Arc<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// All that a driver has set, and input that it has not read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[expect(missing_docs, reason = "the registers have the names of the 16550's")]
pub struct SerialState {
    pub baud_divisor: (u8, u8),
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    /// The chip's FIFO.
    pub received: Vec<u8>,
    /// Input that it had no room for.
    pub waiting: Vec<u8>,
}

/// Why a port cannot go on from a state.
#[derive(Debug, Error)]
pub enum SerialError {
    /// There is more input than a port keeps.
    #[error("The serial port's state has {bytes} bytes of input, more than {INPUT_CAPACITY}")]
    Input {
        /// How many.
        bytes: usize,
    },
    /// The chip refuses it.
    #[error("The serial port cannot go on: {0}")]
    Chip(String),
}

/// A serial port.
pub struct Serial {
    uart: Uart<Line, NoEvents, Box<dyn Write + Send>>,
    line: Arc<dyn Interrupt>,
    /// Input the chip's FIFO had no room for.
    waiting: VecDeque<u8>,
    /// Rung when `waiting` has become empty after it was too full to take all input.
    drained: EventFd,
    starved: bool,
    metrics: Arc<SerialMetrics>,
    failures: Throttle,
}

impl Serial {
    /// A port that writes the guest's output to `output`, each byte as it comes. `output` must not wait: a vCPU would
    /// wait with it, and so would everybody else who needs the port.
    pub fn new(interrupt: Arc<dyn Interrupt>, output: Box<dyn Write + Send>) -> io::Result<Self> {
        Ok(Self {
            uart: Uart::new(Line(interrupt.clone()), output),
            line: interrupt,
            waiting: VecDeque::new(),
            drained: EventFd::new(EFD_NONBLOCK)?,
            starved: false,
            metrics: Arc::default(),
            failures: Throttle::default(),
        })
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<SerialMetrics> {
        self.metrics.clone()
    }

    /// All that it holds.
    pub fn state(&self) -> SerialState {
        let chip = self.uart.state();
        SerialState {
            baud_divisor: (chip.baud_divisor_low, chip.baud_divisor_high),
            interrupt_enable: chip.interrupt_enable,
            interrupt_identification: chip.interrupt_identification,
            line_control: chip.line_control,
            line_status: chip.line_status,
            modem_control: chip.modem_control,
            modem_status: chip.modem_status,
            scratch: chip.scratch,
            received: chip.in_buffer,
            waiting: self.waiting.iter().copied().collect(),
        }
    }

    /// Goes on from `state`, printing to `output`. What the guest was interrupted for, and has not seen, it is
    /// interrupted for again.
    pub fn restore(
        &mut self,
        state: &SerialState,
        output: Box<dyn Write + Send>,
    ) -> Result<(), SerialError> {
        let bytes = state.waiting.len();
        if bytes > INPUT_CAPACITY {
            return Err(SerialError::Input { bytes });
        }
        let chip = UartState {
            baud_divisor_low: state.baud_divisor.0,
            baud_divisor_high: state.baud_divisor.1,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.received.clone(),
        };
        self.uart = Uart::from_state(&chip, Line(self.line.clone()), NoEvents, output)
            .map_err(|error| SerialError::Chip(error.to_string()))?;
        self.waiting = state.waiting.iter().copied().collect();
        Ok(())
    }

    /// Gives `input` to the guest and returns how many bytes were taken; the rest has no room yet.
    pub fn input(&mut self, input: &[u8]) -> usize {
        let taken = input.len().min(INPUT_CAPACITY - self.waiting.len());
        self.waiting.extend(&input[..taken]);
        self.starved |= taken < input.len();
        self.refill();
        taken
    }

    /// How many bytes [`input`](Self::input) would take now.
    pub fn input_room(&self) -> usize {
        INPUT_CAPACITY - self.waiting.len()
    }

    /// Moves waiting input into the chip's FIFO as far as it goes.
    fn refill(&mut self) {
        while !self.waiting.is_empty() && self.uart.fifo_capacity() > 0 {
            let (front, _) = self.waiting.as_slices();
            match self.uart.enqueue_raw_bytes(front) {
                // In loopback mode the chip hears only itself.
                Ok(0) => break,
                Ok(taken) => drop(self.waiting.drain(..taken)),
                Err(error) => {
                    self.metrics.error_count.count();
                    self.failures
                        .warn(format_args!("Serial port input failed: {error}"));
                    break;
                }
            }
        }
        if self.starved && self.waiting.is_empty() {
            self.starved = false;
            if let Err(error) = self.drained.trigger() {
                self.failures.warn(format_args!(
                    "Serial port cannot ask for more input: {error}"
                ));
            }
        }
    }
}

impl MutBusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        // The registers are one byte wide.
        let (Ok(offset), [byte]) = (u8::try_from(offset), data) else {
            return self.metrics.missed_read_count.count();
        };
        self.metrics.read_count.count();
        *byte = self.uart.read(offset);
        if offset == DATA {
            self.refill();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (Ok(offset), &[byte]) = (u8::try_from(offset), data) else {
            return self.metrics.missed_write_count.count();
        };
        self.metrics.write_count.count();
        if offset == DATA {
            self.metrics.flush_count.count();
        }
        if let Err(error) = self.uart.write(offset, byte) {
            self.metrics.error_count.count();
            self.failures
                .warn(format_args!("Serial port output is lost: {error}"));
        }
        if offset == MODEM_CONTROL {
            self.refill();
        }
    }
}

/// Feeds a [`Serial`] from a file, pipe or terminal, as an event-manager subscriber.
///
/// While the guest is behind, the source is not watched at all: no busy loop, no growing buffer.
pub struct SerialInput {
    serial: Arc<Mutex<Serial>>,
    source: File,
    drained: EventFd,
    watched: bool,
    /// False for a source that epoll refuses because it never blocks, such as a regular file.
    pollable: bool,
    ended: bool,
}

impl SerialInput {
    /// Feeds `serial` from `source`. Reading it must not block when it is reported readable.
    pub fn new(serial: Arc<Mutex<Serial>>, source: File) -> io::Result<Self> {
        let drained = serial
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drained
            .try_clone()?;
        Ok(Self {
            serial,
            source,
            drained,
            watched: false,
            pollable: true,
            ended: false,
        })
    }

    fn watch(&mut self, ops: &mut EventOps) {
        if self.ended {
            return;
        }
        if !self.watched && self.pollable {
            self.watched = ops.add(Events::new(&self.source, EventSet::IN)).is_ok();
            self.pollable = self.watched;
        }
        if !self.pollable {
            self.pump(ops);
        }
    }

    fn unwatch(&mut self, ops: &mut EventOps) {
        if self.watched {
            self.watched = false;
            if let Err(error) = ops.remove(Events::empty(&self.source)) {
                log::warn!("Cannot stop watching the serial port's input: {error}");
            }
        }
    }

    fn end(&mut self, ops: &mut EventOps) {
        self.ended = true;
        self.unwatch(ops);
    }

    /// Reads what is there, once for a source that may block, up to the room the guest has left.
    fn pump(&mut self, ops: &mut EventOps) {
        let serial = self.serial.clone();
        let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0; INPUT_CAPACITY];
        loop {
            let room = serial.input_room();
            if room == 0 {
                serial.starved = true;
                self.unwatch(ops);
                return;
            }
            match self.source.read(&mut buffer[..room]) {
                Ok(0) => return self.end(ops),
                Ok(len) => {
                    serial.input(&buffer[..len]);
                    if self.watched {
                        return;
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => return,
                    _ => {
                        log::warn!("Serial port has no more input: {error}");
                        return self.end(ops);
                    }
                },
            }
        }
    }
}

impl MutEventSubscriber for SerialInput {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.drained, EventSet::IN)) {
            log::error!("Serial port cannot take input: {error}");
            return;
        }
        self.watch(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.drained.as_raw_fd() {
            // Only the ring matters; the counter does not.
            let _ = self.drained.read();
            self.watch(ops);
        } else {
            self.pump(ops);
        }
    }
}

#[cfg(test)]
mod tests;
