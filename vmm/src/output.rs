//! What the guest prints, on its way to a descriptor that may not take it.
//!
//! A terminal that is stopped, or a pipe that nobody reads, must hold up neither a vCPU nor the event thread, and its
//! blocking mode is not ours to change: the terminal is shared with the user's shell. So the guest's bytes go into a
//! bounded buffer, and a thread of their own, which may wait as long as it likes, writes them.
//!
//! A full buffer loses its oldest bytes: a console is read for how a guest came to where it is, and the last words
//! matter most. Bytes that come in a row are written in one call: up to the end of a line, or what came within
//! [`LINGER`].

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use devices::throttle::Throttle;

use crate::jail::seccomp::{Seccomp, ThreadKind};
use crate::logger::chain;

/// Bytes that wait for their reader: what a pipe holds once more, or some 800 lines.
const CAPACITY: usize = 64 << 10;
/// Most bytes of one write: small, so that a slow line shows progress.
const CHUNK: usize = 4096;
/// How long the rest of a line is waited for: less than a person notices, and the time of a hundred port accesses.
const LINGER: Duration = Duration::from_millis(1);
/// Bytes of stack of the writing thread.
const STACK_BYTES: usize = 64 << 10;

/// A bounded buffer in front of a descriptor. Writing to it never waits and never fails. Clones share the buffer.
#[derive(Clone, Debug)]
pub struct Output(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the writing thread.
    work: Condvar,
    /// Wakes who waits for the writing thread.
    progress: Condvar,
}

