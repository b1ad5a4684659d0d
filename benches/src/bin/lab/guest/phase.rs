//! One measured stretch of work, agreed with the laboratory over the console.

use std::io::{self, Write};

use anyhow::Result;
use serde_json::json;

/// Most rounds of a phase that are looked at one by one.
const MAX_LAPS: usize = 32 << 10;

/// Runs phases.
pub struct Phases {
    alone: bool,
}

/// What a phase has done.
pub struct Done {
    /// Requests, or messages.
    pub requests: u64,
    /// Bytes moved.
    pub bytes: u64,
}

impl Phases {
    /// With `alone` there is nobody to wait for.
    pub fn new(alone: bool) -> Self {
        Self { alone }
    }

    /// Runs `work` as the phase `name`, timed by the time-stamp counter.
    pub fn run(&mut self, name: &str, work: impl FnOnce(&mut Laps) -> Result<Done>) -> Result<()> {
        println!("@ready {name}");
        io::stdout().flush()?;
        if !self.alone {
            io::stdin().read_line(&mut String::new())?;
        }
        let mut laps = Laps::new();
        let done = work(&mut laps)?;
        // What the work tidies up after its last round is not counted.
        let ticks = laps.last - laps.start;
        let line = json!({
            "phase": name,
            "requests": done.requests,
            "bytes": done.bytes,
            "ticks": ticks,
            "busy_ticks": ticks - laps.waits(),
        });
        println!("@done {line}");
        Ok(())
    }
}

/// The rounds of a phase, each the same work as the others.
pub struct Laps {
    start: u64,
    last: u64,
    ticks: Vec<u64>,
}

impl Laps {
    /// Rounds whose times nobody asks for.
    pub fn new() -> Self {
        let now = time_stamp();
        Self {
            start: now,
            last: now,
            ticks: Vec::with_capacity(MAX_LAPS),
        }
    }

    /// The first round begins only now.
    pub fn begin(&mut self) {
        self.start = time_stamp();
        self.last = self.start;
    }

    /// A round has ended.
    pub fn lap(&mut self) {
        let now = time_stamp();
        // No more than there is room for: growing would be part of the measurement.
        if self.ticks.len() < MAX_LAPS {
            self.ticks.push(now - self.last);
        }
        self.last = now;
    }

    /// Ticks in which the machine's clock ran ahead: a virtual clock jumps to the next timer when every processor
    /// waits. A round that took so much longer than the median of all took its time waiting.
    fn waits(&mut self) -> u64 {
        self.ticks.sort_unstable();
        let Some(&median) = self.ticks.get(self.ticks.len() / 2) else {
            return 0;
        };
        let waits = self.ticks.iter().filter(|ticks| **ticks / 8 > median);
        waits.map(|ticks| ticks - median).sum()
    }
}

/// The time-stamp counter, which counts the machine's instructions under its virtual clock. KVM gives a guest the
/// host's with an offset, so that only differences mean anything.
#[expect(
    unsafe_code,
    reason = "reading the counter is an instruction of its own"
)]
fn time_stamp() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and no kernel of ours forbids it.
    unsafe { std::arch::x86_64::_rdtsc() }
}
