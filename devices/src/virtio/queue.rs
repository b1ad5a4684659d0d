//! Split virtqueues (virtio 1.2 §2.7): the rings, and every check on what a driver puts into them.
//!
//! This module and [`chain`](super::chain) check everything a driver says. All errors are the driver's fault and end in
//! "needs reset".
//!
//! The arithmetic of the rings is our own, not `virtio-queue`'s: counted in instructions, its accesses to guest memory
//! were most of what a request cost (see [`memory::contiguous`]).

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::chain::Chain;
use super::device::Progress;
use super::interrupt::QueueInterrupt;
use crate::memory::{self, GuestMemory};
use crate::rate_limiter::RateLimiter;

/// How long one call serves requests: the thread has other devices, and orders of its own, to look after.
const TURN: Duration = Duration::from_millis(10);

/// Used ring flag: the driver need not ring (`VIRTQ_USED_F_NO_NOTIFY`).
const NO_NOTIFY: u16 = 1;

/// Features every device has by its rings and its age (virtio 1.2 §6).
pub const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// How a driver broke the rules of a queue.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum QueueError {
    #[error("Queue size {size} is not a power of two from 1 to {max}")]
    Size { size: u32, max: u16 },
    #[error("{area} at guest address {address:#x} is not aligned to {align} bytes")]
    Alignment {
        area: &'static str,
        address: u64,
        align: u64,
    },
    #[error("{area} of {len:#x} bytes at guest address {address:#x} is not in guest memory")]
    AreaOutsideMemory {
        area: &'static str,
        address: u64,
        len: u64,
    },
    #[error("Available index {index} is more than the queue size {size} ahead of {next}")]
    AvailableIndex { index: u16, next: u16, size: u16 },
    #[error("Chain head {head} is outside the queue of {size} descriptors")]
    HeadOutsideQueue { head: u16, size: u16 },
    #[error("Chain head {head} was made available again while still in flight")]
    DuplicateHead { head: u16 },
    #[error("Chain {head} loops: it is longer than its descriptor table")]
    ChainLoops { head: u16 },
    #[error("Chain {head} goes to descriptor {index} of a table of {entries}")]
    NextOutsideTable { head: u16, index: u32, entries: u32 },
    #[error("Chain {head} has a buffer of {len:#x} bytes at {address:#x}, not in guest memory")]
    BufferOutsideMemory { head: u16, address: u64, len: u32 },
    #[error("Chain {head} has an empty buffer")]
    EmptyBuffer { head: u16 },
    #[error("Chain {head} has a readable buffer after a writable one")]
    ReadableAfterWritable { head: u16 },
    #[error("Chain {head} holds 4 GiB or more")]
    ChainTooLarge { head: u16 },
    #[error("Chain {head} has an indirect table where none is allowed")]
    UnexpectedIndirect { head: u16 },
    #[error("Chain {head} has an indirect table of {len} bytes, not 1 to {max} descriptors")]
    IndirectTableLength { head: u16, len: u32, max: u32 },
    #[error("Chain {head} is not a request of this device: {what}")]
    Request { head: u16, what: &'static str },
    #[error("Queue memory cannot be accessed")]
    Memory(#[source] GuestMemoryError),
}

/// What the driver has written to a queue's registers, unchecked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct QueueRegisters {
    /// Number of descriptors.
    pub size: u32,
    /// The driver has finished with the others.
    pub ready: bool,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring ("driver area").
    pub available: u64,
    /// Guest address of the used ring ("device area").
    pub used: u64,
}

/// Where a stopped queue stood, to go on from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct QueueState {
    /// Index of the next entry of the available ring to take.
    pub next_available: u16,
    /// Index of the next entry of the used ring to fill.
    pub next_used: u16,
}

/// A running queue, as a device holds it.
pub struct Virtqueue {
    size: u16,
    // Guest addresses; each ring was found in guest memory at the start, so no sum with an offset in it wraps.
    descriptors: u64,
    available_ring: u64,
    used_ring: u64,
    event_index: bool,
    next_available: u16,
    next_used: u16,
    memory: Arc<GuestMemory>,
    interrupt: QueueInterrupt,
    indirect: bool,
    /// The available index when it was last read: entries up to it need no new look.
    available: u16,
    /// The used index when the driver was last considered for an interrupt.
    signalled: u16,
    /// One bit for each head the device has taken and not given back.
    in_flight: Box<[u64]>,
    /// `in_flight` is right: always, but where another serves the rings faster than he is followed.
    followed: bool,
}

