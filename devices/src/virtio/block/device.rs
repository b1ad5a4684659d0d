//! The block device: requests from its queues to a [`Backend`], and back when they are done.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use event_manager::EventSet;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::GuestAddress;

use super::backend::{Action, Backend, Job, Start};
use super::config::{self, QUEUE_SIZE};
use super::control::{BlockControl, Mailbox, Orders};
use super::engine::{Engine, MAX_IN_FLIGHT};
use super::request::{Operation, Request, Rules, SERIAL_LEN, Status};
use crate::memory::{self, GuestMemory};
use crate::metrics::{BlockMetrics, Metrics};
use crate::rate_limiter::RateLimiter;
use crate::throttle::Throttle;
use crate::virtio::chain::Chain;
use crate::virtio::device::{DeviceTraits, Progress, Source, VirtioDevice, copy_config};
use crate::virtio::queue::{QueueError, QueueState, Virtqueue};
use crate::virtio::saved::{DeviceState, RestoreError};

/// Most data bytes moved in one call, where the disk is not asynchronous: the device has other queues, and its state is
/// locked as long.
const TURN_BYTES: u64 = 16 << 20;

/// How a disk is presented and worked on.
pub struct Options {
    /// How the guest tells it from others (`/dev/disk/by-id`): the first 20 bytes count.
    pub serial: String,
    /// Number of queues, 1 to 16.
    pub queues: u16,
    /// How much the guest may move in a time; the limiter's buckets count data bytes and requests.
    pub limiter: Option<RateLimiter>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            serial: String::new(),
            queues: 1,
            limiter: None,
        }
    }
}

/// A disk.
pub struct Block {
    queues: Vec<Option<Running>>,
    /// How many queues were started so far: tells those that had the same place one after the other from each other.
    starts: u64,
    chain: Chain,
    disk: Disk,
    mailbox: Mailbox,
    sources: Vec<(Source, Wake)>,
    traits: DeviceTraits,
    config_changed: bool,
}

/// A queue the driver has started.
struct Running {
    queue: Virtqueue,
    /// Of which start it is.
    start: u64,
    /// Requests of it that the engine has.
    in_flight: u16,
    /// Some were given back, and the driver does not know yet.
    completed: bool,
    /// There may be more in it, which could not be taken: too many in flight, or the limiter is closed. The driver will
    /// not ring for them.
    waiting: bool,
}

/// What serves the requests, apart from the queues they come by.
struct Disk {
    backend: Box<dyn Backend>,
    engine: Engine,
    serial: [u8; SERIAL_LEN],
    features: u64,
    limiter: Option<RateLimiter>,
    /// By token; those in `free` mean nothing.
    requests: Vec<Pending>,
    free: Vec<u16>,
    /// Something that the driver was told is written may not be: a flush has failed. Another one that succeeds proves
    /// nothing, because the host reports such an error once. Stays until the driver starts anew and reads what is there.
    lost: bool,
    failures: Throttle,
    /// When the turn began, or the last request that was done at once ended.
    now: Instant,
    metrics: Arc<BlockMetrics>,
}

/// What a request needs for its end.
#[derive(Clone, Copy)]
struct Pending {
    queue: u16,
    /// The start of the queue that it came by.
    start: u64,
    head: u16,
    operation: Operation,
    status: GuestAddress,
    /// Bytes of data the driver has room for.
    room: u32,
    /// When the turn began in which it was taken: one look at the clock for all of them.
    since: Instant,
}

/// What a source of the device's is for.
#[derive(Clone, Copy)]
enum Wake {
    Engine,
    Mailbox,
    Limiter,
}

impl Block {
    /// A disk with the contents of `backend`, moved by `engine`.
    pub fn new(
        mut backend: Box<dyn Backend>,
        mut engine: Engine,
        options: Options,
    ) -> io::Result<Self> {
        backend.attach(&mut engine)?;
        let queues = options.queues.clamp(1, 16);
        let mut serial = [0; SERIAL_LEN];
        for (to, from) in serial.iter_mut().zip(options.serial.bytes()) {
            *to = from;
        }
        let mailbox = Mailbox::new()?;
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let source = |fd, events, wake| (Source { fd, events }, wake);
        let mut sources = vec![source(mailbox.descriptor(), edge, Wake::Mailbox)];
        // Ready as long as there is something to reap, so nothing is missed and nothing needs to be read.
        sources.extend(
            engine
                .descriptor()
                .map(|fd| source(fd, EventSet::IN, Wake::Engine)),
        );
        sources.extend(
            options
                .limiter
                .iter()
                .map(|limiter| (limiter.source(), Wake::Limiter)),
        );
        let traits = DeviceTraits {
            device_id: VIRTIO_ID_BLOCK,
            features: config::features(&*backend, queues),
            queue_sizes: vec![QUEUE_SIZE; queues.into()],
            config_len: config::LEN as u64,
        };
        let nothing = Pending {
            queue: 0,
            start: 0,
            head: 0,
            operation: Operation::GetId,
            status: GuestAddress(0),
            room: 0,
            since: Instant::now(),
        };
        Ok(Self {
            queues: (0..queues).map(|_| None).collect(),
            starts: 0,
            chain: Chain::new(),
            disk: Disk {
                backend,
                engine,
                serial,
                features: 0,
                limiter: options.limiter,
                requests: vec![nothing; MAX_IN_FLIGHT.into()],
                free: (0..MAX_IN_FLIGHT).collect(),
                lost: false,
                failures: Throttle::default(),
                now: Instant::now(),
                metrics: Arc::default(),
            },
            mailbox,
            sources,
            traits,
            config_changed: false,
        })
    }

