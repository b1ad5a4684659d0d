//! `daruma guest console`: this terminal is the guest's.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use thiserror::Error;

use super::asking::Manner;
use super::terminal::{Terminal, show};
use crate::errors::chain;
use crate::remote::{self, AskError, Attached};
use crate::view::clean;

/// What a guest that is left may have set: colours, no cursor.
const RESET: &str = "\x1b[0m\x1b[?25h";
const HELP: &str = "\r\nCtrl-] and then: 0 leaves, Ctrl-] sends a Ctrl-] to the guest\r\n";
use crate::console::{BELL, PREFIX};
/// Nothing is due: only what is there wakes us.
const FOREVER: Duration = Duration::from_secs(3600);

/// Why a console is not to be had, or is no more.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The supervisor refuses.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The terminal, or the way to the supervisor.
    #[error("the way to the console of '{guest}' broke")]
    Broken {
        /// Whose.
        guest: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It went down.
    #[error("the machine went down, or we read so slowly that it gave up on us")]
    Gone,
}

/// Carries out `daruma guest console`.
pub fn console(guest: &str, manner: &Manner) -> ExitCode {
    let done = (manner.socket().map_err(AttachError::from)).and_then(|socket| {
        // Before the terminal is touched: an error is said in the usual way.
        let attached = remote::attach(&socket, guest)?;
        let broken = |source| broken(guest, source);
        let terminal = Terminal::take().map_err(broken)?;
        converse(&terminal, attached)
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("daruma: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Shows the console of a guest on a terminal that is taken already, until it is left.
pub fn console_on(terminal: &Terminal, socket: &Path, guest: &str) -> Result<(), AttachError> {
    converse(terminal, remote::attach(socket, guest)?)
}

fn broken(guest: &str, source: io::Error) -> AttachError {
    let guest = guest.to_owned();
    AttachError::Broken { guest, source }
}

fn converse(terminal: &Terminal, attached: Attached) -> Result<(), AttachError> {
    let Attached {
        guest,
        stream,
        first,
    } = attached;
    let head = format!(
        "{RESET}\r\n--- {} (Ctrl-] 0 to leave) ---\r\n",
        clean(&guest)
    );
    let shown = show(head.as_bytes()).and_then(|()| show(&first));
    let done = shown.and_then(|()| relay(terminal, &stream));
    // A terminal that is gone needs no goodbye.
    let _ = show(format!("{RESET}\r\n").as_bytes());
    match done {
        Ok(true) => Ok(()),
        Ok(false) => Err(AttachError::Gone),
        Err(source) => Err(broken(&guest, source)),
    }
}

/// Carries keys one way and output the other. Whether we left, not the machine.
fn relay(terminal: &Terminal, mut stream: &UnixStream) -> io::Result<bool> {
    let (mut has_keys, mut chord) = (true, false);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let news = terminal.wait(has_keys, Some(stream.as_fd()), FOREVER)?;
        if news.end {
            return Ok(true);
        }
        if let Some(keys) = news.keys {
            // A pipe that has ended leaves a guest to be watched.
            has_keys = !keys.is_empty();
            if !has_keys && terminal.is_one() {
                return Ok(true);
            }
            let (keys, leaves) = for_guest(&keys, &mut chord)?;
            stream.write_all(&keys)?;
            if leaves {
                return Ok(true);
            }
        }
        if news.other {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(length) => show(&buffer[..length])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The keys that are for the guest, and whether one of the others leaves it.
fn for_guest(keys: &[u8], chord: &mut bool) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    for key in keys {
        match (std::mem::take(chord), *key) {
            (false, PREFIX) => *chord = true,
            (false, key) => bytes.push(key),
            (true, PREFIX) => bytes.push(PREFIX),
            (true, b'0' | b'h' | b'q') => return Ok((bytes, true)),
            (true, b'?') => show(HELP.as_bytes())?,
            (true, _) => show(BELL)?,
        }
    }
    Ok((bytes, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chords_are_not_for_the_guest() {
        let mut chord = false;
        let mut keys = |bytes: &[u8]| for_guest(bytes, &mut chord).unwrap();
        assert_eq!(keys(b"ls\r\x03"), (b"ls\r\x03".to_vec(), false));
        assert_eq!(keys(b"a\x1d"), (b"a".to_vec(), false));
        assert_eq!(keys(b"\x1db"), (b"\x1db".to_vec(), false));
        assert_eq!(keys(b"c\x1d0d"), (b"c".to_vec(), true));
    }
}
