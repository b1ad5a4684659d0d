//! The backend as the queues see it: frames go, or not now, or never again. Or somebody within answers them.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::HEADER_LEN;
use super::backend::{Backend, Offloads};
use super::interceptor::{Interceptor, MAX_INTERCEPTED, START_LEN};
use crate::metrics::NetMetrics;
use crate::throttle::Throttle;
use crate::virtio::vectors::{GuestVectors, is_writable};

/// The backend, and whether it still is there.
pub(super) struct Wire {
    backend: Box<dyn Backend>,
    link_up: bool,
    link_changed: bool,
    interceptor: Option<Box<dyn Interceptor>>,
    /// A frame from or to the interceptor; empty without one.
    frame: Box<[u8]>,
    /// What the backend has been told, if it is known.
    offloads: Option<Offloads>,
    metrics: Arc<NetMetrics>,
    failures: Throttle,
}

impl Wire {
    pub(super) fn new(
        backend: Box<dyn Backend>,
        interceptor: Option<Box<dyn Interceptor>>,
        metrics: Arc<NetMetrics>,
    ) -> Self {
        let room = interceptor.as_ref().map_or(0, |_| MAX_INTERCEPTED);
        let link_up = backend.is_there();
        Self {
            backend,
            link_up,
            // A driver that goes on from a snapshot may believe in the link of before.
            link_changed: !link_up,
            interceptor,
            frame: vec![0; HEADER_LEN + room].into_boxed_slice(),
            offloads: None,
            metrics,
            failures: Throttle::default(),
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.backend.fd()
    }

    /// Who answers in place of the network.
    pub(super) fn interceptor(&mut self) -> Option<&mut Box<dyn Interceptor>> {
        self.interceptor.as_mut()
    }

    /// The descriptor by which the interceptor wants to be woken.
    pub(super) fn timer(&self) -> Option<RawFd> {
        self.interceptor.as_ref().map(|within| within.timer())
    }

    /// There is a frame for the guest from within.
    pub(super) fn has_answer(&mut self) -> bool {
        self.interceptor
            .as_mut()
            .is_some_and(|within| within.has_next())
    }

    /// How many bytes of a frame must be known before it is sent.
    pub(super) fn start_len(&self) -> usize {
        if self.interceptor.is_some() {
            START_LEN
        } else {
            super::MIN_FRAME
        }
    }

    pub(super) fn cuts_udp(&self) -> bool {
        self.backend.cuts_udp()
    }

    pub(super) fn is_up(&self) -> bool {
        self.link_up
    }

    /// Whether the link went down since the last call.
    pub(super) fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.link_changed)
    }

    pub(super) fn set_offloads(&mut self, offloads: Offloads) {
        // A queue that only stood still goes on with what it had: whoever lets it go on needs no way to the tap.
        if !self.link_up || self.offloads == Some(offloads) {
            return;
        }
        match self.backend.set_offloads(offloads) {
            Ok(()) => self.offloads = Some(offloads),
            Err(error) => {
                self.offloads = None;
                self.failed("Offloads cannot be set on the tap", &error);
            }
        }
    }

    /// Reads the next frame into `vectors` and then `rest`. `None` where there is none now.
    pub(super) fn receive(&mut self, vectors: &mut GuestVectors, rest: &mut [u8]) -> Option<usize> {
        if let Some(len) = self.answer(vectors, rest) {
            return Some(len);
        }
        while self.link_up {
            match vectors.read_from(self.backend.fd(), rest) {
                Ok(0) => self.down("it is at its end"),
                Ok(len) => return Some(len),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return None,
                    _ => {
                        self.metrics.tap_read_fails.count();
                        self.failed("A frame cannot be received from the tap", &error);
                        return None;
                    }
                },
            }
        }
        None
    }

    /// As [`receive`](Self::receive), from within.
    fn answer(&mut self, vectors: &GuestVectors, rest: &mut [u8]) -> Option<usize> {
        let (header, frame) = self.frame.split_at_mut(HEADER_LEN);
        let len = HEADER_LEN + self.interceptor.as_mut()?.next(frame)?;
        header.fill(0);
        let (first, more) = self.frame[..len].split_at(len.min(vectors.len()));
        // The buffers were in guest memory when they were taken, and are still.
        vectors.write_at(0, first).ok()?;
        rest[..more.len()].copy_from_slice(more);
        Some(len)
    }

    /// Gives a frame to somebody within, if he wants it.
    fn intercept(&mut self, start: &[u8], vectors: &GuestVectors) -> bool {
        let Some(within) = &mut self.interceptor else {
            return false;
        };
        let start = &start[HEADER_LEN..];
        if !within.wants(start) {
            return false;
        }
        let (first, more) = self.frame.split_at_mut(start.len());
        first.copy_from_slice(start);
        let room = MAX_INTERCEPTED - first.len();
        let len = first.len() + vectors.read(&mut more[..room]).unwrap_or(0);
        within.take(&self.frame[..len]);
        true
    }

    /// Sends one frame, which begins with `start`. `false` where there is no room now; otherwise it is gone, if only because nobody wants it.
    pub(super) fn send(&mut self, start: &mut [u8], vectors: &mut GuestVectors) -> bool {
        if self.intercept(start, vectors) {
            return true;
        }
        while self.link_up {
            let fd = self.backend.fd();
            match vectors.write_to(start, fd) {
                Ok(_) => return true,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock if is_writable(fd) => {}
                    io::ErrorKind::WouldBlock => return false,
                    _ => {
                        self.metrics.tap_write_fails.count();
                        self.metrics.tx_fails.count();
                        self.failed("A frame cannot be sent to the tap", &error);
                        return true;
                    }
                },
            }
        }
        true
    }

    fn failed(&mut self, what: &str, error: &io::Error) {
        let gone = [
            // What the tun driver says of an interface that was deleted.
            libc::EBADFD,
            libc::ENODEV,
            libc::ENXIO,
            libc::EPIPE,
            libc::ECONNRESET,
        ];
        if error
            .raw_os_error()
            .is_some_and(|code| gone.contains(&code))
        {
            self.down(error);
        } else {
            self.failures.warn(format_args!("{what}: {error}"));
        }
    }

    fn down(&mut self, why: impl std::fmt::Display) {
        (self.link_up, self.link_changed) = (false, true);
        log::error!("The tap of a guest is gone: {why}. The guest is told that its link is down");
    }
}
