//! A watchdog timer whose registers the ACPI table `WDAT` describes: Linux drives it by its `wdat_wdt`, whatever buses
//! there are.
//!
//! A guest that has started it and does not write to [`COUNTDOWN`] for a whole period is taken for hung. All registers
//! are 32 bits wide and accessed whole.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use vmm_sys_util::timerfd::TimerFd;

use crate::bus::MutBusDevice;
use crate::platform::{EventSink, PlatformEvent};
use crate::throttle::Throttle;

/// Bytes of the range of registers.
pub const LEN: u64 = 12;
/// Offset of the control register: [`RUNNING`] or [`STOPPED`].
pub const CONTROL: u64 = 0;
/// Offset of the period in ticks. Takes effect with the next start or write to [`COUNTDOWN`].
pub const PERIOD: u64 = 4;
/// Offset of the countdown: reads as the ticks left, and any write starts it again.
pub const COUNTDOWN: u64 = 8;
/// Value of [`CONTROL`]: the timer does not run.
pub const STOPPED: u32 = 0;
/// Value of [`CONTROL`]: the timer runs.
pub const RUNNING: u32 = 1;
/// Milliseconds of one tick.
pub const TICK_MS: u32 = 100;
/// The longest period in ticks, nearly two hours.
pub const MAX_TICKS: u32 = 0xffff;
/// The shortest period in ticks: shorter ones would take a busy host for a hung guest.
pub const MIN_TICKS: u32 = 10;

/// Period of a guest that sets none.
const DEFAULT_TICKS: u32 = 300;

/// What a watchdog would need to go on elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct WatchdogState {
    /// The period in ticks.
    pub period: u32,
    /// Time left; `None` if it does not run.
    pub left: Option<Duration>,
}

type Clock = Box<dyn Fn() -> Instant + Send>;

/// The timer and its registers.
pub struct Watchdog {
    period: u32,
    /// When the guest is taken for hung; `None` if the timer does not run.
    deadline: Option<Instant>,
    timer: TimerFd,
    /// When `timer` fires. Never later than `deadline`, and mostly earlier: a write to the countdown moves only the
    /// deadline, and costs no system call.
    armed: Option<Instant>,
    clock: Clock,
    events: EventSink,
    failures: Throttle,
}

impl Watchdog {
    /// A stopped watchdog that reports to `events`.
    pub fn new(events: EventSink) -> io::Result<Self> {
        Self::with_clock(events, Box::new(Instant::now))
    }

    fn with_clock(events: EventSink, clock: Clock) -> io::Result<Self> {
        Ok(Self {
            period: DEFAULT_TICKS,
            deadline: None,
            timer: TimerFd::new()?,
            armed: None,
            clock,
            events,
            failures: Throttle::default(),
        })
    }

    /// Where it stands.
    pub fn state(&self) -> WatchdogState {
        let now = (self.clock)();
        WatchdogState {
            period: self.period,
            left: self.deadline.map(|end| end.saturating_duration_since(now)),
        }
    }

    /// Goes on where another stood.
    pub fn restore(&mut self, state: WatchdogState) {
        self.period = state.period.clamp(MIN_TICKS, MAX_TICKS);
        let longest = ticks(MAX_TICKS);
        self.deadline = state.left.map(|left| (self.clock)() + left.min(longest));
        self.arm();
    }

    fn start(&mut self) {
        self.deadline = Some((self.clock)() + ticks(self.period));
        self.arm();
    }

    fn stop(&mut self) {
        // The timer finds nothing to do when it fires.
        self.deadline = None;
    }

    fn ticks_left(&self) -> u32 {
        self.state().left.map_or(0, |left| {
            u32::try_from(left.as_millis().div_ceil(TICK_MS.into())).unwrap_or(u32::MAX)
        })
    }

