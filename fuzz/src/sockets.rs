//! Programs of the host that talk to a device: without a name in a file system, which would take longer than the rest.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use devices::interrupt::Interrupt;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Two ends of a stream, neither of which waits.
pub fn pair() -> (UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    near.set_nonblocking(true).expect("a socket");
    far.set_nonblocking(true).expect("a socket");
    (near, far)
}

/// Who waits at a listening socket.
#[derive(Clone)]
pub struct Callers(Arc<(Mutex<VecDeque<UnixStream>>, EventFd)>);

impl Default for Callers {
    fn default() -> Self {
        Self::new()
    }
}

impl Callers {
    /// Nobody.
    pub fn new() -> Self {
        let event = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        Self(Arc::new((Mutex::default(), event)))
    }

    /// Ready when somebody has called.
    pub fn fd(&self) -> RawFd {
        self.0.1.as_raw_fd()
    }

    /// Somebody calls.
    pub fn call(&self, stream: UnixStream) {
        let mut waiting = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back(stream);
        self.0.1.trigger().expect("an eventfd");
    }

    /// Lets the next one in.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let mut waiting = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = waiting.pop_front();
        if waiting.is_empty() {
            let _ = self.0.1.read();
        }
        next.ok_or(io::ErrorKind::WouldBlock.into())
    }
}