    /// What changes the disk while the guest has it.
    pub fn control(&self) -> BlockControl {
        BlockControl {
            mailbox: self.mailbox.clone(),
            read_only: self.disk.backend.read_only(),
        }
    }

    /// Takes requests from queue `index` and starts them, as many as one call may.
    fn take_requests(&mut self, index: u16) -> Result<Progress, QueueError> {
        let progress = self.start_requests(index)?;
        if let Some(Some(running)) = self.queues.get(usize::from(index)) {
            let left = running.queue.waiting().into();
            self.disk.metrics.remaining_reqs_count.add(left);
        }
        Ok(progress)
    }

    fn start_requests(&mut self, index: u16) -> Result<Progress, QueueError> {
        let Self {
            queues,
            chain,
            disk,
            ..
        } = self;
        let Some(running) = queues.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return Ok(Progress::Idle);
        };
        let memory = running.queue.memory().clone();
        let mut budget = running.queue.size();
        let mut bytes = 0;
        running.waiting = false;
        running.queue.pause_notifications()?;
        loop {
            if budget == 0 || bytes >= TURN_BYTES {
                return Ok(Progress::More);
            }
            if !disk.has_room() {
                running.waiting = true;
                return Ok(Progress::Idle);
            }
            if running.queue.pop(chain)? {
                if budget == running.queue.size() {
                    disk.now = Instant::now();
                }
                budget -= 1;
                let data = chain.readable.len().max(chain.writable.len());
                bytes += u64::from(data);
                match disk.start((index, running.start), &memory, chain)? {
                    Some((pending, result)) => running.finish(&memory, &pending, result)?,
                    None => running.in_flight += 1,
                }
            } else if !running.queue.resume_notifications()? {
                if budget == running.queue.size() {
                    disk.metrics.no_avail_buffer.count();
                }
                return Ok(Progress::Idle);
            }
        }
    }

    /// Gives back what has ended.
    fn take_completions(&mut self) -> Result<(), QueueError> {
        let Self { queues, disk, .. } = self;
        let mut now = None;
        while let Some((token, result)) = disk.engine.reap() {
            let Some(pending) = disk.release(token) else {
                continue;
            };
            let now = *now.get_or_insert_with(Instant::now);
            let result = disk.judge(&pending, result, now);
            // A queue runs as long as something of it is in flight, unless that could not be waited for: what ends after
            // such a stop is nobody's, whoever has the queue by then.
            if let Some(Some(running)) = queues.get_mut(usize::from(pending.queue))
                && running.start == pending.start
            {
                running.in_flight -= 1;
                let memory = running.queue.memory().clone();
                running.finish(&memory, &pending, result)?;
            }
        }
        Ok(())
    }

    /// Goes on with the queues that had to wait, as far as they need not any more.
    fn take_waiting(&mut self) -> Result<(), QueueError> {
        for index in 0..self.queues.len() {
            if let Some(Some(Running { waiting: true, .. })) = self.queues.get(index) {
                let index = u16::try_from(index).unwrap_or(u16::MAX);
                let progress = self.take_requests(index)?;
                if let Some(Some(running)) = self.queues.get_mut(usize::from(index)) {
                    running.waiting |= progress == Progress::More;
                }
            }
        }
        Ok(())
    }

    /// Whether a queue waits that need not: nobody else will wake us for it.
    fn is_left_over(&mut self) -> Progress {
        let waiting = self.queues.iter().flatten().any(|running| running.waiting);
        if waiting && self.disk.has_room() {
            Progress::More
        } else {
            Progress::Idle
        }
    }

    /// Submits what was started, gives back what has ended already, and tells the driver: once for all.
    fn settle_turn(&mut self) -> Result<(), QueueError> {
        self.disk.engine.submit();
        self.take_completions()?;
        for running in self.queues.iter_mut().flatten() {
            if std::mem::take(&mut running.completed) {
                running.queue.signal_used()?;
            }
        }
        Ok(())
    }

    /// Waits for everything in flight and gives it back.
    fn drain(&mut self) {
        let in_flight = |running: &Running| running.in_flight > 0;
        while self.queues.iter().flatten().any(in_flight) && self.disk.engine.is_busy() {
            if let Err(error) = self.disk.engine.wait() {
                self.disk.failures.warn(format_args!(
                    "The end of a disk's requests cannot be waited for: {error}"
                ));
                return;
            }
            // A queue that its driver has broken does not keep the others from theirs.
            if let Err(error) = self.take_completions() {
                self.disk.failures.warn(error);
            }
        }
    }

    fn obey(&mut self, orders: Orders) -> Result<(), QueueError> {
        self.drain();
        if let Some(mut backend) = orders.replace {
            self.disk.settle();
            let attached = backend.attach(&mut self.disk.engine);
            let replaced = attached.map(|()| {
                self.disk.backend = backend;
                self.disk.lost = false;
            });
            self.changed(replaced);
        }
        if orders.refresh {
            let refreshed = self.disk.backend.refresh();
            self.changed(refreshed);
        }
        self.settle_turn()
    }

    fn changed(&mut self, result: io::Result<()>) {
        let metrics = &self.disk.metrics;
        metrics.update_count.count();
        match result {
            Ok(()) => self.config_changed = true,
            Err(error) => {
                metrics.update_fails.count();
                log::error!("Disk stays as it is, it cannot be changed: {error}");
            }
        }
    }
}