    /// Lets the timer fire at the deadline, unless it fires before that anyway.
    fn arm(&mut self) {
        let Some(deadline) = self.deadline else {
            return;
        };
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        // A timer of zero would be off.
        let wait = deadline
            .saturating_duration_since((self.clock)())
            .max(Duration::from_millis(1));
        match self.timer.reset(wait, None) {
            Ok(()) => self.armed = Some(deadline),
            Err(error) => self
                .failures
                .warn(format_args!("Watchdog cannot set its timer: {error}")),
        }
    }

    /// The timer has fired: either the guest hangs, or the deadline has moved meanwhile.
    fn fired(&mut self) {
        self.armed = None;
        if let Err(error) = self.timer.clear() {
            self.failures
                .warn(format_args!("Watchdog cannot clear its timer: {error}"));
        }
        if self.deadline.is_some_and(|end| end <= (self.clock)()) {
            self.deadline = None;
            (self.events)(PlatformEvent::WatchdogExpired);
        }
        self.arm();
    }
}

fn ticks(count: u32) -> Duration {
    Duration::from_millis(u64::from(count) * u64::from(TICK_MS))
}

impl MutBusDevice for Watchdog {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Ok(register) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        let value = match offset {
            CONTROL => u32::from(self.deadline.is_some()),
            PERIOD => self.period,
            COUNTDOWN => self.ticks_left(),
            _ => return,
        };
        *register = value.to_le_bytes();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(data) = <[u8; 4]>::try_from(data) else {
            return;
        };
        match (offset, u32::from_le_bytes(data)) {
            (CONTROL, RUNNING) => self.start(),
            (CONTROL, STOPPED) => self.stop(),
            (PERIOD, period) => self.period = period.clamp(MIN_TICKS, MAX_TICKS),
            (COUNTDOWN, _) if self.deadline.is_some() => self.start(),
            _ => {}
        }
    }
}

/// Serves the timer of a [`Watchdog`], as an event-manager subscriber.
pub struct WatchdogTimer {
    watchdog: Arc<Mutex<Watchdog>>,
    timer: RawFd,
}

impl WatchdogTimer {
    /// For `watchdog`, which it keeps.
    pub fn new(watchdog: Arc<Mutex<Watchdog>>) -> Self {
        let timer = watchdog
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .timer
            .as_raw_fd();
        Self { watchdog, timer }
    }
}

impl AsRawFd for WatchdogTimer {
    fn as_raw_fd(&self) -> RawFd {
        self.timer
    }
}

impl MutEventSubscriber for WatchdogTimer {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(self, EventSet::IN)) {
            log::error!("Watchdog cannot be served: {error}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.watchdog
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fired();
    }
}

#[cfg(test)]
mod tests {
    use event_manager::{EventManager, SubscriberOps};
    use proptest::prelude::*;

    use super::*;
    use crate::platform::testing::recording_sink;

    /// A watchdog, the hand of its clock, and what it has reported.
    struct World {
        dog: Watchdog,
        now: Arc<Mutex<Instant>>,
        events: Arc<Mutex<Vec<PlatformEvent>>>,
    }

    impl World {
        fn new() -> Self {
            let (sink, events) = recording_sink();
            let now = Arc::new(Mutex::new(Instant::now()));
            let hand = now.clone();
            let clock = Box::new(move || *hand.lock().unwrap());
            let dog = Watchdog::with_clock(sink, clock).unwrap();
            Self { dog, now, events }
        }

        fn write(&mut self, offset: u64, value: u32) {
            self.dog.write(offset, &value.to_le_bytes());
        }

        fn read(&mut self, offset: u64) -> u32 {
            let mut data = [0; 4];
            self.dog.read(offset, &mut data);
            u32::from_le_bytes(data)
        }

        /// Time passes, and the timer fires if it would have.
        fn pass(&mut self, time: Duration) {
            *self.now.lock().unwrap() += time;
            if self
                .dog
                .armed
                .is_some_and(|at| at <= *self.now.lock().unwrap())
            {
                self.dog.fired();
            }
        }

