//! A port of the host's that the programs of one guest call by vsock: a Unix socket, to which the guest's VMM connects.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Calls and pieces of text that are taken of one guest in a second: more are left to wait there.
const MAX_A_SECOND: u32 = 64;
const SECOND: Duration = Duration::from_secs(1);
/// Read in one go.
const MAX_READ: usize = 2048;

/// What happens at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// Somebody calls.
    Call,
    /// Who has called says something.
    Words,
}

/// A port. Of those who call, the newest is listened to.
#[derive(Debug)]
pub struct Port {
    path: PathBuf,
    listener: UnixListener,
    caller: Option<UnixStream>,
    /// When the present second began, and what was taken in it.
    since: Duration,
    taken: u32,
}

impl Port {
    /// Listens at `path`, where nobody else does.
    pub fn open(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            caller: None,
            since: Duration::ZERO,
            taken: 0,
        })
    }

    /// Descriptors to wait for.
    pub fn waits(&self, now: Duration) -> impl Iterator<Item = (Sign, BorrowedFd<'_>)> {
        let caller = self.caller.as_ref().map(|it| (Sign::Words, it.as_fd()));
        let all = [Some((Sign::Call, self.listener.as_fd())), caller];
        let open = self.due().is_none_or(|due| due <= now);
        all.into_iter().flatten().filter(move |_| open)
    }

    /// When it is listened at again, after too much.
    pub fn due(&self) -> Option<Duration> {
        (self.taken >= MAX_A_SECOND).then(|| self.since + SECOND)
    }

    fn take(&mut self, now: Duration) {
        if now.saturating_sub(self.since) >= SECOND {
            (self.since, self.taken) = (now, 0);
        }
        self.taken = self.taken.saturating_add(1);
    }

    /// Takes a call; whether there was one.
    pub fn answer(&mut self, now: Duration) -> bool {
        self.take(now);
        let Ok((stream, _)) = self.listener.accept() else {
            return false;
        };
        if stream.set_nonblocking(true).is_err() {
            return false;
        }
        self.caller = Some(stream);
        true
    }

    /// What the caller says now; it may have nothing to say.
    pub fn read(&mut self, now: Duration) -> Vec<u8> {
        self.take(now);
        let mut bytes = vec![0; MAX_READ];
        let Some(caller) = &mut self.caller else {
            return Vec::new();
        };
        match caller.read(&mut bytes) {
            Ok(length) if length > 0 => bytes.truncate(length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => bytes.clear(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => bytes.clear(),
            _ => {
                bytes.clear();
                self.caller = None;
            }
        }
        bytes
    }

    /// Says a line to the caller. One that has not even read the few before is let go.
    pub fn say(&mut self, line: &str) {
        let said = self
            .caller
            .as_mut()
            .is_none_or(|caller| caller.write(line.as_bytes()).is_ok_and(|n| n == line.len()));
        if !said {
            self.caller = None;
        }
    }

    /// Lets the caller go.
    pub fn hang_up(&mut self) {
        self.caller = None;
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // Gone with its folder, perhaps.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn signs(port: &Port, now: Duration) -> Vec<Sign> {
        port.waits(now).map(|(sign, _)| sign).collect()
    }

    #[test]
    fn the_newest_caller_is_listened_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v_1024");
        fs::write(&path, "left behind").unwrap();
        let mut port = Port::open(&path).unwrap();
        assert_eq!(signs(&port, NOW), [Sign::Call]);
        let mut first = UnixStream::connect(&path).unwrap();
        assert!(port.answer(NOW));
        let mut second = UnixStream::connect(&path).unwrap();
        assert!(port.answer(NOW));
        assert!(!port.answer(NOW), "nobody calls");
        assert_eq!(first.read(&mut [0]).unwrap(), 0, "the first is let go");
        assert!(port.read(NOW).is_empty(), "it has said nothing yet");
        second.write_all(b"hello").unwrap();
        assert_eq!(port.read(NOW), b"hello");
        port.say("{}\n");
        let mut heard = [0; 3];
        second.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"{}\n");
        drop(second);
        assert!(port.read(NOW).is_empty());
        assert_eq!(signs(&port, NOW), [Sign::Call]);
        drop(port);
        assert!(!path.exists());
    }

    #[test]
    fn who_says_too_much_waits_for_the_next_second() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v_1024");
        let mut port = Port::open(&path).unwrap();
        let mut guest = UnixStream::connect(&path).unwrap();
        assert!(port.answer(NOW));
        for _ in 1..MAX_A_SECOND {
            assert_eq!(signs(&port, NOW), [Sign::Call, Sign::Words]);
            guest.write_all(b"{").unwrap();
            assert_eq!(port.read(NOW), b"{");
        }
        assert_eq!(signs(&port, NOW), []);
        assert_eq!(port.due(), Some(NOW + SECOND));
        assert_eq!(signs(&port, NOW + SECOND), [Sign::Call, Sign::Words]);
        port.read(NOW + SECOND);
        assert_eq!(port.due(), None);
    }

    #[test]
    fn one_that_does_not_read_is_let_go_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v_1024");
        let mut port = Port::open(&path).unwrap();
        let _guest = UnixStream::connect(&path).unwrap();
        assert!(port.answer(NOW));
        let line = "x".repeat(1000) + "\n";
        for _ in 0..10_000 {
            port.say(&line);
        }
        assert_eq!(signs(&port, NOW), [Sign::Call]);
    }
}
