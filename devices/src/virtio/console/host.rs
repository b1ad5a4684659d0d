//! The host's end of a port: the VMM's standard streams, or whoever connects to a Unix socket.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::throttle::Throttle;

/// Most callers answered in one turn.
const CALLERS: usize = 16;

/// Where a port's bytes go and come from.
pub enum Host {
    /// Two streams that are always there.
    Streams {
        /// Read once each time it is reported readable.
        input: File,
        /// Must not wait.
        output: Box<dyn Write + Send>,
    },
    /// One peer at a time; who comes before it has gone is turned away. What a peer has said before it went is the
    /// guest's until the next one comes.
    Socket(Box<dyn Callers>),
}

/// A listening socket. Its descriptor is readable when somebody has called.
pub trait Callers: AsRawFd + Send {
    /// The next who has called, on a stream that never waits. Does not wait either: `WouldBlock` where there is nobody.
    fn accept(&mut self) -> io::Result<UnixStream>;
}

/// A [`Host`] with its connection, watched by an epoll.
///
/// Every descriptor is watched for one event at a time and asked for again when there is room for what it brings: a
/// peer that says more than the guest takes is left alone.
pub(super) struct Link {
    host: Host,
    peer: Option<UnixStream>,
    /// Peers so far.
    peers: u64,
    /// The peer has hung up; something it has said may still be there.
    gone: bool,
    /// Somebody may wait to be accepted.
    callers: bool,
    failed: Throttle,
    epoll: Arc<Epoll>,
    /// What the epoll reports for this link; the listener has the next number.
    token: u64,
    watched: Option<EventSet>,
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
            peers: 0,
            gone: false,
            callers: false,
            failed: Throttle::default(),
            epoll,
            token,
            watched: None,
            readable: false,
            unwatched: false,
            ended: false,
        };
        match &link.host {
            Host::Streams { input, .. } => {
                let event = EpollEvent::new(EventSet::ONE_SHOT | EventSet::IN, token);
                link.watched = Some(EventSet::IN);
                link.unwatched = link
                    .epoll
                    .ctl(ControlOperation::Add, input.as_raw_fd(), event)
                    .is_err();
                link.readable = link.unwatched;
            }
            Host::Socket(listener) => {
                // By edge: a caller who cannot be accepted, for want of descriptors say, must not keep the thread awake.
                let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token + 1);
                link.epoll
                    .ctl(ControlOperation::Add, listener.as_raw_fd(), event)?;
            }
        }
        Ok(link)
    }

    /// Who is there to talk to, by a number of its own.
    pub(super) fn connection(&self) -> Option<u64> {
        let somebody = matches!(self.host, Host::Streams { .. }) || self.peer.is_some();
        somebody.then_some(self.peers)
    }

    /// The epoll has reported this link's descriptor.
    pub(super) fn is_ready(&mut self, events: EventSet) {
        self.watched = None;
        self.readable = true;
        self.gone = self.peer.is_some() && events.contains(EventSet::HANG_UP);
    }

    /// The epoll has reported this link's listener.
    pub(super) fn is_called(&mut self) {
        self.callers = true;
    }

    /// Answers those who have called. `true` where one of them is the next peer.
    pub(super) fn accept(&mut self) -> bool {
        let mut came = false;
        for _ in 0..CALLERS {
            let (true, Host::Socket(listener)) = (self.callers, &mut self.host) else {
                break;
            };
            match listener.accept() {
                // A second peer is turned away: its connection ends here.
                Ok(_) if self.peer.is_some() && !self.gone => {}
                Ok(peer) => came |= self.take(peer),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // After any other error the callers wait until something else happens at this port.
                    self.callers = error.kind() != io::ErrorKind::WouldBlock;
                    if self.callers {
                        let what = "A console port's peer cannot be accepted";
                        self.failed.warn(format_args!("{what}: {error}"));
                    }
                    break;
                }
            }
        }
        came
    }

    fn take(&mut self, peer: UnixStream) -> bool {
        let event = EpollEvent::new(EventSet::ONE_SHOT | EventSet::IN, self.token);
        let watched = self
            .epoll
            .ctl(ControlOperation::Add, peer.as_raw_fd(), event);
        if let Err(error) = watched {
            let what = "A console port's peer cannot be watched";
            self.failed.warn(format_args!("{what}: {error}"));
            return false;
        }
        self.watched = Some(EventSet::IN);
        self.readable = true;
        self.gone = false;
        self.peer = Some(peer);
        self.peers += 1;
        true
    }

    /// Reads what is there, once. A peer that has gone is let go.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Input {
        if !self.readable || self.ended {
            return Input::Nothing;
        }
        self.readable = self.unwatched || self.gone;
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

    /// Asks to be woken for more input, and for room for output, as wanted, and in any case when the peer hangs up.
    pub(super) fn watch(&mut self, input: bool, output: bool) {
        let mut wanted = EventSet::empty();
        if input && !self.readable && !self.ended {
            wanted |= EventSet::IN;
        }
        if output {
            wanted |= EventSet::OUT;
        }
        // A stream does not go away. A peer that has, is told of once: it would be again at once, and needs no watching.
        let nothing = wanted.is_empty() && self.peer.is_none();
        if nothing || self.gone || self.watched == Some(wanted) {
            return;
        }
        let Some(fd) = self.descriptor() else { return };
        let event = EpollEvent::new(EventSet::ONE_SHOT | wanted, self.token);
        // A descriptor that cannot be watched, such as a regular file, was never added.
        if self.epoll.ctl(ControlOperation::Modify, fd, event).is_ok() {
            self.watched = Some(wanted);
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
