//! The host's end of a port: the VMM's standard streams, or whoever connects to a Unix socket.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Where a port's bytes go and come from.
pub enum Host {
    /// Two streams that are always there.
    Streams {
        /// Read once each time it is reported readable.
        input: File,
        /// Must not wait.
        output: Box<dyn Write + Send>,
    },
    /// One peer at a time; who comes before it has gone is turned away.
    Socket(UnixListener),
}

/// A [`Host`] with its connection, watched by an epoll.
///
/// Every descriptor is watched for one event at a time and asked for again when there is room for what it brings: a
/// peer that says more than the guest takes is left alone.
pub(super) struct Link {
    host: Host,
    peer: Option<UnixStream>,
    epoll: Arc<Epoll>,
    /// What the epoll reports for this link; the listener has the next number.
    token: u64,
    watched: EventSet,
    /// The input may have something.
    readable: bool,
    /// The input is a regular file: it never waits and cannot be watched.
    unwatched: bool,
    /// The input has come to its end.
    ended: bool,
}

/// What reading from the host's end gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    Bytes(usize),
    Nothing,
}

impl Link {
    pub(super) fn new(host: Host, epoll: Arc<Epoll>, token: u64) -> io::Result<Self> {
        let mut link = Self {
            host,
            peer: None,
            epoll,
            token,
            watched: EventSet::empty(),
            readable: false,
            unwatched: false,
            ended: false,
        };
        match &link.host {
            Host::Streams { input, .. } => {
                let event = EpollEvent::new(EventSet::ONE_SHOT | EventSet::IN, token);
                link.watched = EventSet::IN;
                link.unwatched = link
                    .epoll
                    .ctl(ControlOperation::Add, input.as_raw_fd(), event)
                    .is_err();
                link.readable = link.unwatched;
            }
            Host::Socket(listener) => {
                listener.set_nonblocking(true)?;
                let event = EpollEvent::new(EventSet::IN, token + 1);
                link.epoll
                    .ctl(ControlOperation::Add, listener.as_raw_fd(), event)?;
            }
        }
        Ok(link)
    }

    /// Somebody is there to talk to.
    pub(super) fn is_connected(&self) -> bool {
        matches!(self.host, Host::Streams { .. }) || self.peer.is_some()
    }

    /// The epoll has reported this link's descriptor.
    pub(super) fn is_ready(&mut self) {
        self.watched = EventSet::empty();
        self.readable = true;
    }

    /// Takes the next peer, if there is none now. `true` where one has come.
    pub(super) fn accept(&mut self) -> bool {
        let Host::Socket(listener) = &self.host else {
            return false;
        };
        let Ok((peer, _)) = listener.accept() else {
            return false;
        };
        // A second peer is turned away: its connection ends here.
        if self.peer.is_some() || peer.set_nonblocking(true).is_err() {
            return false;
        }
        let event = EpollEvent::new(EventSet::ONE_SHOT | EventSet::IN, self.token);
        if let Err(error) = self
            .epoll
            .ctl(ControlOperation::Add, peer.as_raw_fd(), event)
        {
            log::warn!("A console port's peer cannot be watched: {error}");
            return false;
        }
        self.watched = EventSet::IN;
        self.readable = true;
        self.peer = Some(peer);
        true
    }

    /// Reads what is there, once. A peer that has gone is let go.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Input {
        if !self.readable || self.ended {
            return Input::Nothing;
        }
        self.readable = self.unwatched;
        let result = match (&mut self.host, &mut self.peer) {
            (Host::Streams { input, .. }, _) => input.read(buffer),
            (Host::Socket(_), Some(peer)) => peer.read(buffer),
            (Host::Socket(_), None) => return Input::Nothing,
        };
        match result {
            Ok(length @ 1..) => return Input::Bytes(length),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            // The end of a stream is not that of the console: it is just not read again.
            Ok(_) | Err(_) => match self.host {
                Host::Streams { .. } => {
                    self.ended = true;
                    self.readable = false;
                }
                Host::Socket(_) => self.peer = None,
            },
        }
        Input::Nothing
    }

    /// Writes what goes without waiting. Without a peer everything goes nowhere.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let result = match (&mut self.host, &mut self.peer) {
            (Host::Streams { output, .. }, _) => output.write(bytes),
            (Host::Socket(_), Some(peer)) => peer.write(bytes),
            (Host::Socket(_), None) => return bytes.len(),
        };
        match result {
            Ok(written) => written,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                0
            }
            Err(_) => {
                self.peer = None;
                bytes.len()
            }
        }
    }

    /// Asks to be woken for more input, and for room for output, as wanted.
    pub(super) fn watch(&mut self, input: bool, output: bool) {
        let mut wanted = EventSet::empty();
        if input && !self.readable && !self.ended {
            wanted |= EventSet::IN;
        }
        if output {
            wanted |= EventSet::OUT;
        }
        if wanted.is_empty() || wanted == self.watched {
            return;
        }
        let Some(fd) = self.descriptor() else { return };
        let event = EpollEvent::new(EventSet::ONE_SHOT | wanted, self.token);
        // A descriptor that cannot be watched, such as a regular file, was never added.
        if self.epoll.ctl(ControlOperation::Modify, fd, event).is_ok() {
            self.watched = wanted;
        }
    }

    fn descriptor(&self) -> Option<RawFd> {
        match (&self.host, &self.peer) {
            (Host::Streams { input, .. }, _) => Some(input.as_raw_fd()),
            (Host::Socket(_), Some(peer)) => Some(peer.as_raw_fd()),
            (Host::Socket(_), None) => None,
        }
    }
}
