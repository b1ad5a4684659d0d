//! What the user sees while things happen: finished steps as lines, running ones on one updating line.
//!
//! On a terminal the last line is rewritten a few times a second. Elsewhere (a CI log) a running step says a line after
//! two seconds and then every half minute.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const REPAINT: Duration = Duration::from_millis(200);
/// Without a terminal: when a running step speaks first, and how often then.
const FIRST_WORD: Duration = Duration::from_secs(2);
const NEXT_WORD: Duration = Duration::from_secs(30);
/// Steps quicker than this do not say how long they took.
const WORTH_A_TIME: Duration = Duration::from_secs(1);

static STATE: Mutex<State> = Mutex::new(State {
    steps: Vec::new(),
    next: 0,
    painted: false,
    paused: 0,
});
static PAINTER: Once = Once::new();

struct State {
    steps: Vec<Running>,
    next: u64,
    /// Whether the updating line is on the screen now.
    painted: bool,
    /// How many programs have the terminal to themselves.
    paused: u32,
}

struct Running {
    id: u64,
    name: String,
    detail: String,
    start: Instant,
    last_word: Option<Instant>,
}

impl Running {
    fn text(&self) -> String {
        let mut text = self.name.clone();
        if !self.detail.is_empty() {
            write!(text, ": {}", self.detail).ok();
        }
        write!(text, ", {}", clock(self.start.elapsed())).ok();
        text
    }
}

/// A step under way. Dropped without [`Step::done`], it vanishes: its error speaks for it.
pub struct Step {
    id: u64,
    name: String,
    start: Instant,
}

impl Step {
    /// Begins a step; `name` is one or two words.
    pub fn begin(name: &str) -> Self {
        PAINTER.call_once(|| {
            thread::spawn(|| {
                loop {
                    thread::sleep(REPAINT);
                    paint(&mut state());
                }
            });
        });
        let start = Instant::now();
        let mut state = state();
        let id = state.next;
        state.next += 1;
        state.steps.push(Running {
            id,
            name: name.to_owned(),
            detail: String::new(),
            start,
            last_word: None,
        });
        Self {
            id,
            name: name.to_owned(),
            start,
        }
    }

    /// What it does right now.
    pub fn set(&self, detail: impl Into<String>) {
        let detail = detail.into();
        if let Some(running) = state().steps.iter_mut().find(|step| step.id == self.id) {
            running.detail = detail;
        }
    }

    /// Ends it with a line on the screen.
    pub fn done(self, result: &str) {
        let took = self.start.elapsed();
        let time = if took < WORTH_A_TIME {
            String::new()
        } else {
            format!(" ({})", clock(took))
        };
        say(&format!("{:<10} {result}{time}", self.name));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        state().steps.retain(|step| step.id != self.id);
    }
}

/// Prints a line above the updating one.
pub fn say(line: &str) {
    let mut state = state();
    erase(&mut state);
    eprintln!("{line}");
}

/// Takes the updating line off the screen.
pub fn clear() {
    erase(&mut state());
}

/// Gives the terminal to another program until dropped.
pub struct Pause(());

pub fn pause() -> Pause {
    let mut state = state();
    erase(&mut state);
    state.paused += 1;
    Pause(())
}

impl Drop for Pause {
    fn drop(&mut self) {
        state().paused -= 1;
    }
}

fn state() -> MutexGuard<'static, State> {
    // The state is only text: a panic elsewhere leaves nothing half done.
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn erase(state: &mut State) {
    if state.painted {
        eprint!("\r\x1b[2K");
        state.painted = false;
    }
}

fn paint(state: &mut State) {
    if state.paused > 0 || state.steps.is_empty() {
        return;
    }
    if io::stderr().is_terminal() {
        let line = state
            .steps
            .iter()
            .map(Running::text)
            .collect::<Vec<_>>()
            .join(" | ");
        // Without automatic wrap a long line ends at the edge instead of scrolling.
        eprint!("\r\x1b[2K\x1b[?7l{line}\x1b[?7h");
        io::stderr().flush().ok();
        state.painted = true;
        return;
    }
    for step in &mut state.steps {
        let due = match step.last_word {
            None => step.start.elapsed() >= FIRST_WORD,
            Some(last) => last.elapsed() >= NEXT_WORD,
        };
        if due {
            step.last_word = Some(Instant::now());
            let colon = if step.detail.is_empty() { "" } else { ", " };
            let time = clock(step.start.elapsed());
            eprintln!("{:<10} {}{colon}{time}", step.name, step.detail);
        }
    }
}

/// A duration as people read it: `3.2 s`, `1:05`.
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        format!("{seconds}.{} s", duration.subsec_millis() / 100)
    } else {
        format!("{}:{:02}", seconds / 60, seconds % 60)
    }
}

/// A size as people read it: `3.48 MiB`, `12 KiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let Some((unit, name)) = UNITS.into_iter().find(|(unit, _)| bytes >= *unit) else {
        return format!("{bytes} B");
    };
    let hundredths = (bytes % unit) * 100 / unit;
    format!("{}.{hundredths:02} {name}", bytes / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(clock(Duration::from_millis(3_250)), "3.2 s");
        assert_eq!(clock(Duration::from_secs(65)), "1:05");
        assert_eq!(clock(Duration::from_secs(3_600)), "60:00");
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(17), "17 B");
        assert_eq!(size(3_649_044), "3.47 MiB");
        assert_eq!(size(u64::MAX), "17179869183.99 GiB");
    }

    #[test]
    fn a_running_step_shows_its_detail_and_its_time() {
        let running = Running {
            id: 0,
            name: "kernel".into(),
            detail: "5%".into(),
            start: Instant::now(),
            last_word: None,
        };
        assert_eq!(running.text(), "kernel: 5%, 0.0 s");
    }
}
