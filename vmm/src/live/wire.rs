//! The channel to the store, which never keeps the guest waiting for ever.

use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::backlog::is_read;
use super::error::WireError;
use super::protocol::{Decoder, Order};
use crate::latch::ExitLatch;

/// How long the store has to take one frame, which is a megabyte at most.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What events are of.
const SOCKET: u64 = 0;
const END: u64 = 1;
const OTHER: u64 = 2;

/// The channel.
pub(super) struct Wire {
    socket: UnixStream,
    decoder: Decoder<Order>,
    latch: Arc<ExitLatch>,
    epoll: Epoll,
    /// Room to write is waited for.
    writing: bool,
}

impl Wire {
    /// Over `socket`; no wait is longer than until `latch` is set.
    pub fn new(socket: UnixStream, latch: Arc<ExitLatch>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        for (fd, data) in [
            (socket.as_raw_fd(), SOCKET),
            (latch.event().as_raw_fd(), END),
        ] {
            let event = EpollEvent::new(EventSet::IN, data);
            epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        Ok(Self {
            socket,
            decoder: Decoder::new(),
            latch,
            epoll,
            writing: false,
        })
    }

    /// Waits from now on end also when `fd` can be read, which stays open until it is [left out](Self::leave_out).
    pub fn watch(&self, fd: RawFd) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, OTHER);
        self.epoll.ctl(ControlOperation::Add, fd, event)
    }

    /// No more waits end because of `fd`.
    pub fn leave_out(&self, fd: RawFd) {
        let event = EpollEvent::default();
        if let Err(error) = self.epoll.ctl(ControlOperation::Delete, fd, event) {
            log::error!("A descriptor is watched for nothing: {error}");
        }
    }

    /// Nothing more is said. The store sees that, whoever else may have the socket.
    pub fn end(&self) {
        // It may have ended by itself.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Waits until there is something to read or to [watch](Self::watch) or, if that is wanted, room to write, or until the
    /// time is over.
    pub fn wait(&mut self, write: bool, patience: Option<Duration>) -> Result<(), WireError> {
        if write != self.writing {
            let mut events = EventSet::IN;
            events.set(EventSet::OUT, write);
            let event = EpollEvent::new(events, SOCKET);
            let fd = self.socket.as_raw_fd();
            let changed = self.epoll.ctl(ControlOperation::Modify, fd, event);
            changed.map_err(WireError::Io)?;
            self.writing = write;
        }
        // Rounded up, so that a wait does not end a moment before its time and begins anew.
        let milliseconds = patience.map(|patience| patience.as_millis().saturating_add(1));
        let timeout = milliseconds.map_or(-1, |all| i32::try_from(all).unwrap_or(i32::MAX));
        match self.epoll.wait(timeout, &mut [EpollEvent::default(); 3]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(WireError::Io(error)),
        }
        if self.latch.is_set() {
            return Err(WireError::Ended);
        }
        Ok(())
    }

    /// Waits until the store has read all that was sent, but not longer than `patience`: what is said next is then heard at
    /// once.
    pub fn wait_until_read(&mut self, patience: Duration) -> Result<(), WireError> {
        let start = Instant::now();
        while start.elapsed() < patience && !is_read(&self.socket).map_err(WireError::Io)? {
            self.wait(false, Some(Duration::ZERO))?;
        }
        Ok(())
    }

    /// What the store has said, if there is a whole message of it.
    pub fn receive_now(&mut self) -> Result<Option<Order>, WireError> {
        use super::protocol::ProtocolError as E;
        match self.decoder.receive(&mut &self.socket) {
            Ok(Some(order)) => Ok(Some(order)),
            Ok(None) => Err(WireError::Closed),
            Err(E::Io(error)) => match error.kind() {
                ErrorKind::WouldBlock => Ok(None),
                ErrorKind::ConnectionReset => Err(WireError::Closed),
                _ => Err(WireError::Io(error)),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// The next thing that the store says, or `None` when the time is over.
    pub fn receive(&mut self, patience: Option<Duration>) -> Result<Option<Order>, WireError> {
        let start = Instant::now();
        loop {
            if let Some(order) = self.receive_now()? {
                return Ok(Some(order));
            }
            let left = patience.map(|patience| patience.saturating_sub(start.elapsed()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            self.wait(false, left)?;
        }
    }

    /// Sends as much of `bytes` as there is room for, which may be nothing.
    pub fn write_now(&mut self, bytes: &[u8]) -> Result<usize, WireError> {
        match self.socket.write(bytes) {
            Ok(count) => Ok(count),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(0),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Err(WireError::Closed),
                _ => Err(WireError::Io(error)),
            },
        }
    }
}
