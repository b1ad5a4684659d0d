//! Where vCPUs stand while the guest is paused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::latch::ExitLatch;

/// Open while the guest runs. A vCPU that comes to a closed gate parks there; a kick makes it come.
#[derive(Debug, Default)]
pub struct Gate {
    closed: AtomicBool,
    parked: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// Whether vCPUs shall park.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// vCPUs that come by park from now on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Those that are parked go on.
    pub fn open(&self) {
        self.closed.store(false, Ordering::Release);
        self.wake();
    }

    /// Those that are parked look whether the run has ended.
    pub fn wake(&self) {
        // Under the lock: not between a vCPU's look at the gate and its sleep.
        let _parked = self.lock();
        self.changed.notify_all();
    }

    /// Waits until `all` are parked, for `patience` at most, and says whether they are.
    pub fn wait_for(&self, all: usize, patience: Duration) -> bool {
        let waiting = self
            .changed
            .wait_timeout_while(self.lock(), patience, |parked| *parked < all);
        *waiting.unwrap_or_else(PoisonError::into_inner).0 >= all
    }

    /// How many are parked.
    pub fn parked(&self) -> usize {
        *self.lock()
    }

    /// Parks this vCPU's thread until the gate is open or the run has ended.
    pub(super) fn park(&self, latch: &ExitLatch) {
        let mut parked = self.lock();
        *parked += 1;
        self.changed.notify_all();
        while self.is_closed() && !latch.is_set() {
            parked = self
                .changed
                .wait(parked)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *parked -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::ExitReason;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn those_who_come_park_until_the_gate_opens_or_the_run_ends() {
        let gate = Arc::new(Gate::default());
        let latch = Arc::new(ExitLatch::new().unwrap());
        let long = Duration::from_secs(60);
        for end in [false, true] {
            gate.close();
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let (gate, latch) = (gate.clone(), latch.clone());
                    thread::spawn(move || gate.park(&latch))
                })
                .collect();
            assert!(gate.wait_for(3, long));
            assert!(!gate.wait_for(4, Duration::from_millis(1)));
            if end {
                latch.set(ExitReason::Stopped);
                gate.wake();
            } else {
                gate.open();
            }
            for thread in threads {
                thread.join().unwrap();
            }
        }
    }
}
