//! A guest's agent: tells the host by vsock, again and again, that the guest is well.
//!
//! ```text
//!   host ── {"every_ms":5000} ──► agent          {"do":"poweroff"} ──►
//!        ◄── {"beat":1,"well":true,"load":0.12,"available_kib":38912}
//!        ◄── {"beat":2,"well":false,"why":"cannot start a program: no memory", …}
//!        ◄── {"beat":3, …}                       while a check takes longer than the interval, or after one that did
//!        ◄── {"beat":4,"bye":true}               the guest shuts down
//! ```
//!
//! It has to work where nothing else does any more: its memory is locked, nothing is allocated in the loop, and all that
//! may take long is done by a child.

mod check;
mod host;
mod stolen;
mod system;
mod witness;
mod words;

use std::time::{Duration, Instant};

use check::{Checks, Verdict};
use host::{Host, Order};
use stolen::Stolen;
use system::{Signals, wait_for};
use words::{Line, State};

/// Between two calls while nobody answers. A restored guest's connection is gone: it is to be back within a second.
const AGAIN: Duration = Duration::from_millis(500);
/// The loop looks around at least so often: time that it did not run is no time that a check has taken.
const SLICE: Duration = Duration::from_millis(500);
/// A host that asks for more gets this.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(24 * 3600);

struct Agent {
    host: Option<Host>,
    /// How often the host wants to hear something; `None` until it has said so.
    every: Option<Duration>,
    next: Instant,
    call_at: Instant,
    /// No check was made since the host was called.
    fresh: bool,
    beat: u64,
    checks: Checks,
    state: State,
}

fn main() {
    system::settle();
    let now = Instant::now();
    let mut agent = Agent {
        host: None,
        every: None,
        next: now,
        call_at: now,
        fresh: true,
        beat: 0,
        checks: Checks::new(),
        state: State::open(),
    };
    // Blocked signals are read between two polls: without a descriptor for them a child's end is seen a little later.
    let signals = Signals::open();
    let mut stolen = Stolen::open();
    let mut last = now;
    loop {
        if signals.take_end() {
            agent.say(None, true);
            return;
        }
        let now = Instant::now();
        let passed = now.saturating_duration_since(last).min(SLICE);
        agent.turn(now, stolen.left(passed));
        last = now;
        let fds = [signals.fd(), agent.host.as_ref().map(Host::fd)];
        wait_for(fds, agent.until(now));
    }
}

impl Agent {
    /// How long there is nothing to do.
    fn until(&self, now: Instant) -> Duration {
        let next = match (&self.host, self.every) {
            (None, _) => self.call_at,
            (Some(_), Some(_)) => self.next,
            (Some(_), None) => now + SLICE,
        };
        next.saturating_duration_since(now).min(SLICE)
    }

    fn turn(&mut self, now: Instant, passed: Duration) {
        if self.host.is_none() && self.call_at <= now {
            self.call_at = now + AGAIN;
            self.host = Host::call();
            self.every = None;
            self.fresh = true;
        }
        self.listen(now);
        if let Some(verdict) = self.checks.look(passed) {
            self.say(verdict, false);
        }
        let Some(every) = self.every.filter(|_| self.next <= now) else {
            return;
        };
        self.next = now + every;
        if self.checks.under_way() {
            return self.say(None, false);
        }
        // A restored guest gets its memory page by page, among others that begin as well.
        let patience = if std::mem::take(&mut self.fresh) {
            2
        } else {
            1
        };
        if let Err(fault) = self.checks.start(patience * every) {
            self.say(Some(Err(fault)), false);
        }
    }

    fn listen(&mut self, now: Instant) {
        let Some(host) = &mut self.host else { return };
        let mut order = None;
        if !host.listen(|line| order = Order::read(line).or(order)) {
            // Called again at once, unless the last call was but now.
            self.host = None;
            return;
        }
        match order {
            Some(Order::Every(every)) => {
                self.every = Some(every.clamp(SHORTEST, LONGEST));
                self.next = now;
            }
            Some(Order::PowerOff) => check::power_off(),
            None => {}
        }
    }

    fn say(&mut self, verdict: Option<Verdict>, bye: bool) {
        let Some(host) = &mut self.host else { return };
        self.beat = self.beat.wrapping_add(1);
        let mut line = Line::new();
        self.state.write(&mut line, self.beat, verdict, bye);
        if !host.say(line.bytes()) {
            self.host = None;
        }
    }
}
