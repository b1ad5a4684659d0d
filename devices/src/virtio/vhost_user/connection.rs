//! The connection to a backend, and the threads that talk over it.
//!
//! Queues are started and stopped on a vCPU's thread, which is not to wait for ever and may make few system calls. So it
//! hands each exchange to a thread that owns the connection, and a second thread ends the connection when an exchange
//! takes too long: the frontend repeats reads that time out, so a limit on the socket does not help, but an end does.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use vhost::vhost_user::Frontend;

use super::{BackendError, Begin};

/// How long one exchange with a backend may take: a vCPU may wait for it. Mapping the guest's memory is the longest.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of stack of each thread.
const STACK_BYTES: usize = 256 << 10;

type Job = Box<dyn FnOnce(&mut Frontend, &UnixStream) + Send>;

/// A connection, which its threads own. It ends with this.
pub(super) struct Connection(Sender<Job>);

impl Connection {
    /// For a backend of `queues` queues at the other end of `stream`.
    pub(super) fn new(stream: UnixStream, queues: u16, begin: Begin) -> Result<Self, BackendError> {
        let guarded = stream.try_clone().map_err(BackendError::Events)?;
        let closed = stream.try_clone().map_err(BackendError::Events)?;
        let mut frontend = Frontend::from_stream(stream, queues.into());
        let (sender, jobs) = mpsc::channel::<Job>();
        let (changes, seen) = mpsc::channel();
        start("vhost-user", begin, move || {
            for job in jobs {
                // The guard is there as long as somebody tells it.
                let _ = changes.send(());
                job(&mut frontend, &closed);
                let _ = changes.send(());
            }
        })?;
        start("vhost-guard", begin, move || guard(&seen, &guarded))?;
        Ok(Self(sender))
    }

    /// Does `work` in no more than [`PATIENCE`].
    pub(super) fn exchange<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Frontend) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let (answer, result) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |frontend, _| {
            // Whoever asked waits for it below.
            let _ = answer.send(work(frontend));
        });
        self.0.send(job).map_err(|_| BackendError::Closed)?;
        result.recv().map_err(|_| BackendError::Closed)?
    }

    /// Ends it for good.
    pub(super) fn close(&self) {
        // One that is closed already needs no closing.
        let job: Job = Box::new(|_, stream| drop(stream.shutdown(Shutdown::Both)));
        let _ = self.0.send(job);
    }
}

fn start(
    name: &str,
    begin: Begin,
    body: impl FnOnce() + Send + 'static,
) -> Result<(), BackendError> {
    let thread = thread::Builder::new()
        .name(name.into())
        .stack_size(STACK_BYTES);
    let started: io::Result<_> = thread.spawn(move || {
        if begin() {
            body();
        }
    });
    started.map(drop).map_err(BackendError::Thread)
}

/// Ends `stream` when more than [`PATIENCE`] lies between the begin and the end of an exchange.
fn guard(changes: &Receiver<()>, stream: &UnixStream) {
    while changes.recv().is_ok() {
        if changes.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = changes.recv();
        }
    }
}
