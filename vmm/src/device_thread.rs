//! A thread that does the work of one device.

use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use devices::virtio::state::SharedState;
use devices::virtio::worker::VirtioWorker;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use crate::exit::ExitReason;
use crate::jail::seccomp::{Seccomp, ThreadKind};
use crate::latch::ExitLatch;
use crate::logger::chain;
use crate::machine::MachineError;
use crate::metrics;

/// Bytes of stack: an image format's code goes a few dozen calls deep.
const STACK_BYTES: usize = 512 << 10;

/// How long the devices have to end their work after the run has ended: time for a slow disk to take what is cached.
const PATIENCE: Duration = Duration::from_secs(20);

type Loop = EventManager<Box<dyn MutEventSubscriber + Send>>;

/// A device's event loop, until it gets a thread.
pub struct DeviceThread {
    events: Loop,
    state: SharedState,
    latch: Arc<ExitLatch>,
}

impl DeviceThread {
    /// Prepares the loop for `worker`; it ends when `latch` is set.
    pub fn new(worker: VirtioWorker, latch: Arc<ExitLatch>) -> Result<Self, MachineError> {
        let mut events = Loop::new().map_err(MachineError::EventLoop)?;
        let _: event_manager::SubscriberId =
            events.add_subscriber(Box::new(EndWatch::new(latch.clone())));
        let state = worker.state();
        let _ = events.add_subscriber(Box::new(worker));
        Ok(Self {
            events,
            state,
            latch,
        })
    }

    /// Runs the loop on a thread of its own. When the run has ended, the thread ends the device's work.
    pub fn spawn(
        mut self,
        number: usize,
        seccomp: Seccomp,
    ) -> Result<JoinHandle<()>, MachineError> {
        let body = move || {
            if let Err(error) = seccomp.enter(ThreadKind::Device) {
                self.latch.set(ExitReason::Error(chain(&error)));
            }
            while !self.latch.is_set() {
                match self.events.run() {
                    Ok(events) => metrics::process().vmm.device_events.add(events as u64),
                    Err(error) => {
                        let what = format!("The event loop of device {number} failed: {error}");
                        self.latch.set(ExitReason::Error(what));
                    }
                }
            }
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.shut_down();
        };
        thread::Builder::new()
            .name(format!("device{number}"))
            .stack_size(STACK_BYTES)
            .spawn(body)
            .map_err(MachineError::Thread)
    }
}

/// Waits until all of `threads` have ended their devices' work, but not for ever.
pub fn join(threads: Vec<JoinHandle<()>>) {
    let mut waited = Duration::ZERO;
    for thread in threads {
        let mut pause = Duration::from_micros(50);
        while !thread.is_finished() {
            if waited >= PATIENCE {
                log::error!(
                    "A device does not end its work, it is abandoned: a disk may be damaged"
                );
                return;
            }
            thread::sleep(pause);
            waited += pause;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        if thread.join().is_err() {
            log::error!("A device's thread has panicked");
        }
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
