//! What the guest says of its memory (virtio 1.2 §5.5.6.3), asked for again and again.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_manager::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use crate::memory::GuestMemory;
use crate::metrics::BalloonMetrics;
use crate::throttle::Throttle;
use crate::virtio::chain::Chain;
use crate::virtio::device::{Progress, Source};
use crate::virtio::queue::{QueueError, QueueState, Virtqueue};

/// What each tag means, the index being the tag. Sizes are bytes. Those from 10 on are newer than the specification.
pub const TAGS: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];

/// Bytes of an entry: 16 bits of tag, 64 of value, packed.
const ENTRY: usize = 10;
/// Most entries that are looked at: a driver may repeat itself.
const MAX_ENTRIES: usize = 64;

/// The guest's memory, as it is seen from both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// How many pages the balloon shall have.
    pub target_pages: u32,
    /// How many it has, as the guest says.
    pub actual_pages: u32,
    /// Pages that the host has got so far, by the balloon and by reports.
    pub discarded_pages: u64,
    /// Pages that the guest has tried to give and that are not its own, or not whole.
    pub refused_pages: u64,
    /// What the guest says, by tag: see [`TAGS`].
    pub guest: [Option<u64>; TAGS.len()],
}

/// Gets the statistics. Must not wait.
pub type Sink = Box<dyn FnMut(&Statistics) + Send>;

/// Asks for statistics at an interval.
pub struct Poll {
    clock: Interval,
    sink: Sink,
    failures: Throttle,
}

/// How often statistics are asked for; changed from any thread.
#[derive(Clone)]
pub struct Interval(Arc<Mutex<(Duration, TimerFd)>>);

impl Interval {
    /// Asks every `interval` from now on; it must not be zero.
    pub fn set(&self, interval: Duration) -> io::Result<()> {
        self.lock().0 = interval;
        self.arm()
    }

    fn arm(&self) -> io::Result<()> {
        let (interval, timer) = &mut *self.lock();
        timer.reset(*interval, None).map_err(Into::into)
    }

    fn lock(&self) -> MutexGuard<'_, (Duration, TimerFd)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Poll {
    /// Gives `sink` what the guest says every `interval`.
    pub fn new(
        interval: Duration,
        sink: impl FnMut(&Statistics) + Send + 'static,
    ) -> io::Result<Self> {
        let clock = Interval(Arc::new(Mutex::new((interval, TimerFd::new()?))));
        clock.arm()?;
        Ok(Self {
            clock,
            sink: Box::new(sink),
            failures: Throttle::default(),
        })
    }

    /// Changes the interval later.
    pub fn interval(&self) -> Interval {
        self.clock.clone()
    }

    fn source(&self) -> Source {
        // An edge: setting the timer again is all it needs.
        Source {
            fd: self.clock.lock().1.as_raw_fd(),
            events: EventSet::IN | EventSet::EDGE_TRIGGERED,
        }
    }

    fn set_again(&mut self, metrics: &BalloonMetrics) {
        if let Err(error) = self.clock.arm() {
            metrics.stats_update_fails.count();
            self.failures.warn(format_args!(
                "The timer of the balloon's statistics cannot be set: {error}"
            ));
        }
    }
}

/// The statistics queue. Its one buffer is the device's between two questions: given back, it is the question.
#[derive(Default)]
pub(super) struct StatisticsQueue {
    pub(super) queue: Option<Virtqueue>,
    poll: Option<Poll>,
    chain: Chain,
    held: Option<u16>,
    /// Somebody waits for the answer.
    asked: bool,
    metrics: Arc<BalloonMetrics>,
}

impl StatisticsQueue {
    pub(super) fn new(poll: Option<Poll>, metrics: Arc<BalloonMetrics>) -> Self {
        Self {
            poll,
            metrics,
            ..Self::default()
        }
    }

    pub(super) fn source(&self) -> Option<Source> {
        self.poll.as_ref().map(Poll::source)
    }

    /// The interval is over: asks for news.
    pub(super) fn ask(&mut self) -> Result<(), QueueError> {
        if let Some(poll) = &mut self.poll {
            poll.set_again(&self.metrics);
        }
        if let (Some(queue), Some(head)) = (&mut self.queue, self.held.take()) {
            self.asked = true;
            queue.complete(head, 0)?;
            queue.signal_used()?;
        }
        Ok(())
    }

    /// Takes the guest's buffer, and passes on what it says, with the rest as `host` has it, if it was asked for.
    pub(super) fn process(&mut self, host: &Statistics) -> Result<Progress, QueueError> {
        let Some(queue) = &mut self.queue else {
            return Ok(Progress::Idle);
        };
        let memory = queue.memory().clone();
        for _ in 0..queue.size() {
            if !queue.pop(&mut self.chain)? {
                if queue.resume_notifications()? {
                    continue;
                }
                return Ok(Progress::Idle);
            }
            // There should be one buffer only; a driver that has more gets the older one back.
            if let Some(older) = self.held.replace(self.chain.head()) {
                queue.complete(older, 0)?;
                queue.signal_used()?;
            }
            if std::mem::take(&mut self.asked)
                && let Some(poll) = &mut self.poll
            {
                let guest = read(&memory, &mut self.chain)?;
                let statistics = Statistics {
                    guest,
                    ..host.clone()
                };
                self.metrics.stats_updates_count.count();
                (poll.sink)(&statistics);
            }
        }
        Ok(Progress::More)
    }

    /// The buffer held is found again by who goes on with the queue.
    pub(super) fn stop(&mut self) -> Option<QueueState> {
        self.asked = false;
        let held = u16::from(self.held.take().is_some());
        self.queue.take().map(|queue| {
            let state = queue.state();
            QueueState {
                next_available: state.next_available.wrapping_sub(held),
                ..state
            }
        })
    }
}

/// The entries of `chain` whose tags are known; the last one of a tag counts.
fn read(memory: &GuestMemory, chain: &mut Chain) -> Result<[Option<u64>; TAGS.len()], QueueError> {
    let mut values = [None; TAGS.len()];
    let mut entry = [0; ENTRY];
    for _ in 0..MAX_ENTRIES {
        if !chain.readable.read(memory, &mut entry)? {
            break;
        }
        let [a, b, value @ ..] = entry;
        let tag = usize::from(u16::from_le_bytes([a, b]));
        if let Some(place) = values.get_mut(tag) {
            *place = Some(u64::from_le_bytes(value));
        }
    }
    Ok(values)
}
