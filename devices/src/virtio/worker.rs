//! The device thread's side of a virtio device: doorbells in, queue work out.

use std::sync::{Arc, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::state::SharedState;

/// Does the work of one device whenever one of its doorbells rings.
///
/// Which thread that is, and how many devices share it, is up to whoever runs the event manager.
pub struct VirtioWorker {
    state: SharedState,
    doorbells: Arc<[EventFd]>,
}

impl VirtioWorker {
    /// A worker for the device behind `state`.
    pub fn new(state: SharedState) -> Self {
        let doorbells = state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .doorbells();
        Self { state, doorbells }
    }
}

impl MutEventSubscriber for VirtioWorker {
    fn init(&mut self, ops: &mut EventOps) {
        for (index, doorbell) in (0..).zip(self.doorbells.iter()) {
            if let Err(error) = ops.add(Events::with_data(doorbell, index, EventSet::IN)) {
                log::error!("Queue {index} of a virtio device cannot be served: {error}");
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let Ok(index) = u16::try_from(events.data()) else {
            return;
        };
        if let Some(doorbell) = self.doorbells.get(usize::from(index)) {
            // Silenced before the work: a ring that comes during it must wake us again. An empty
            // counter only means that someone else has read it.
            let _ = doorbell.read();
            self.state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .process_queue(index);
        }
    }
}