impl Virtqueue {
    /// Checks `registers` and makes a queue of at most `max_size` descriptors of them that starts anew,
    /// or where `state` says.
    pub fn new(
        registers: &QueueRegisters,
        max_size: u16,
        features: u64,
        memory: Arc<GuestMemory>,
        interrupt: QueueInterrupt,
        state: Option<QueueState>,
    ) -> Result<Self, QueueError> {
        let size = u16::try_from(registers.size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= max_size)
            .ok_or(QueueError::Size {
                size: registers.size,
                max: max_size,
            })?;
        let entries = u64::from(size);
        // Lengths and alignments: virtio 1.2 §2.7. The rings end in their event index.
        for (area, address, len, align) in [
            ("Descriptor table", registers.descriptors, 16 * entries, 16),
            ("Available ring", registers.available, 6 + 2 * entries, 2),
            ("Used ring", registers.used, 6 + 8 * entries, 4),
        ] {
            if address % align != 0 {
                return Err(QueueError::Alignment {
                    area,
                    address,
                    align,
                });
            }
            let in_memory = usize::try_from(len).is_ok_and(|len| {
                GuestMemoryBackend::check_range(&*memory, GuestAddress(address), len)
            });
            if !in_memory {
                return Err(QueueError::AreaOutsideMemory { area, address, len });
            }
        }

        let state = state.unwrap_or_default();
        Ok(Self {
            size,
            descriptors: registers.descriptors,
            available_ring: registers.available,
            used_ring: registers.used,
            event_index: features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
            next_available: state.next_available,
            next_used: state.next_used,
            memory,
            interrupt,
            indirect: features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0,
            available: state.next_available,
            signalled: state.next_used,
            in_flight: vec![0; usize::from(size).div_ceil(64)].into_boxed_slice(),
            followed: true,
        })
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The memory the queue and its buffers lie in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Where the queue stands.
    pub fn state(&self) -> QueueState {
        QueueState {
            next_available: self.next_available,
            next_used: self.next_used,
        }
    }

    /// Where the rings lie and how large they are, for one who serves them in place of this queue.
    pub fn rings(&self) -> QueueRegisters {
        QueueRegisters {
            size: self.size.into(),
            ready: true,
            descriptors: self.descriptors,
            available: self.available_ring,
            used: self.used_ring,
        }
    }

    /// Interrupts the driver for one who serves the rings in place of this queue, and has looked whether it is wanted.
    pub fn pass_on_interrupt(&self) {
        self.interrupt.signal();
    }

    /// Notes what the driver has given, and what was given back to it, since the last call: while another serves the
    /// rings, so that [`recover`](Self::recover) knows what he has left. Up to a queue's worth of either can be found.
    pub fn follow(&mut self) -> Result<(), QueueError> {
        // In this order, nothing is seen given back that was not seen given.
        let used = self.load_used_index()?;
        let available = self.load_available(2, Ordering::Acquire)?;
        let (first_used, first_available) = (self.next_used, self.next_available);
        let size = self.size;
        for index in (0..size).map(|i| first_available.wrapping_add(i)) {
            if index == available {
                break;
            }
            let head = self.load_available(4 + 2 * u64::from(index % size), Ordering::Relaxed)?;
            self.toggle(u32::from(head));
        }
        for index in (0..size).map(|i| first_used.wrapping_add(i)) {
            if index == used {
                break;
            }
            let entry = GuestAddress(self.used_ring + 4 + 8 * u64::from(index % size));
            let head: u32 = memory::read(&self.memory, entry).map_err(QueueError::Memory)?;
            self.toggle(u32::from_le(head));
        }
        // What was written over meanwhile was not seen.
        fence(Ordering::Acquire);
        let seen = self.load_used_index()?.wrapping_sub(first_used) <= size
            && self
                .load_available(2, Ordering::Acquire)?
                .wrapping_sub(first_available)
                <= size;
        self.followed &= seen;
        if available == used {
            self.in_flight.fill(0);
            self.followed = true;
        }
        (self.next_available, self.available) = (available, available);
        (self.next_used, self.signalled) = (used, used);
        Ok(())
    }

    /// Notes that `head` was given, or given back: the one always follows the other.
    fn toggle(&mut self, head: u32) {
        match u16::try_from(head) {
            Ok(head) if head < self.size => {
                let (word, bit) = in_flight_bit(head);
                self.in_flight[word] ^= bit;
            }
            _ => self.followed = false,
        }
    }

    /// Answers with `handle` what another who has served the rings has left, and goes on in his place. Returns how many
    /// requests stay unanswered because it is not known which they are.
    pub fn recover(
        &mut self,
        chain: &mut Chain,
        mut handle: impl FnMut(&GuestMemory, &mut Chain) -> Result<u32, QueueError>,
    ) -> Result<u16, QueueError> {
        self.follow()?;
        let left: Vec<u16> = (0..self.size)
            .filter(|&head| {
                let (word, bit) = in_flight_bit(head);
                self.in_flight[word] & bit != 0
            })
            .collect();
        let expected = self.next_available.wrapping_sub(self.next_used);
        self.in_flight.fill(0);
        if !self.followed || left.len() != usize::from(expected) {
            return Ok(expected);
        }
        let memory = self.memory.clone();
        for head in left {
            let table = GuestAddress(self.descriptors);
            chain.load(&memory, table, self.size, head, self.indirect)?;
            let written = handle(&memory, chain)?;
            self.complete(head, written)?;
        }
        self.signal_used()?;
        Ok(0)
    }

    /// Notes that another who has served the rings would have taken the entry `next_available` next.
    pub fn stopped_at(&mut self, next_available: u16) -> Result<(), QueueError> {
        self.next_used = self.load_used_index()?;
        self.next_available = next_available;
        Ok(())
    }

    fn load_used_index(&self) -> Result<u16, QueueError> {
        memory::load(
            &self.memory,
            GuestAddress(self.used_ring + 2),
            Ordering::Acquire,
        )
        .map(u16::from_le)
        .map_err(QueueError::Memory)
    }

    /// Requests that the driver was last seen to have made available, and that are not taken yet.
    pub fn waiting(&self) -> u16 {
        self.available.wrapping_sub(self.next_available)
    }

    /// Takes the next request into `chain`. `false` where there is none.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        let (next, size) = (self.next_available, self.size);
        if next == self.available {
            // Acquire: what the driver wrote before it moved the index is visible after this.
            let index = self.load_available(2, Ordering::Acquire)?;
            if index.wrapping_sub(next) > size {
                return Err(QueueError::AvailableIndex { index, next, size });
            }
            self.available = index;
            if next == index {
                return Ok(false);
            }
        }
        let head = self.load_available(4 + 2 * u64::from(next % size), Ordering::Relaxed)?;
        if head >= size {
            return Err(QueueError::HeadOutsideQueue { head, size });
        }
        let (word, bit) = in_flight_bit(head);
        if self.in_flight[word] & bit != 0 {
            return Err(QueueError::DuplicateHead { head });
        }
        let table = GuestAddress(self.descriptors);
        chain.load(&self.memory, table, size, head, self.indirect)?;
        self.in_flight[word] |= bit;
        self.next_available = next.wrapping_add(1);
        Ok(true)
    }