#[derive(Debug, Default)]
struct State {
    buffer: VecDeque<u8>,
    /// There is an end of a line in the buffer.
    whole_line: bool,
    /// What the writing thread sleeps for, so that it is woken for nothing less.
    asleep: Option<Sleep>,
    /// Bytes lost since the last report.
    lost: u64,
    /// Bytes taken out of the buffer and written, or given up on.
    written: u64,
    /// No more bytes come.
    ending: bool,
    /// The writing thread has nothing more to write.
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sleep {
    UntilByte,
    UntilLine,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output {
    /// Output to `file`, written by a thread of its own.
    pub fn new(file: File, seccomp: Seccomp) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        thread::Builder::new()
            .name("output".into())
            .stack_size(STACK_BYTES)
            .spawn(move || match seccomp.enter(ThreadKind::Device) {
                Ok(()) => drain(&theirs, file),
                Err(error) => {
                    log::error!("The guest's output is lost: {}", chain(&error));
                    discard(&theirs);
                }
            })?;
        Ok(Self(shared))
    }

    /// Waits until everything is written, or until nothing was for the time of `patience`.
    pub fn finish(&self, patience: Duration) {
        let mut state = self.0.lock();
        state.ending = true;
        self.0.work.notify_one();
        while !state.ended {
            let before = state.written;
            let waited = self
                .0
                .progress
                .wait_timeout(state, patience)
                .unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            if waited.1.timed_out() && state.written == before && !state.ended {
                let left = state.buffer.len();
                log::warn!(
                    "The end of the guest's output is lost, {left} bytes and what was being written: nobody reads it"
                );
                return;
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        state.push(bytes);
        let wake = match state.asleep {
            Some(Sleep::UntilByte) => true,
            Some(Sleep::UntilLine) => state.whole_line || state.buffer.len() >= CHUNK,
            None => false,
        };
        if wake {
            state.asleep = None;
            drop(state);
            self.0.work.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    fn push(&mut self, bytes: &[u8]) {
        self.whole_line |= bytes.contains(&b'\n');
        let kept = &bytes[bytes.len().saturating_sub(CAPACITY)..];
        let too_many = (self.buffer.len() + kept.len()).saturating_sub(CAPACITY);
        drop(self.buffer.drain(..too_many));
        self.buffer.extend(kept);
        self.lost += (too_many + bytes.len() - kept.len()) as u64;
    }

    /// The next bytes to write.
    fn take(&mut self, chunk: &mut Vec<u8>) {
        chunk.clear();
        let length = self.buffer.len().min(CHUNK);
        chunk.extend(self.buffer.drain(..length));
        self.whole_line = self.buffer.contains(&b'\n');
    }
}

/// Body of the writing thread.
fn drain(shared: &Shared, mut file: File) {
    let mut chunk = Vec::with_capacity(CHUNK);
    let mut losses = Throttle::default();
    while wait(shared, &mut chunk) {
        let result = write_all(&mut file, &chunk);
        let lost = {
            let mut state = shared.lock();
            state.written += chunk.len() as u64;
            shared.progress.notify_all();
            std::mem::take(&mut state.lost)
        };
        if let Err(error) = result {
            log::warn!("The guest's output is lost from here on: {error}");
            return discard(shared);
        }
        if lost > 0 {
            // A guest that is always faster than its reader must not fill the log as well.
            losses.warn(format_args!(
                "{lost} bytes of the guest's output are lost: nobody read them in time"
            ));
        }
    }
}

/// Sleeps until there is something to write and puts it into `chunk`; `false` at the end.
fn wait(shared: &Shared, chunk: &mut Vec<u8>) -> bool {
    let mut state = shared.lock();
    while state.buffer.is_empty() {
        if state.ending {
            state.ended = true;
            shared.progress.notify_all();
            return false;
        }
        state.asleep = Some(Sleep::UntilByte);
        state = shared
            .work
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner);
    }
    if !state.whole_line && state.buffer.len() < CHUNK && !state.ending {
        state.asleep = Some(Sleep::UntilLine);
        state = shared
            .work
            .wait_timeout(state, LINGER)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
    state.asleep = None;
    state.take(chunk);
    true
}

/// Takes everything and keeps nothing, once the descriptor is broken.
fn discard(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        state.buffer.clear();
        state.whole_line = false;
        state.lost = 0;
        if state.ending {
            state.ended = true;
            shared.progress.notify_all();
            return;
        }
        // Only the end is of interest; the buffer bounds itself until then.
        state.asleep = None;
        state = shared
            .work
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody else who has the same terminal made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::park_timeout(10 * LINGER);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{PipeReader, Read, pipe};
    use std::os::fd::OwnedFd;

    /// Far longer than any wait of a test that passes.
    const PATIENCE: Duration = Duration::from_secs(100);

    fn output() -> (Output, PipeReader) {
        let (reader, writer) = pipe().unwrap();
        (
            Output::new(File::from(OwnedFd::from(writer)), Seccomp::off()).unwrap(),
            reader,
        )
    }

    fn numbered(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i % 251).to_le_bytes()[0]).collect()
    }

    #[test]
    fn bytes_arrive_in_order_with_and_without_an_end_of_line() {
        let (mut output, mut reader) = output();
        for text in ["login: ", "root\n", "# "] {
            for byte in text.bytes() {
                output.write_all(&[byte]).unwrap();
            }
            let mut got = vec![0; text.len()];
            reader.read_exact(&mut got).unwrap();
            assert_eq!(got, text.as_bytes());
        }
    }

    #[test]
    fn nothing_is_lost_at_the_end() {
        let (mut output, mut reader) = output();
        let all = numbered(CAPACITY - 1);
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            got
        });
        output.write_all(&all).unwrap();
        output.finish(PATIENCE);
        drop(output);
        assert_eq!(reader.join().unwrap(), all);
    }

    #[test]
    fn a_reader_that_does_not_read_costs_the_oldest_bytes_and_no_waiting() {
        let (mut output, mut reader) = output();
        let all = numbered(40 * CAPACITY);
        let mut first = vec![0; CHUNK];
        output.write_all(&all[..CHUNK]).unwrap();
        reader.read_exact(&mut first).unwrap();
        assert_eq!(first, all[..CHUNK]);
        for part in all[CHUNK..].chunks(100) {
            output.write_all(part).unwrap();
        }
        assert!(output.0.lock().buffer.len() <= CAPACITY);
        // It gives up: the reader is there and reads nothing.
        output.finish(Duration::from_millis(1));
        drop(output);
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert!(got.len() < all.len() - CHUNK);
        let last_words = &all[all.len() - CAPACITY..];
        assert_eq!(&got[got.len() - CAPACITY..], last_words);
    }

    #[test]
    fn a_reader_that_is_gone_is_no_trouble() {
        let (mut output, reader) = output();
        drop(reader);
        for _ in 0..100 {
            output.write_all(&numbered(CHUNK)).unwrap();
        }
        output.finish(PATIENCE);
    }

    #[test]
    fn more_than_the_buffer_at_once_keeps_the_end() {
        let mut state = State::default();
        let all = numbered(CAPACITY + 10);
        state.push(b"before");
        state.push(&all);
        assert_eq!(state.buffer, &all[10..]);
        assert_eq!(state.lost, 16);
    }
}
