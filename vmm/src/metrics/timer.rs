//! Writes metrics from time to time.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::timerfd::TimerFd;

use super::Telemetry;

/// Time between two lines, as Firecracker has it.
const PERIOD: Duration = Duration::from_secs(60);

/// Writes a line every minute.
pub struct FlushTimer {
    telemetry: &'static Telemetry,
    timer: TimerFd,
}

impl FlushTimer {
    /// A timer that runs from now on.
    pub fn new(telemetry: &'static Telemetry) -> io::Result<Self> {
        let mut timer = TimerFd::new()?;
        timer.reset(PERIOD, Some(PERIOD))?;
        Ok(Self { telemetry, timer })
    }
}

impl MutEventSubscriber for FlushTimer {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.timer, EventSet::IN)) {
            log::error!("Metrics are written on request only: {error}");
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        if events.fd() == self.timer.as_raw_fd() && self.timer.wait().is_ok() {
            self.telemetry.flush();
        }
    }
}
