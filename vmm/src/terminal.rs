//! The user's terminal while it is the guest's: every key goes to the guest.
#![expect(unsafe_code, reason = "terminal modes are set by termios calls")]

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;

/// The mode that standard input had before.
static SAVED: Mutex<Option<libc::termios>> = Mutex::new(None);

/// Keeps standard input in raw mode for as long as it lives, if it is a terminal.
#[derive(Debug)]
#[must_use]
pub struct RawMode(());

impl RawMode {
    /// Switches standard input to raw mode.
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        if stdin.is_terminal() {
            let fd = stdin.as_raw_fd();
            let before = mode(fd)?;
            let mut raw = before;
            // SAFETY: `raw` is a valid termios.
            unsafe { libc::cfmakeraw(&raw mut raw) };
            set_mode(fd, &raw)?;
            if let Ok(mut saved) = SAVED.lock() {
                *saved = Some(before);
            }
        }
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back its mode. Does nothing the second time. Never waits, so that a panic may call it.
pub fn restore() {
    if let Ok(mut saved) = SAVED.try_lock()
        && let Some(before) = saved.take()
        && let Err(error) = set_mode(io::stdin().as_raw_fd(), &before)
    {
        log::warn!("The terminal's mode cannot be restored: {error}");
    }
}

fn mode(fd: RawFd) -> io::Result<libc::termios> {
    let mut mode = MaybeUninit::uninit();
    // SAFETY: `mode` is a valid place for the answer.
    if unsafe { libc::tcgetattr(fd, mode.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded and filled it.
    Ok(unsafe { mode.assume_init() })
}

fn set_mode(fd: RawFd, mode: &libc::termios) -> io::Result<()> {
    // SAFETY: `mode` is a valid termios.
    if unsafe { libc::tcsetattr(fd, libc::TCSANOW, mode) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