        fn expired(&self) -> bool {
            self.events
                .lock()
                .unwrap()
                .contains(&PlatformEvent::WatchdogExpired)
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_guest_that_is_silent_for_a_period_has_expired_once() {
        let mut world = World::new();
        world.write(PERIOD, 50);
        world.write(CONTROL, RUNNING);
        assert_eq!((world.read(CONTROL), world.read(COUNTDOWN)), (1, 50));
        world.pass(4 * SECOND);
        assert_eq!(world.read(COUNTDOWN), 10);
        assert!(!world.expired());
        world.pass(SECOND);
        assert!(world.expired());
        assert_eq!(world.read(CONTROL), STOPPED);
        world.pass(100 * SECOND);
        assert_eq!(world.events.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_guest_that_writes_in_time_lives() {
        let mut world = World::new();
        world.write(PERIOD, 50);
        world.write(CONTROL, RUNNING);
        for _ in 0..10 {
            world.pass(4 * SECOND);
            world.write(COUNTDOWN, 0);
        }
        assert!(!world.expired());
        world.pass(5 * SECOND);
        assert!(world.expired());
    }

    #[test]
    fn a_shorter_period_takes_effect_with_the_next_write() {
        let mut world = World::new();
        world.write(PERIOD, 600);
        world.write(CONTROL, RUNNING);
        world.write(PERIOD, 50);
        world.pass(6 * SECOND);
        assert!(!world.expired());
        world.write(COUNTDOWN, 0);
        world.pass(5 * SECOND);
        assert!(world.expired());
    }

    #[test]
    fn a_stopped_watchdog_never_expires() {
        let mut world = World::new();
        world.write(COUNTDOWN, 0);
        world.pass(1000 * SECOND);
        world.write(CONTROL, RUNNING);
        world.write(CONTROL, STOPPED);
        world.pass(1000 * SECOND);
        assert!(!world.expired());
        assert_eq!(world.read(COUNTDOWN), 0);
    }

    #[test]
    fn a_period_out_of_range_is_brought_into_it() {
        let mut world = World::new();
        for (written, read) in [(0, MIN_TICKS), (u32::MAX, MAX_TICKS), (77, 77)] {
            world.write(PERIOD, written);
            assert_eq!(world.read(PERIOD), read);
        }
    }

    #[test]
    fn state_goes_on_in_another_watchdog() {
        let mut world = World::new();
        world.write(PERIOD, 70);
        world.write(CONTROL, RUNNING);
        world.pass(3 * SECOND);
        let state = world.dog.state();

        let mut other = World::new();
        other.dog.restore(state);
        assert_eq!((other.read(PERIOD), other.read(COUNTDOWN)), (70, 40));
        other.pass(4 * SECOND);
        assert!(other.expired());
    }

    #[test]
    fn the_timer_wakes_the_event_thread() {
        let (sink, events) = recording_sink();
        let dog = Arc::new(Mutex::new(Watchdog::new(sink).unwrap()));
        let mut thread = EventManager::new().unwrap();
        thread.add_subscriber(WatchdogTimer::new(dog.clone()));
        dog.lock().unwrap().restore(WatchdogState {
            period: 10,
            left: Some(Duration::from_millis(2)),
        });
        while events.lock().unwrap().is_empty() {
            thread.run().unwrap();
        }
        assert_eq!(thread.run_with_timeout(0).unwrap(), 0, "asleep afterwards");
    }

    proptest! {
        #[test]
        fn any_accesses_are_harmless(
            accesses in proptest::collection::vec((0..LEN, any::<[u8; 4]>(), 1..=4_usize, 0..200_u64), 0..50),
        ) {
            let mut world = World::new();
            for (offset, data, len, seconds) in accesses {
                world.dog.write(offset, &data[..len]);
                world.dog.read(offset, &mut [0; 4][..len]);
                world.pass(Duration::from_secs(seconds));
                // Whatever was written: a running timer fires no later than its deadline.
                if let Some(deadline) = world.dog.deadline {
                    prop_assert!(world.dog.armed.unwrap() <= deadline);
                }
            }
        }
    }
}
