//! Where vCPUs stand while the guest is paused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_ioctls::VcpuFd;

use crate::latch::ExitLatch;

/// Something that each parked vCPU's thread does, with the vCPU's number.
pub type Errand = Arc<dyn Fn(u8, &VcpuFd) + Send + Sync>;

#[derive(Default)]
struct Inner {
    parked: usize,
    /// How many errands there were, and the last of them.
    errands: u64,
    errand: Option<Errand>,
    /// How many have done that.
    done: usize,
}

/// Open while the guest runs. A vCPU that comes to a closed gate parks there; a kick makes it come.
#[derive(Default)]
pub struct Gate {
    closed: AtomicBool,
    inner: Mutex<Inner>,
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
        let _inner = self.lock();
        self.changed.notify_all();
    }

    /// Waits until `all` are parked, for `patience` at most, and says whether they are.
    pub fn wait_for(&self, all: usize, patience: Duration) -> bool {
        let waiting = self
            .changed
            .wait_timeout_while(self.lock(), patience, |inner| inner.parked < all);
        waiting.unwrap_or_else(PoisonError::into_inner).0.parked >= all
    }

    /// Has each of `all` parked threads do `errand`, and waits until they have, for `patience` at most. Says whether they
    /// have; who comes later does not do it. Threads that are on their way to the gate are waited for first: those of a
    /// guest that begins paused.
    pub fn send(&self, all: usize, errand: Errand, patience: Duration) -> bool {
        let coming = self
            .changed
            .wait_timeout_while(self.lock(), patience, |inner| inner.parked < all);
        let mut inner = coming.unwrap_or_else(PoisonError::into_inner).0;
        inner.errands += 1;
        inner.errand = Some(errand);
        inner.done = 0;
        self.changed.notify_all();
        let waiting = self
            .changed
            .wait_timeout_while(inner, patience, |inner| inner.done < all);
        let mut inner = waiting.unwrap_or_else(PoisonError::into_inner).0;
        inner.errand = None;
        inner.done >= all
    }

    /// How many are parked.
    pub fn parked(&self) -> usize {
        self.lock().parked
    }

    /// Parks this vCPU's thread until the gate is open or the run has ended. `errand` does what it is sent for.
    pub(super) fn park(&self, latch: &ExitLatch, mut errand: impl FnMut(&Errand)) {
        let mut inner = self.lock();
        inner.parked += 1;
        let mut seen = inner.errands;
        self.changed.notify_all();
        while self.is_closed() && !latch.is_set() {
            let new = inner.errands != seen;
            seen = inner.errands;
            if let (true, Some(sent)) = (new, inner.errand.clone()) {
                drop(inner);
                errand(&sent);
                inner = self.lock();
                // Not for one that nobody waits for any more.
                inner.done += usize::from(inner.errands == seen);
                self.changed.notify_all();
                continue;
            }
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        inner.parked -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::ExitReason;
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
                    thread::spawn(move || gate.park(&latch, |_| {}))
                })
                .collect();
            assert!(gate.wait_for(3, long));
            assert!(!gate.wait_for(4, Duration::from_millis(1)));
            for _ in 0..10 {
                assert!(gate.send(3, Arc::new(|_, _| {}), long));
            }
            assert!(!gate.send(4, Arc::new(|_, _| {}), Duration::from_millis(1)));
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

    #[test]
    fn an_errand_waits_for_those_who_are_on_their_way() {
        let gate = Gate::default();
        let latch = ExitLatch::new().unwrap();
        gate.close();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(20));
                gate.park(&latch, |_| {});
            });
            assert!(gate.send(1, Arc::new(|_, _| {}), Duration::from_secs(60)));
            gate.open();
        });
    }
}
