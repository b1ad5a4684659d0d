//! MSI-X (PCI Local Bus 3.0 §6.8.2): a table of messages, each of which can be masked.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::throttle::Throttle;

/// Capability ID.
pub const CAPABILITY: u8 = 0x11;
/// Bytes of one entry of the table.
pub const ENTRY_LEN: u64 = 16;
/// The part of message control that a driver writes: enable and function mask, in the high byte.
pub const CONTROL_WRITABLE: u16 = CONTROL_ENABLE | CONTROL_MASK;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK: u16 = 1 << 14;
/// Vector control: the entry is masked. The other bits are reserved.
const ENTRY_MASKED: u32 = 1 << 0;

/// What a function writes to memory to interrupt a processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct MsiMessage {
    /// Guest address: which processor.
    pub address: u64,
    /// Which interrupt.
    pub data: u32,
}

/// Who delivers the messages of one function: the VMM, by its interrupt controller.
pub trait MsiSink: Send + Sync {
    /// From now on, [`send`](Self::send) of `vector` delivers `message`. Called before the first `send` and whenever the
    /// driver has changed the message.
    fn route(&self, vector: u16, message: MsiMessage) -> io::Result<()>;

    /// Delivers the vector's message. On the way of each interrupt: must be quick.
    fn send(&self, vector: u16) -> io::Result<()>;
}

/// One entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Entry {
    /// The message.
    pub message: MsiMessage,
    /// Not to be sent now.
    pub masked: bool,
    /// It would have been sent while it was masked.
    pub pending: bool,
}

/// Table and control as a value, to be saved.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct MsixState {
    /// Message control: enable and function mask.
    pub control: u16,
    /// One entry for each vector.
    pub entries: Vec<Entry>,
}

impl MsixState {
    fn sends(&self, entry: &Entry) -> bool {
        self.control & (CONTROL_ENABLE | CONTROL_MASK) == CONTROL_ENABLE && !entry.masked
    }
}

struct Inner {
    state: MsixState,
    /// What the sink was last told of each vector.
    routed: Vec<Option<MsiMessage>>,
    failures: Throttle,
}

/// The vectors of one function.
pub struct Msix {
    inner: Mutex<Inner>,
    sink: Arc<dyn MsiSink>,
    vectors: u16,
}

