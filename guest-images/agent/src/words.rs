//! What is said to the host, without allocating.

use std::fmt::{self, Write};
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::check::Verdict;

/// A line that is being written. What does not fit is left out.
pub struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Line {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            bytes: [0; 512],
            len: 0,
        }
    }

    /// What is written so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        let place = self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Where the kernel says how the guest is. Open from the beginning: later there may be no descriptor to be had.
pub struct State {
    load: Option<File>,
    memory: Option<File>,
}

impl State {
    /// Opens the files, as far as they are there.
    pub fn open() -> Self {
        Self {
            load: File::open("/proc/loadavg").ok(),
            memory: File::open("/proc/meminfo").ok(),
        }
    }

    /// Writes a whole line.
    pub fn write(&self, line: &mut Line, beat: u64, verdict: Option<Verdict>, bye: bool) {
        // It fits: the longest fault has some fifty bytes.
        let _ = self.try_write(line, beat, verdict, bye);
    }

    fn try_write(
        &self,
        line: &mut Line,
        beat: u64,
        verdict: Option<Verdict>,
        bye: bool,
    ) -> fmt::Result {
        write!(line, "{{\"beat\":{beat}")?;
        match verdict {
            Some(Ok(())) => line.write_str(",\"well\":true")?,
            Some(Err(fault)) => write!(line, ",\"well\":false,\"why\":\"{fault}\"")?,
            None => {}
        }
        if bye {
            line.write_str(",\"bye\":true")?;
        }
        let mut buffer = [0; 512];
        if let Some(load) = text(self.load.as_ref(), &mut buffer).and_then(load) {
            write!(line, ",\"load\":{load}")?;
        }
        if let Some(kib) = text(self.memory.as_ref(), &mut buffer).and_then(available) {
            write!(line, ",\"available_kib\":{kib}")?;
        }
        line.write_str("}\n")
    }
}

/// What the kernel says in a file, as far as there is room for it.
pub fn text<'a>(file: Option<&File>, buffer: &'a mut [u8]) -> Option<&'a str> {
    let length = file?.read_at(buffer, 0).ok()?;
    let bytes = buffer.get(..length)?;
    // The end may be cut in the middle of something; all of it is ASCII.
    std::str::from_utf8(bytes).ok()
}

/// The mean over a minute in `/proc/loadavg`, as a number of JSON.
fn load(text: &str) -> Option<&str> {
    let word = text.split_whitespace().next()?;
    let (whole, part) = word.split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(whole) && digits(part)).then_some(word)
}

/// `MemAvailable` in `/proc/meminfo`.
fn available(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Fault;

    fn line(verdict: Option<Verdict>, bye: bool) -> String {
        let mut line = Line::new();
        State::open().write(&mut line, u64::MAX, verdict, bye);
        String::from_utf8(line.bytes().to_vec()).unwrap()
    }

    #[test]
    fn a_line_says_how_this_machine_is() {
        let well = line(Some(Ok(())), false);
        assert!(
            well.starts_with("{\"beat\":18446744073709551615,\"well\":true,\"load\":"),
            "{well}"
        );
        assert!(well.contains(",\"available_kib\":") && well.ends_with("}\n"));
        let ill = line(Some(Err(Fault::Start(libc::EAGAIN))), false);
        assert!(
            ill.contains("\"well\":false,\"why\":\"cannot start a program: too many processes\""),
            "{ill}"
        );
        assert!(line(None, true).contains(",\"bye\":true"));
        assert!(!line(None, false).contains("well"));
    }

    #[test]
    fn the_kernels_numbers_are_read_and_nothing_else_is() {
        assert_eq!(load("0.12 0.08 0.01 1/123 4567\n"), Some("0.12"));
        assert_eq!(load("nan 1 2"), None);
        assert_eq!(load(""), None);
        let text = "MemTotal:  100 kB\nMemFree:  50 kB\nMemAvailable:     70 kB\nBuff";
        assert_eq!(available(text), Some(70));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let mut line = Line::new();
        assert!(line.write_str(&"x".repeat(500)).is_ok());
        assert!(line.write_str(&"x".repeat(13)).is_err());
        assert_eq!(line.bytes().len(), 500);
    }
}
