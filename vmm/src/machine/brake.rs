//! Stopping all vCPUs for a while, for several who ask: a user, and a snapshot of a guest that goes on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::legacy::watchdog::{Watchdog, WatchdogState};

use super::running::KICKS;
use crate::latch::ExitLatch;
use crate::vcpu::{Gate, VcpuThread};

/// How long the vCPUs have to park.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a guest does not stand still.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// A vCPU waits for something outside of the guest.
    #[error(
        "{running} of {all} vCPUs did not stop within {seconds} s, the guest goes on",
        seconds = PATIENCE.as_secs()
    )]
    Busy {
        /// How many did not stop.
        running: usize,
        /// How many there are.
        all: usize,
    },
}

/// Who wants the guest to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Who asked by the API or otherwise, for as long as they please.
    User,
    /// A snapshot of a guest that goes on, for milliseconds.
    Capture,
}

#[derive(Debug, Default)]
struct Holds {
    user: bool,
    capture: bool,
    /// While anybody holds it: what the guest's watchdog had left.
    watchdog: Option<WatchdogState>,
}

impl Holds {
    fn of(&mut self, holder: Holder) -> &mut bool {
        match holder {
            Holder::User => &mut self.user,
            Holder::Capture => &mut self.capture,
        }
    }

    fn any(&self) -> bool {
        self.user || self.capture
    }
}

/// Stops the guest as long as anybody holds it.
pub struct Brake {
    gate: Arc<Gate>,
    latch: Arc<ExitLatch>,
    watchdog: Arc<Mutex<Watchdog>>,
    threads: Vec<VcpuThread>,
    holds: Mutex<Holds>,
}

impl Brake {
    /// For the vCPUs `threads`, which park at `gate`. With `paused` it is closed already, by a user, and that is what the
    /// watchdog has left.
    pub(super) fn new(
        gate: Arc<Gate>,
        latch: Arc<ExitLatch>,
        watchdog: Arc<Mutex<Watchdog>>,
        threads: Vec<VcpuThread>,
        paused: Option<WatchdogState>,
    ) -> Self {
        let holds = Mutex::new(Holds {
            user: paused.is_some(),
            capture: false,
            watchdog: paused,
        });
        Self {
            gate,
            latch,
            watchdog,
            threads,
            holds,
        }
    }

    /// Whether `holder` holds it.
    pub fn is_held_by(&self, holder: Holder) -> bool {
        *self.lock().of(holder)
    }

    /// What the watchdog has left, of a guest that stands still.
    pub fn watchdog(&self) -> Option<WatchdogState> {
        self.lock().watchdog
    }

    /// Stops all vCPUs, between two instructions of theirs, and the guest's watchdog. Devices end what they were asked to
    /// do, and wait. A guest that stands still stays so, until all holders have let go.
    pub fn hold(&self, holder: Holder) -> Result<(), PauseError> {
        let mut holds = self.lock();
        if !holds.any() {
            self.stop()?;
            // A guest that cannot run cannot ring either.
            let mut watchdog = self.lock_watchdog();
            let state = watchdog.state();
            watchdog.restore(WatchdogState {
                left: None,
                ..state
            });
            holds.watchdog = Some(state);
        }
        *holds.of(holder) = true;
        Ok(())
    }

    fn stop(&self) -> Result<(), PauseError> {
        self.gate.close();
        let all = self.threads.len();
        let (mut pause, longest) = KICKS;
        let mut waited = Duration::ZERO;
        loop {
            // A kick may come while the vCPU's thread is just starting, and be lost.
            for thread in &self.threads {
                thread.kick();
            }
            if self.gate.wait_for(all, pause) {
                return Ok(());
            }
            waited += pause;
            if waited >= PATIENCE || self.latch.is_set() {
                let running = all - self.gate.parked().min(all);
                self.gate.open();
                return Err(PauseError::Busy { running, all });
            }
            pause = (pause * 2).min(longest);
        }
    }

    /// Lets go; with the last holder's letting go the guest goes on exactly where it was. Whether it does.
    pub fn release(&self, holder: Holder) -> bool {
        let mut holds = self.lock();
        if !std::mem::take(holds.of(holder)) || holds.any() {
            return false;
        }
        if let Some(state) = holds.watchdog.take() {
            self.lock_watchdog().restore(state);
        }
        self.gate.open();
        true
    }

    /// Ends the vCPUs' threads of a run that has ended.
    pub(super) fn end(&self) {
        self.gate.wake();
        super::running::end(&self.threads);
    }

    fn lock(&self) -> MutexGuard<'_, Holds> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_watchdog(&self) -> MutexGuard<'_, Watchdog> {
        self.watchdog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: WatchdogState = WatchdogState {
        period: 10,
        left: Some(Duration::from_secs(1)),
    };

    fn brake(paused: Option<WatchdogState>) -> (Brake, Arc<Gate>, Arc<Mutex<Watchdog>>) {
        let gate = Arc::new(Gate::default());
        if paused.is_some() {
            gate.close();
        }
        let latch = Arc::new(ExitLatch::new().unwrap());
        let watchdog = Arc::new(Mutex::new(Watchdog::new(Arc::new(|_| {})).unwrap()));
        if paused.is_none() {
            watchdog.lock().unwrap().restore(STATE);
        }
        let brake = Brake::new(gate.clone(), latch, watchdog.clone(), Vec::new(), paused);
        (brake, gate, watchdog)
    }

    #[test]
    fn a_guest_stands_still_as_long_as_anybody_holds_it() {
        for [first, second] in [
            [Holder::User, Holder::Capture],
            [Holder::Capture, Holder::User],
        ] {
            let (brake, gate, _) = brake(None);
            assert!(!brake.release(first));
            brake.hold(first).unwrap();
            assert!(gate.is_closed());
            let left = brake.watchdog();
            brake.hold(second).unwrap();
            assert_eq!(brake.watchdog(), left);
            assert!(!brake.release(first) && gate.is_closed());
            assert!(!brake.is_held_by(first) && brake.is_held_by(second));
            assert!(brake.release(second) && !gate.is_closed());
            assert_eq!(brake.watchdog(), None);
        }
    }

    #[test]
    fn the_watchdog_stands_still_as_well() {
        let (brake, _, watchdog) = brake(None);
        brake.hold(Holder::Capture).unwrap();
        assert_eq!(watchdog.lock().unwrap().state().left, None);
        let left = brake.watchdog().unwrap().left.unwrap();
        assert!(left <= Duration::from_secs(1));
        brake.release(Holder::Capture);
        assert!(watchdog.lock().unwrap().state().left.unwrap() <= left);
    }

    #[test]
    fn a_guest_that_begins_paused_is_held_by_its_user() {
        let (brake, gate, watchdog) = brake(Some(STATE));
        assert!(brake.is_held_by(Holder::User));
        brake.hold(Holder::Capture).unwrap();
        assert_eq!(brake.watchdog(), Some(STATE));
        assert!(!brake.release(Holder::Capture) && gate.is_closed());
        assert!(brake.release(Holder::User) && !gate.is_closed());
        assert!(watchdog.lock().unwrap().state().left.is_some());
    }
}
