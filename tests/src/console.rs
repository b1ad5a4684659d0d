//! One serial console: everything that came out of it, and waiting for words on it.

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a console may stay without the awaited words before the test is called hung.
///
/// A nested boot takes about half a minute on two emulated cores, a guest with 32 vCPUs up to three
/// minutes; a loaded machine may need several times that. No test passes or fails by speed.
pub const HUNG: Duration = Duration::from_secs(900);

/// How long a console may say nothing at all while something is awaited. The longest silence of a machine that works is
/// a Debian's boot: three minutes where two emulated processors have nothing else to do.
pub const SILENT: Duration = Duration::from_secs(400);

struct Received {
    text: String,
    closed: bool,
    /// When something came last.
    heard: Instant,
}

/// A console that is being read in the background.
pub struct Console {
    received: Arc<(Mutex<Received>, Condvar)>,
    input: Box<dyn Write + Send>,
    /// Everything before this offset has been matched by an earlier `expect`.
    seen: usize,
    stood_still: bool,
}

impl Console {
    /// Starts to read `output` on a thread of its own, with a copy to `transcript`; what is typed goes to `input`.
    pub fn new(
        mut output: impl Read + Send + 'static,
        input: impl Write + Send + 'static,
        mut transcript: impl Write + Send + 'static,
    ) -> Self {
        let received = Received {
            text: String::new(),
            closed: false,
            heard: Instant::now(),
        };
        let received = Arc::new((Mutex::new(received), Condvar::new()));
        let sink = Arc::clone(&received);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = output.read(&mut buffer).unwrap_or(0);
                // A test does not fail for want of its transcript.
                let _ = transcript.write_all(&buffer[..count]);
                let (lock, arrived) = &*sink;
                let mut state = lock.lock().expect("no reader of a console panics");
                if count == 0 {
                    state.closed = true;
                } else {
                    state
                        .text
                        .push_str(&String::from_utf8_lossy(&buffer[..count]));
                    state.heard = Instant::now();
                }
                arrived.notify_all();
                if state.closed {
                    return;
                }
            }
        });
        Self {
            received,
            input: Box::new(input),
            seen: 0,
            stood_still: false,
        }
    }

    /// Whether something was awaited from it and it said nothing at all for [`SILENT`].
    pub fn stood_still(&self) -> bool {
        self.stood_still
    }

    /// Types `text`.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.input.write_all(text.as_bytes())?;
        self.input.flush()?;
        Ok(())
    }

    /// Waits for `words` after what was matched before; returns the text up to and including them.
    pub fn expect(&mut self, words: &str) -> Result<String> {
        let (_, text) = self.expect_any(&[words])?;
        Ok(text)
    }

    /// Waits for the earliest of several words; returns which one, and the text up to its end.
    pub fn expect_any(&mut self, words: &[&str]) -> Result<(usize, String)> {
        let (lock, arrived) = &*self.received;
        let begun = Instant::now();
        let mut state = lock.lock().expect("the reader does not panic");
        loop {
            let fresh = &state.text[self.seen..];
            let hit = words
                .iter()
                .enumerate()
                .filter_map(|(which, word)| fresh.find(word).map(|at| (at, which)))
                .min();
            if let Some((at, which)) = hit {
                let end = at + words[which].len();
                let text = fresh[..end].to_owned();
                self.seen += end;
                return Ok((which, text));
            }
            let speaks_by = state.heard.max(begun) + SILENT;
            let deadline = speaks_by.min(begun + HUNG);
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                self.stood_still = !state.closed && speaks_by == deadline;
                let why = match (state.closed, self.stood_still) {
                    (true, _) => "the console ended",
                    (false, true) => "the machine stands still",
                    (false, false) => "nothing of it came",
                };
                bail!("{why} while waiting for {words:?}; unmatched so far:\n{fresh}");
            }
            state = arrived
                .wait_timeout(state, left)
                .expect("the reader does not panic")
                .0;
        }
    }

    /// Waits for all of `words`, in whatever order they come.
    pub fn expect_all(&mut self, words: &[&str]) -> Result<()> {
        let start = self.seen;
        let mut end = start;
        for word in words {
            self.seen = start;
            self.expect(word)?;
            end = end.max(self.seen);
        }
        self.seen = end;
        Ok(())
    }

    /// Waits until the other side has closed the console; returns everything it ever said.
    pub fn wait_closed(&self) -> Result<String> {
        let (lock, arrived) = &*self.received;
        let state = lock.lock().expect("the reader does not panic");
        let (state, waited) = arrived
            .wait_timeout_while(state, HUNG, |state| !state.closed)
            .expect("the reader does not panic");
        if waited.timed_out() {
            bail!("the console did not end; it said:\n{}", state.text);
        }
        Ok(state.text.clone())
    }

    /// Everything that the console has said so far.
    pub fn transcript(&self) -> String {
        self.received
            .0
            .lock()
            .expect("the reader does not panic")
            .text
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn words_are_found_once_and_in_order() {
        let mut console = Console::new(&b"alpha beta alpha gamma"[..], io::sink(), io::sink());
        assert_eq!(console.expect("alpha").unwrap(), "alpha");
        assert_eq!(console.expect("alpha").unwrap(), " beta alpha");
        assert!(
            console
                .expect("alpha")
                .unwrap_err()
                .to_string()
                .contains("the console ended")
        );
    }

    #[test]
    fn all_words_may_come_in_any_order() {
        let mut console = Console::new(&b"one two three four"[..], io::sink(), io::sink());
        console.expect_all(&["three", "one"]).unwrap();
        assert_eq!(console.expect("four").unwrap(), " four");
    }

    #[test]
    fn the_earliest_of_several_words_wins() {
        let mut console = Console::new(&b"failed then ready"[..], io::sink(), io::sink());
        assert_eq!(console.expect_any(&["ready", "failed"]).unwrap().0, 1);
    }
}
