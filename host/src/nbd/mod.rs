//! A server of disks: the store's, or any that are a [`BlockDevice`], over a Unix socket by the NBD protocol. The VMM is its
//! client (`drives[].format` "nbd"), and so are QEMU's tools and the kernel's `nbd-client`.
//!
//! ```text
//!   listener ──► acceptor, a thread ──► a thread for each connection: negotiation, then requests one after the other
//! ```
//!
//! A client may say anything: lengths are bounded before there is room for them, ranges are checked before the disk is
//! asked, and what breaks the protocol ends the connection. A flush is the disk's: what was written before, on any
//! connection, is durable when it is answered.

pub mod client;
mod connection;
mod negotiation;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use devices::virtio::block::nbd::protocol::{
    CAN_MULTI_CONN, HAS_FLAGS, MAX_NAME, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM,
    SEND_WRITE_ZEROES,
};
use nix::sys::socket::{Shutdown, shutdown};
use store::BlockDevice;
use thiserror::Error;

/// Most connections to one socket at a time: a guest has one for each disk, and a tool may look.
const MAX_CONNECTIONS: usize = 16;
/// How long to wait after a connection could not be taken: the host lacks something that takes time to come back.
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no service.
#[derive(Debug, Error)]
pub enum ServeError {
    /// A name that no client can ask for.
    #[error("An export's name of {len} bytes is too long, permitted are {MAX_NAME}")]
    Name {
        /// Its length.
        len: usize,
    },
    /// The socket cannot be used.
    #[error("Cannot use the socket of the NBD service")]
    Listener(#[source] io::Error),
    /// The host gives no more threads.
    #[error("Cannot start a thread for the NBD service")]
    Thread(#[source] io::Error),
}

/// A disk that clients can have.
#[derive(Clone)]
pub struct Export {
    /// It.
    pub disk: Arc<dyn BlockDevice>,
    /// Nobody can write to it here.
    pub read_only: bool,
}

impl Export {
    /// What it is and can do.
    fn flags(&self) -> u16 {
        let changes = if self.read_only {
            READ_ONLY
        } else {
            SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES
        };
        HAS_FLAGS | SEND_FLUSH | CAN_MULTI_CONN | changes
    }
}

/// Disks by their names. Who asks for the empty name gets that one, or the only one there is.
#[derive(Clone, Default)]
pub struct Exports(BTreeMap<String, Export>);

impl Exports {
    /// One disk, which is had by any client that does not ask for another.
    pub fn one(name: &str, export: Export) -> Self {
        Self(BTreeMap::from([(name.to_owned(), export)]))
    }

    /// Adds a disk, or puts it in the place of the one of that name.
    pub fn insert(&mut self, name: &str, export: Export) {
        self.0.insert(name.to_owned(), export);
    }

    fn find(&self, name: &str) -> Option<&Export> {
        self.0.get(name).or_else(|| {
            let mut all = self.0.values();
            all.next().filter(|_| name.is_empty() && self.0.len() == 1)
        })
    }
}

/// Who is told what went wrong, in a sentence: disks that fail, connections that cannot be taken.
pub type Report = Arc<dyn Fn(&str) + Send + Sync>;

struct Shared {
    exports: Exports,
    report: Report,
    stopping: AtomicBool,
    /// Those that are served, by the number of their arrival.
    connections: Mutex<BTreeMap<u64, UnixStream>>,
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, UnixStream>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

/// A server at work; it stops when it is dropped.
pub struct Service {
    shared: Arc<Shared>,
    listener: Arc<UnixListener>,
    acceptor: Option<JoinHandle<()>>,
}

/// Serves `exports` to whoever connects to `listener`, until the service is stopped or dropped.
///
/// # Errors
/// A name is too long, or the host has no thread for it.
pub fn serve(
    listener: UnixListener,
    exports: Exports,
    report: Report,
) -> Result<Service, ServeError> {
    if let Some(name) = exports.0.keys().find(|name| name.len() > MAX_NAME) {
        return Err(ServeError::Name { len: name.len() });
    }
    listener
        .set_nonblocking(false)
        .map_err(ServeError::Listener)?;
    let listener = Arc::new(listener);
    let shared = Arc::new(Shared {
        exports,
        report,
        stopping: AtomicBool::new(false),
        connections: Mutex::default(),
    });
    let (ours, theirs) = (shared.clone(), listener.clone());
    let acceptor = thread::Builder::new()
        .name("nbd".into())
        .spawn(move || accept_all(&theirs, &ours))
        .map_err(ServeError::Thread)?;
    Ok(Service {
        shared,
        listener,
        acceptor: Some(acceptor),
    })
}

impl Service {
    /// How many clients there are.
    pub fn connections(&self) -> usize {
        self.shared.connections().len()
    }

    /// Takes no more connections, ends those that there are after the request that each is at, and waits for that. No
    /// disk is asked for anything afterwards.
    pub fn stop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes who waits for a connection, or a byte of one. It fails for those that have gone already.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        for connection in self.shared.connections().values() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        if let Some(acceptor) = self.acceptor.take() {
            // It has panicked, which the panic's own message says.
            let _ = acceptor.join();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept_all(listener: &UnixListener, shared: &Arc<Shared>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    let mut number = 0;
    while !shared.is_stopping() {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) if shared.is_stopping() => break,
            Err(error) => {
                (shared.report)(&format!("An NBD connection cannot be taken: {error}"));
                thread::sleep(PAUSE);
                continue;
            }
        };
        threads.retain(|thread| !thread.is_finished());
        // One too many is closed at once.
        if threads.len() >= MAX_CONNECTIONS {
            continue;
        }
        number += 1;
        match start(stream, number, shared) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                (shared.report)(&format!("An NBD connection cannot be served: {error}"));
                thread::sleep(PAUSE);
            }
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn start(stream: UnixStream, number: u64, shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let ours = shared.clone();
    let kept = stream.try_clone()?;
    // Before the look at `stopping`: either that sees this one, or this one sees that.
    shared.connections().insert(number, kept);
    if shared.is_stopping() {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
    let body = move || {
        attend(stream, &ours.exports, &ours.report);
        ours.connections().remove(&number);
    };
    let spawned = thread::Builder::new().name("nbd-client".into()).spawn(body);
    spawned.inspect_err(|_| drop(shared.connections().remove(&number)))
}

/// Serves one client, until it goes or breaks the protocol.
pub fn attend(stream: UnixStream, exports: &Exports, report: &Report) {
    if let Some((stream, export)) = negotiation::negotiate(stream, exports) {
        connection::serve(stream, export, report);
    }
}

#[cfg(test)]
mod tests;
