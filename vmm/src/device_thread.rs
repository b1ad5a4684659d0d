//! A thread that does the work of one device.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use devices::virtio::state::SharedState;
use devices::virtio::worker::VirtioWorker;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::exit::ExitReason;
use crate::jail::seccomp::{Seccomp, ThreadKind};
use crate::latch::ExitLatch;
use crate::logger::chain;
use crate::metrics;

/// Bytes of stack: an image format's code goes a few dozen calls deep.
const STACK_BYTES: usize = 512 << 10;

/// How long the devices have to end their work after the run has ended: time for a slow disk to take what is cached.
const PATIENCE: Duration = Duration::from_secs(20);

type Loop = EventManager<Box<dyn MutEventSubscriber + Send>>;

/// Why a device has no thread.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// It has nothing to wait with.
    #[error("Cannot create the event loop of a device")]
    EventLoop(#[source] event_manager::Error),
    /// It cannot be told to end.
    #[error("Cannot create the event that ends a device's thread")]
    Event(#[source] io::Error),
    /// The host gives no more threads.
    #[error("Cannot start a thread for a device")]
    Spawn(#[source] io::Error),
}

/// Ends one device's thread while the run goes on.
struct Stop {
    asked: AtomicBool,
    event: EventFd,
}

/// A device's event loop, until it gets a thread.
pub struct DeviceThread {
    events: Loop,
    state: SharedState,
    latch: Arc<ExitLatch>,
    stop: Arc<Stop>,
}

impl DeviceThread {
    /// Prepares the loop for `worker`; it ends when `latch` is set, or when it is told to.
    pub fn new(worker: VirtioWorker, latch: Arc<ExitLatch>) -> Result<Self, ThreadError> {
        let mut events = Loop::new().map_err(ThreadError::EventLoop)?;
        let stop = Arc::new(Stop {
            asked: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK).map_err(ThreadError::Event)?,
        });
        let state = worker.state();
        for subscriber in [
            Box::new(EndWatch::new(latch.clone())) as Box<dyn MutEventSubscriber + Send>,
            Box::new(StopWatch(stop.clone())),
            Box::new(worker),
        ] {
            let _: event_manager::SubscriberId = events.add_subscriber(subscriber);
        }
        Ok(Self {
            events,
            state,
            latch,
            stop,
        })
    }

    /// Runs the loop on a thread of its own. When the run has ended, or the thread was told to, it ends the device's work.
    pub fn spawn(mut self, number: usize, seccomp: Seccomp) -> Result<RunningThread, ThreadError> {
        let (stop, state) = (self.stop.clone(), self.state.clone());
        let body = move || {
            if let Err(error) = seccomp.enter(ThreadKind::Device) {
                self.latch.set(ExitReason::Error(chain(&error)));
            }
            while !self.latch.is_set() && !self.stop.asked.load(Ordering::SeqCst) {
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
        let handle = thread::Builder::new()
            .name(format!("device{number}"))
            .stack_size(STACK_BYTES)
            .spawn(body)
            .map_err(ThreadError::Spawn)?;
        Ok(RunningThread {
            handle,
            stop,
            _state: state,
        })
    }
}

/// A device's thread at work.
pub struct RunningThread {
    handle: JoinHandle<()>,
    stop: Arc<Stop>,
    /// Keeps the device, so that it is taken apart by who joins the thread: the thread itself may not.
    _state: SharedState,
}

impl RunningThread {
    /// Tells it to end the device's work and itself.
    pub fn stop(&self) {
        self.stop.asked.store(true, Ordering::SeqCst);
        if let Err(error) = self.stop.event.write(1) {
            log::error!("A device's thread cannot be woken: {error}");
        }
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Takes leave of one that [is finished](Self::is_finished), and of all that the device had.
    pub fn join(self) {
        if self.handle.join().is_err() {
            log::error!("A device's thread has panicked");
        }
    }
}

/// Waits until all of `threads` have ended their devices' work, but not for ever.
pub fn join(threads: Vec<RunningThread>) {
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
        thread.join();
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

/// Wakes a device's event loop when it is to end.
struct StopWatch(Arc<Stop>);

impl MutEventSubscriber for StopWatch {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.0.event, EventSet::IN)) {
            log::error!("A device's thread will not see that it is to end: {error}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}
}