impl Running {
    /// Gives the request of `pending` back to the driver.
    fn finish(
        &mut self,
        memory: &GuestMemory,
        pending: &Pending,
        (status, filled): (Status, u32),
    ) -> Result<(), QueueError> {
        memory::write(memory, pending.status, status.code()).map_err(QueueError::Memory)?;
        // The driver is told how many bytes are filled from the front on (§2.7.8.2). The status byte
        // is the last, so it counts only where all before it do.
        let written = filled + u32::from(filled == pending.room);
        self.queue.complete(pending.head, written)?;
        self.completed = true;
        Ok(())
    }
}

/// A request that has ended: how, and how many bytes of its buffers are filled.
type Ended = (Pending, (Status, u32));

impl Disk {
    /// Another request can be taken.
    fn has_room(&mut self) -> bool {
        if self.free.is_empty() {
            self.metrics.io_engine_throttled_events.count();
            return false;
        }
        let open = self.limiter.as_mut().is_none_or(RateLimiter::is_open);
        if !open {
            self.metrics.rate_limiter_throttled_events.count();
        }
        open
    }

    /// Starts what the request in `chain` asks. `None` where it goes on.
    fn start(
        &mut self,
        (queue, start): (u16, u64),
        memory: &GuestMemory,
        chain: &mut Chain,
    ) -> Result<Option<Ended>, QueueError> {
        let rules = Rules {
            disk_len: self.backend.len(),
            read_only: self.backend.read_only(),
            features: self.features,
        };
        let request = Request::parse(memory, chain, &rules)?;
        if let Some(limiter) = &mut self.limiter {
            let bytes = chain.readable.len().max(chain.writable.len());
            limiter.charge(bytes.into());
        }
        let operation = request.operation;
        let pending = Pending {
            queue,
            start,
            head: chain.head(),
            operation: operation.unwrap_or(Operation::GetId),
            status: request.status,
            room: chain.writable.len(),
            since: self.now,
        };
        let (action, offset, len) = match operation {
            Err(status) => {
                self.metrics.invalid_reqs_count.count();
                return Ok(Some((pending, (status, 0))));
            }
            Ok(Operation::GetId) => {
                let filled = self.get_id(memory, chain)?;
                return Ok(Some((pending, (Status::Ok, filled))));
            }
            Ok(Operation::Disk {
                action: Action::Flush,
                ..
            }) if self.lost => {
                return Ok(Some((pending, (Status::IoError, 0))));
            }
            Ok(Operation::Disk {
                action,
                offset,
                len,
            }) => (action, offset, len),
        };
        let buffers = match action {
            Action::Read => &chain.writable,
            _ => &chain.readable,
        };
        let job = Job {
            action,
            offset,
            len,
            buffers,
        };
        let Some(token) = self.free.pop() else {
            return Ok(Some((pending, (Status::IoError, 0))));
        };
        match self.backend.start(&mut self.engine, token, &job) {
            Start::InFlight => {
                if let Some(slot) = self.requests.get_mut(usize::from(token)) {
                    *slot = pending;
                }
                Ok(None)
            }
            Start::Done(result) => {
                self.free.push(token);
                self.now = Instant::now();
                Ok(Some((pending, self.judge(&pending, result, self.now))))
            }
        }
    }

