//! The socket, its clients, and whose turn it is.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::connection::{Connection, Next};
use super::message;
use crate::{Fault, Handler, Status};

/// Most clients at a time (Firecracker's number).
const MAX_CONNECTIONS: usize = 10;
/// How long no client is taken after one could not be: the reason, descriptors that ran out, does not pass at once.
const REST: Duration = Duration::from_millis(100);

/// Why there is no API.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else is there, or was.
    #[error(
        "Failed to open the API socket at: {path}. Check that it is not already used, and remove the file if it is left over",
        path = .path.display()
    )]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something else is wrong with the path.
    #[error("Failed to open the API socket at: {path}", path = .path.display())]
    Bind {
        /// The socket's path.
        path: PathBuf,
        /// What.
        #[source]
        source: io::Error,
    },
}

/// Ends a server when it is dropped.
#[derive(Debug)]
pub struct Stopper(
    #[expect(dead_code, reason = "the other end sees when it is closed")] UnixStream,
);

/// A socket and its clients.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    stop: UnixStream,
    max_body: usize,
    connections: Vec<Connection>,
    rests_until: Option<Instant>,
}

impl Server {
    /// Listens at `path`, which must not exist. A body may have `max_body` bytes.
    pub fn bind(path: &Path, max_body: usize) -> Result<(Self, Stopper), BindError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { path: path.into() },
            _ => BindError::Bind {
                path: path.into(),
                source,
            },
        };
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let (stop, stopper) = UnixStream::pair().map_err(failed)?;
        let server = Self {
            listener,
            path: path.into(),
            stop,
            max_body,
            connections: Vec::new(),
            rests_until: None,
        };
        Ok((server, Stopper(stopper)))
    }

    /// Serves clients on this thread, one request after the other, until the stopper is dropped.
    pub fn run(mut self, handler: &mut impl Handler) -> io::Result<()> {
        while self.turn(handler)? {}
        Ok(())
    }

    /// Waits until there is something to do, and does it. Whether there may be more.
    fn turn(&mut self, handler: &mut impl Handler) -> io::Result<bool> {
        let timeout = self.timeout(Instant::now());
        let listens = if self.rests_until.is_none() {
            PollFlags::POLLIN
        } else {
            PollFlags::empty()
        };
        let mut waiting = vec![
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), listens),
        ];
        let clients = self.connections.iter();
        waiting.extend(clients.map(|client| PollFd::new(client.as_fd(), client.interest())));
        match poll(&mut waiting, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<_> = waiting.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(waiting);

        let now = Instant::now();
        self.rests_until = self.rests_until.filter(|until| *until > now);
        let mut client_ready = ready[2..].iter();
        self.connections.retain_mut(|client| {
            let ready = client_ready.next().copied().unwrap_or(false);
            if ready || client.has_more() {
                return client.serve(handler, Instant::now()) == Next::Stay;
            }
            // Only one that has nothing for us is late: this thread may have been.
            if client.deadline().is_some_and(|deadline| deadline <= now) {
                client.expire();
                return false;
            }
            true
        });
        if ready[1] {
            self.accept(now);
        }
        Ok(!ready[0])
    }

    /// Until when to wait at most.
    fn timeout(&self, now: Instant) -> PollTimeout {
        if self.connections.iter().any(Connection::has_more) {
            return PollTimeout::ZERO;
        }
        let deadlines = self.connections.iter().filter_map(Connection::deadline);
        let first = deadlines.chain(self.rests_until).min();
        first.map_or(PollTimeout::NONE, |first| {
            // A millisecond more than what is cut off: not to wake just before the time.
            let wait = first.saturating_duration_since(now) + Duration::from_millis(1);
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        })
    }

    fn accept(&mut self, now: Instant) {
        match self.listener.accept() {
            Ok((stream, _)) if self.connections.len() >= MAX_CONNECTIONS => refuse(&stream),
            Ok((stream, _)) => match Connection::new(stream, self.max_body) {
                Ok(client) => self.connections.push(client),
                Err(error) => log::warn!("A client of the API cannot be served: {error}"),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                log::warn!("A client of the API cannot be taken: {error}");
                self.rests_until = Some(now + REST);
            }
        }
    }
}

impl Drop for Server {
    /// A socket that nobody serves is left to nobody.
    fn drop(&mut self) {
        // It may be out of reach by now, or somebody else may have been faster.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn refuse(mut stream: &UnixStream) {
    let fault = Fault::with_status(
        Status::ServiceUnavailable,
        format!("Too many open connections, permitted are {MAX_CONNECTIONS}"),
    );
    // A new stream has room for it, and who is refused may be gone already.
    let _ = stream.set_nonblocking(true);
    let _ = stream.write(&message::write(Err(fault), true));
}

#[cfg(test)]
mod tests;
