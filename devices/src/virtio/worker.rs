//! The device thread's side of a virtio device: doorbells and the device's own descriptors in, queue work out.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{Progress, Source};
use super::state::SharedState;
use crate::interrupt::Interrupt;

/// Does the work of one device whenever one of its doorbells rings, or one of its own descriptors is ready.
///
/// Which thread that is, and how many devices share it, is up to whoever runs the event manager.
pub struct VirtioWorker {
    state: SharedState,
    doorbells: Arc<[EventFd]>,
    sources: Vec<Source>,
    /// Rung for each source with work left over from its last turn; the bits say which.
    again: EventFd,
    unfinished: u64,
}

impl VirtioWorker {
    /// A worker for the device behind `state`.
    pub fn new(state: SharedState) -> io::Result<Self> {
        let locked = state.lock().unwrap_or_else(PoisonError::into_inner);
        let (doorbells, sources) = (locked.doorbells(), locked.sources());
        drop(locked);
        Ok(Self {
            state,
            doorbells,
            sources,
            again: EventFd::new(EFD_NONBLOCK)?,
            unfinished: 0,
        })
    }

    /// The device's state, for who ends its run.
    pub fn state(&self) -> SharedState {
        self.state.clone()
    }

    /// What the events of the doorbells, the sources and `again` carry, in this order.
    fn first_source(&self) -> usize {
        self.doorbells.len()
    }

    fn again_data(&self) -> usize {
        self.doorbells.len() + self.sources.len()
    }

    fn wake(&mut self, source: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.wake(source) == Progress::More {
            self.unfinished |= 1 << source;
            // A counter that is full rings as well.
            let _ = self.again.trigger();
        }
    }
}

impl MutEventSubscriber for VirtioWorker {
    fn init(&mut self, ops: &mut EventOps) {
        // An edge needs no reading: each ring wakes us once, also one that comes during the work, and the counter that
        // nobody empties takes centuries to fill.
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let doorbells = self.doorbells.iter().map(|fd| (fd.as_raw_fd(), edge));
        let sources = self.sources.iter().map(|source| (source.fd, source.events));
        let again = (self.again.as_raw_fd(), EventSet::IN);
        for (data, (fd, events)) in (0..).zip(doorbells.chain(sources).chain([again])) {
            let watched = Watched(fd);
            if let Err(error) = ops.add(Events::with_data(&watched, data, events)) {
                log::error!("Event {data} of a virtio device cannot be served: {error}");
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let data = events.data() as usize;
        if data < self.first_source() {
            let index = u16::try_from(data).unwrap_or(u16::MAX);
            self.state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .process_queue(index);
        } else if data == self.again_data() {
            let _ = self.again.read();
            let unfinished = std::mem::take(&mut self.unfinished);
            for source in (0..self.sources.len()).filter(|source| unfinished & 1 << source != 0) {
                self.wake(source);
            }
        } else {
            self.wake(data - self.first_source());
        }
    }
}

/// A descriptor that somebody else keeps open.
struct Watched(RawFd);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

#[cfg(test)]
mod tests;
