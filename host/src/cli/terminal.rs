//! The terminal that a command was typed into, taken key by key.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{read, write};

/// Keys, until it is dropped: then the terminal is as it was before, however that comes about. What would end the
/// program is told instead.
pub struct Terminal {
    /// `None` if it is none: a pipe has keys as well.
    saved: Option<Termios>,
    signals: SignalFd,
}

/// What there is.
#[derive(Debug, Default)]
pub struct News {
    /// Keys; `Some` of none is their end.
    pub keys: Option<Vec<u8>>,
    /// The other descriptor can be read.
    pub other: bool,
    /// The program is to end.
    pub end: bool,
}

impl Terminal {
    /// Takes standard input.
    ///
    /// # Errors
    /// The system refuses.
    pub fn take() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGINT,
            // Only to look at the size again.
            Signal::SIGWINCH,
        ] {
            set.add(signal);
        }
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let input = io::stdin();
        let saved = tcgetattr(&input).ok();
        if let Some(settings) = &saved {
            let mut raw = settings.clone();
            cfmakeraw(&mut raw);
            tcsetattr(&input, SetArg::TCSANOW, &raw)?;
        }
        Ok(Self { saved, signals })
    }

    /// Whether it is a terminal, and not a pipe.
    pub fn is_one(&self) -> bool {
        self.saved.is_some()
    }

    /// Waits until there is something, for as long as `patience`. Keys are only looked at if `keys` says so.
    ///
    /// # Errors
    /// The system refuses.
    pub fn wait(
        &self,
        keys: bool,
        other: Option<BorrowedFd<'_>>,
        patience: Duration,
    ) -> io::Result<News> {
        let input = io::stdin();
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if keys {
            fds.push(PollFd::new(input.as_fd(), PollFlags::POLLIN));
        }
        fds.extend(other.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // Rounded up: a timer of less than a millisecond is not to be polled for.
        let patience = patience.as_millis().saturating_add(1);
        match poll(
            &mut fds,
            PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX),
        ) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(|fd| fd.any() == Some(true));
        let mut news = News::default();
        if ready.next() == Some(true) {
            while let Some(signal) = self.signals.read_signal()? {
                news.end |= signal.ssi_signo != Signal::SIGWINCH as u32;
            }
        }
        if keys && ready.next() == Some(true) {
            let mut bytes = vec![0; 512];
            match read(&input, &mut bytes) {
                Ok(length) => {
                    bytes.truncate(length);
                    news.keys = Some(bytes);
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                // It has hung up.
                Err(_) => news.keys = Some(Vec::new()),
            }
        }
        news.other = ready.next() == Some(true);
        Ok(news)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            // What still goes out goes out raw.
            let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, saved);
        }
    }
}

/// Shows bytes as they are. Standard output of the library would wait for a line to be whole.
///
/// # Errors
/// They cannot be written.
pub fn show(mut bytes: &[u8]) -> io::Result<()> {
    let output = io::stdout();
    while !bytes.is_empty() {
        match write(&output, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::NONE)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
