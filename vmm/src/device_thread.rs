//! A thread that does the work of one device.

use std::sync::Arc;
use std::thread;

use devices::virtio::worker::VirtioWorker;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use crate::exit::ExitReason;
use crate::latch::ExitLatch;
use crate::machine::MachineError;

/// Bytes of stack: an image format's code goes a few dozen calls deep.
const STACK_BYTES: usize = 512 << 10;

type Loop = EventManager<Box<dyn MutEventSubscriber + Send>>;

/// A device's event loop, until it gets a thread.
pub struct DeviceThread {
    events: Loop,
    latch: Arc<ExitLatch>,
}

impl DeviceThread {
    /// Prepares the loop for `worker`; it ends when `latch` is set.
    pub fn new(worker: VirtioWorker, latch: Arc<ExitLatch>) -> Result<Self, MachineError> {
        let mut events = Loop::new().map_err(MachineError::EventLoop)?;
        let _: event_manager::SubscriberId =
            events.add_subscriber(Box::new(EndWatch::new(latch.clone())));
        let _ = events.add_subscriber(Box::new(worker));
        Ok(Self { events, latch })
    }

    /// Runs the loop on a thread of its own.
    pub fn spawn(mut self, number: usize) -> Result<(), MachineError> {
        let body = move || {
            while !self.latch.is_set() {
                if let Err(error) = self.events.run() {
                    let what = format!("The event loop of device {number} failed: {error}");
                    self.latch.set(ExitReason::Error(what));
                }
            }
        };
        thread::Builder::new()
            .name(format!("device{number}"))
            .stack_size(STACK_BYTES)
            .spawn(body)
            .map(drop)
            .map_err(MachineError::Thread)
    }
}

/// Wakes an event loop when the run has ended.
pub struct EndWatch(Arc<ExitLatch>);

impl EndWatch {
    /// Wakes the loop it is added to when `latch` is set.
    pub fn new(latch: Arc<ExitLatch>) -> Self {
        Self(latch)
    }
}

impl MutEventSubscriber for EndWatch {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(self.0.event(), EventSet::IN)) {
            self.0.set(ExitReason::Error(format!(
                "The end of the guest cannot be seen: {error}"
            )));
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}
}