impl Msix {
    /// `vectors` masked vectors (1 to 2048), whose messages `sink` delivers.
    pub fn new(vectors: u16, sink: Arc<dyn MsiSink>) -> Self {
        let entry = Entry {
            message: MsiMessage::default(),
            masked: true,
            pending: false,
        };
        let count = usize::from(vectors);
        let state = MsixState {
            control: 0,
            entries: vec![entry; count],
        };
        Self {
            inner: Mutex::new(Inner {
                state,
                routed: vec![None; count],
                failures: Throttle::default(),
            }),
            sink,
            vectors,
        }
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    /// All that a driver has set.
    pub fn state(&self) -> MsixState {
        self.lock().state.clone()
    }

    /// Goes on from `state`: what may be sent is routed, and what has waited is sent. `false`, and nothing changes, for a
    /// state with another number of vectors.
    pub fn restore(&self, state: &MsixState) -> bool {
        let mut inner = self.lock();
        if state.entries.len() != inner.state.entries.len() {
            return false;
        }
        inner.state.control = state.control & CONTROL_WRITABLE;
        for (entry, saved) in inner.state.entries.iter_mut().zip(&state.entries) {
            *entry = *saved;
            // The two lowest bits of an address are zero.
            entry.message.address &= !3;
        }
        for vector in 0..self.vectors {
            self.update(&mut inner, vector);
        }
        true
    }

    /// Body of the capability, with the table at `table` and the pending bits at `pending` of BAR 0.
    pub fn capability(&self, table: u32, pending: u32) -> [u8; 10] {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&self.vectors.saturating_sub(1).to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        body
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the message of `vector`, or remembers that it was to be sent. Vectors that do not exist, and all while
    /// MSI-X is off, are silent.
    pub fn signal(&self, vector: u16) {
        let mut inner = self.lock();
        let Inner { state, .. } = &mut *inner;
        let enabled = state.control & CONTROL_ENABLE != 0;
        let Some(entry) = state.entries.get(usize::from(vector)) else {
            return;
        };
        if state.sends(entry) {
            self.send(&mut inner, vector);
        } else if enabled {
            state.entries[usize::from(vector)].pending = true;
        }
    }

    /// Takes what the driver wrote to message control.
    pub fn set_control(&self, control: u16) {
        let mut inner = self.lock();
        let control = control & CONTROL_WRITABLE;
        if inner.state.control == control {
            return;
        }
        inner.state.control = control;
        if control & CONTROL_ENABLE == 0 {
            for entry in &mut inner.state.entries {
                entry.pending = false;
            }
        }
        for vector in 0..self.vectors {
            self.update(&mut inner, vector);
        }
    }

    /// Reads the table: aligned 32 or 64 bits; all else is zero.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let inner = self.lock();
        data.fill(0);
        if !aligned(offset, data.len()) {
            return;
        }
        for (word, at) in data.chunks_exact_mut(4).zip([offset, offset | 4]) {
            let entry = usize::try_from(at / ENTRY_LEN).ok();
            if let Some(entry) = entry.and_then(|index| inner.state.entries.get(index)) {
                word.copy_from_slice(&entry.word(at % ENTRY_LEN).to_le_bytes());
            }
        }
    }

    /// Writes the table: aligned 32 or 64 bits; all else changes nothing.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        if !aligned(offset, data.len()) {
            return;
        }
        for (word, at) in data.chunks_exact(4).zip([offset, offset | 4]) {
            let mut value = [0; 4];
            value.copy_from_slice(word);
            let entry = usize::try_from(at / ENTRY_LEN).ok();
            if let Some(entry) = entry.and_then(|index| inner.state.entries.get_mut(index)) {
                entry.set_word(at % ENTRY_LEN, u32::from_le_bytes(value));
            }
        }
        // An access touches one entry: it is aligned to no more than half of one.
        if let Ok(vector) = u16::try_from(offset / ENTRY_LEN) {
            self.update(&mut inner, vector);
        }
    }

    /// Reads the pending bits: aligned 32 or 64 bits; all else is zero.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let inner = self.lock();
        data.fill(0);
        if !aligned(offset, data.len()) {
            return;
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            let first = start.saturating_add(index).saturating_mul(8);
            for (bit, entry) in inner.state.entries.iter().skip(first).take(8).enumerate() {
                *byte |= u8::from(entry.pending) << bit;
            }
        }
    }

    /// After a change: what may be sent is routed, and what had to wait is sent.
    fn update(&self, inner: &mut Inner, vector: u16) {
        let index = usize::from(vector);
        let Some(entry) = inner.state.entries.get(index).copied() else {
            return;
        };
        if !inner.state.sends(&entry) {
            return;
        }
        if inner.routed[index] != Some(entry.message) {
            // A message that cannot be delivered is not tried again before it changes.
            inner.routed[index] = Some(entry.message);
            if let Err(error) = self.sink.route(vector, entry.message) {
                inner.failures.warn(format_args!(
                    "Interrupt vector {vector} cannot be routed to {:x?}: {error}",
                    entry.message
                ));
            }
        }
        if entry.pending {
            inner.state.entries[index].pending = false;
            self.send(inner, vector);
        }
    }

    fn send(&self, inner: &mut Inner, vector: u16) {
        if let Err(error) = self.sink.send(vector) {
            inner.failures.warn(format_args!(
                "Interrupt vector {vector} cannot be sent: {error}"
            ));
        }
    }
}

/// The accesses that §6.8.2 permits.
fn aligned(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

impl Entry {
    fn word(&self, offset: u64) -> u32 {
        let MsiMessage { address, data } = self.message;
        let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
        match offset {
            0 => u32::from_le_bytes([a, b, c, d]),
            4 => u32::from_le_bytes([e, f, g, h]),
            8 => data,
            _ => u32::from(self.masked) * ENTRY_MASKED,
        }
    }

    fn set_word(&mut self, offset: u64, value: u32) {
        let address = &mut self.message.address;
        match offset {
            // The two lowest bits of an address are zero.
            0 => *address = *address >> 32 << 32 | u64::from(value & !3),
            4 => *address = u64::from(value) << 32 | *address & u64::from(u32::MAX),
            8 => self.message.data = value,
            _ => self.masked = value & ENTRY_MASKED != 0,
        }
    }
}

#[cfg(test)]
mod tests;