    /// Gives the request with this `head` back to the driver, with `written` bytes in its writable
    /// buffers. The driver is not interrupted yet: see [`signal_used`](Self::signal_used).
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.complete_together(&[(head, written)])
    }

    /// As [`complete`](Self::complete), for several requests, of which the driver sees all or none: a frame that lies in
    /// several buffers is received as a whole.
    pub fn complete_together(&mut self, requests: &[(u16, u32)]) -> Result<(), QueueError> {
        let size = self.size;
        let mut next = self.next_used;
        for &(head, written) in requests {
            if head >= size {
                return Err(QueueError::HeadOutsideQueue { head, size });
            }
            let (word, bit) = in_flight_bit(head);
            self.in_flight[word] &= !bit;
            // Two fields of 32 bits (virtio 1.2 §2.7.8), each of which lies in one page.
            let entry = self.used_ring + 4 + 8 * u64::from(next % size);
            for (at, value) in [(entry, u32::from(head)), (entry + 4, written)] {
                memory::write(&self.memory, GuestAddress(at), value.to_le())
                    .map_err(QueueError::Memory)?;
            }
            next = next.wrapping_add(1);
        }
        self.next_used = next;
        // Release: who sees the index sees the entries and the buffers.
        self.store_used(2, next, Ordering::Release)
    }

    /// Interrupts the driver if it asked for it, once for all requests completed since the last call.
    pub fn signal_used(&mut self) -> Result<(), QueueError> {
        let used = self.next_used;
        let before = std::mem::replace(&mut self.signalled, used);
        if used == before {
            return Ok(());
        }
        // The index is written before it is read what the driver waits for; the driver does it the other way round.
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            // Whether the driver's event index lies among those just used (virtio 1.2 §2.7.7.2).
            let event = self.load_available(4 + 2 * u64::from(self.size), Ordering::Relaxed)?;
            used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(before)
        } else {
            u32::from(self.load_available(0, Ordering::Relaxed)?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.interrupt.signal();
        }
        Ok(())
    }

    /// Reads the 16 bits at `offset` of the available ring.
    fn load_available(&self, offset: u64, order: Ordering) -> Result<u16, QueueError> {
        let address = GuestAddress(self.available_ring + offset);
        memory::load(&self.memory, address, order)
            .map(u16::from_le)
            .map_err(QueueError::Memory)
    }

    /// Writes the 16 bits at `offset` of the used ring.
    fn store_used(&self, offset: u64, value: u16, order: Ordering) -> Result<(), QueueError> {
        let address = GuestAddress(self.used_ring + offset);
        memory::store(&self.memory, value.to_le(), address, order).map_err(QueueError::Memory)
    }

    /// Asks the driver not to ring while the device looks at the queue anyway. A hint: rings may still come.
    pub fn pause_notifications(&mut self) -> Result<(), QueueError> {
        if self.event_index {
            // Having rung once, it does not ring again until it is asked to.
            return Ok(());
        }
        self.store_used(0, NO_NOTIFY, Ordering::Relaxed)
    }

    /// Asks the driver to ring again. `true` where requests came in meanwhile, for which it will not ring.
    pub fn resume_notifications(&mut self) -> Result<bool, QueueError> {
        if self.event_index {
            let event = 4 + 8 * u64::from(self.size);
            self.store_used(event, self.next_available, Ordering::Relaxed)?;
        } else {
            self.store_used(0, 0, Ordering::Relaxed)?;
        }
        // The wish is written before it is looked for more; the driver does it the other way round.
        fence(Ordering::SeqCst);
        Ok(self.load_available(2, Ordering::Relaxed)? != self.next_available)
    }

    /// Serves requests one after the other, each with `handle`, which returns the bytes it wrote.
    ///
    /// At most one queue's worth or one [`TURN`] is served in a call, so that a driver that never stops cannot keep
    /// the thread from its other devices. The driver rings only once the queue was found empty, and
    /// is interrupted only at the end: one exit and one interrupt for a whole batch.
    pub fn serve(
        &mut self,
        chain: &mut Chain,
        handle: impl FnMut(&GuestMemory, &mut Chain) -> Result<u32, QueueError>,
    ) -> Result<Progress, QueueError> {
        self.serve_limited(chain, None, handle)
    }

    /// As [`serve`](Self::serve), as far as `limiter` permits; the bytes written are charged. Where it does not, the
    /// driver is not asked to ring: the limiter's source says when to go on.
    pub fn serve_limited(
        &mut self,
        chain: &mut Chain,
        mut limiter: Option<&mut RateLimiter>,
        mut handle: impl FnMut(&GuestMemory, &mut Chain) -> Result<u32, QueueError>,
    ) -> Result<Progress, QueueError> {
        let memory = self.memory.clone();
        let mut budget = self.size;
        let end_of_turn = Instant::now() + TURN;
        let mut completed = false;
        self.pause_notifications()?;
        let progress = loop {
            if budget == 0 || Instant::now() >= end_of_turn {
                break Progress::More;
            }
            if !limiter.as_mut().is_none_or(|limiter| limiter.is_open()) {
                break Progress::Idle;
            }
            if self.pop(chain)? {
                let written = handle(&memory, chain)?;
                if let Some(limiter) = &mut limiter {
                    limiter.charge(written.into());
                }
                self.complete(chain.head(), written)?;
                completed = true;
                budget -= 1;
            } else if !self.resume_notifications()? {
                break Progress::Idle;
            }
        };
        if completed {
            self.signal_used()?;
        }
        Ok(progress)
    }
}

/// Word and bit of `head` in the bitmap of requests in flight.
fn in_flight_bit(head: u16) -> (usize, u64) {
    (usize::from(head / 64), 1 << (head % 64))
}

#[cfg(test)]
mod tests;