    /// What the driver is told of a result.
    fn judge(&mut self, pending: &Pending, result: io::Result<()>, now: Instant) -> (Status, u32) {
        let Operation::Disk { action, len, .. } = pending.operation else {
            return (Status::IoError, 0);
        };
        match result {
            Ok(()) => {
                let took = now.saturating_duration_since(pending.since);
                self.metrics.done(action, len, took);
                let filled = if action == Action::Read {
                    pending.room
                } else {
                    0
                };
                (Status::Ok, filled)
            }
            Err(error) => {
                self.metrics.execute_fails.count();
                self.lost |= action == Action::Flush;
                let what = pending.operation;
                self.failures
                    .warn(format_args!("Disk failed on {what:?}: {error}"));
                (Status::IoError, 0)
            }
        }
    }

    /// Takes back the token of a request that has ended.
    fn release(&mut self, token: u16) -> Option<Pending> {
        let pending = self.requests.get(usize::from(token)).copied();
        self.free.push(token);
        pending
    }

    /// Gives as much of the serial number as there is room for.
    fn get_id(&self, memory: &GuestMemory, chain: &mut Chain) -> Result<u32, QueueError> {
        let room = chain.writable.len();
        let (len, mut filled) = (SERIAL_LEN.min(room as usize), 0);
        if chain.writable.write(memory, &self.serial[..len])? {
            filled = room - chain.writable.len();
        }
        Ok(filled)
    }

    /// Writes back what the disk itself caches.
    fn settle(&mut self) {
        if let Err(error) = self.backend.settle() {
            self.lost = true;
            self.failures.warn(format_args!(
                "Disk cannot be written back, it is probably damaged: {error}"
            ));
        }
    }
}

impl VirtioDevice for Block {
    fn traits(&self) -> DeviceTraits {
        self.traits.clone()
    }

    fn metrics(&self) -> Option<Arc<dyn Metrics>> {
        Some(self.disk.metrics.clone())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let queues = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        let space = config::space(&*self.disk.backend, queues);
        copy_config(&space, offset, data);
    }

    fn start_queue(&mut self, index: u16, queue: Virtqueue, features: u64) {
        if self.queues.iter().all(Option::is_none) {
            self.disk.engine.attach_memory(queue.memory().clone());
        }
        self.disk.features = features;
        if let Some(slot) = self.queues.get_mut(usize::from(index)) {
            self.starts += 1;
            *slot = Some(Running {
                queue,
                start: self.starts,
                in_flight: 0,
                completed: false,
                waiting: false,
            });
        }
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        self.queues.get(usize::from(index))?.as_ref()?;
        self.drain();
        let mut running = self.queues.get_mut(usize::from(index))?.take()?;
        if running.completed
            && let Err(error) = running.queue.signal_used()
        {
            self.disk
                .failures
                .warn(format_args!("Disk cannot tell its driver: {error}"));
        }
        if self.queues.iter().all(Option::is_none) {
            self.disk.settle();
        }
        Some(running.queue.state())
    }

    fn process(&mut self, index: u16) -> Result<Progress, QueueError> {
        self.disk.metrics.queue_event_count.count();
        let progress = self.take_requests(index)?;
        self.take_waiting()?;
        self.settle_turn()?;
        match progress {
            Progress::Idle => Ok(self.is_left_over()),
            Progress::More => Ok(Progress::More),
        }
    }

    fn sources(&self) -> Vec<Source> {
        self.sources.iter().map(|(source, _)| *source).collect()
    }

    fn wake(&mut self, index: usize) -> Result<Progress, QueueError> {
        match self.sources.get(index) {
            Some((_, Wake::Mailbox)) => {
                let orders = self.mailbox.take();
                self.obey(orders)?;
            }
            Some((_, Wake::Engine)) => self.take_completions()?,
            Some((_, Wake::Limiter)) => self.disk.metrics.rate_limiter_event_count.count(),
            None => {}
        }
        self.take_waiting()?;
        self.settle_turn()?;
        Ok(self.is_left_over())
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    fn reset(&mut self) {
        self.disk.features = 0;
        self.disk.lost = false;
    }

    fn save(&self) -> DeviceState {
        let lost = self.disk.lost;
        DeviceState::Block { lost }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Block { lost } => {
                self.disk.lost = *lost;
                Ok(())
            }
            other => Err(RestoreError::kind(VIRTIO_ID_BLOCK, other)),
        }
    }
}

#[cfg(test)]
mod tests;
