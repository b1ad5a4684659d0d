//! The backend as the queues see it: frames go, or not now, or never again.

use std::io;
use std::os::fd::RawFd;

use super::backend::{Backend, Offloads};
use super::header::Header;
use crate::throttle::Throttle;
use crate::virtio::vectors::{GuestVectors, is_writable};

/// The backend, and whether it still is there.
pub(super) struct Wire {
    backend: Box<dyn Backend>,
    link_up: bool,
    link_changed: bool,
    failures: Throttle,
}

impl Wire {
    pub(super) fn new(backend: Box<dyn Backend>) -> Self {
        Self {
            backend,
            link_up: true,
            link_changed: false,
            failures: Throttle::default(),
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.backend.fd()
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
        if self.link_up
            && let Err(error) = self.backend.set_offloads(offloads)
        {
            self.failed("Offloads cannot be set on the tap", &error);
        }
    }

    /// Reads the next frame into `vectors` and then `rest`. `None` where there is none now.
    pub(super) fn receive(&mut self, vectors: &mut GuestVectors, rest: &mut [u8]) -> Option<usize> {
        while self.link_up {
            match vectors.read_from(self.backend.fd(), rest) {
                Ok(0) => self.down("it is at its end"),
                Ok(len) => return Some(len),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return None,
                    _ => {
                        self.failed("A frame cannot be received from the tap", &error);
                        return None;
                    }
                },
            }
        }
        None
    }

    /// Sends one frame. `false` where there is no room now; otherwise it is gone, if only because nobody wants it.
    pub(super) fn send(&mut self, header: &mut Header, vectors: &mut GuestVectors) -> bool {
        while self.link_up {
            let fd = self.backend.fd();
            match vectors.write_to(header, fd) {
                Ok(_) => return true,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock if is_writable(fd) => {}
                    io::ErrorKind::WouldBlock => return false,
                    _ => {
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
