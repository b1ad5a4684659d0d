//! The thread that serves the API's clients.

use std::io;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use api::http::{BindError, Server, Stopper};

use crate::controller::Desk;
use crate::jail::seccomp::{Seccomp, ThreadKind};
use crate::logger::chain;

/// Bytes of stack: a request is parsed a few calls deep, JSON up to 128 levels.
const STACK_BYTES: usize = 256 << 10;
/// How long the last client may take for its answer.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(1);

/// The API's socket, which clients may connect to already.
pub struct ApiSocket {
    server: Server,
    stopper: Stopper,
}

/// The thread that serves it.
pub struct ApiThread {
    thread: JoinHandle<()>,
    stopper: Stopper,
}

impl ApiSocket {
    /// Listens at `path`; a request's body may have `max_body` bytes.
    pub fn bind(path: &Path, max_body: usize) -> Result<Self, BindError> {
        let (server, stopper) = Server::bind(path, max_body)?;
        Ok(Self { server, stopper })
    }

    /// Serves clients by way of `desk`, on a thread of its own.
    pub fn serve(self, mut desk: Desk, seccomp: Seccomp) -> io::Result<ApiThread> {
        let Self { server, stopper } = self;
        let body = move || {
            // A guest does not end because nobody can talk about it any more.
            if let Err(error) = seccomp.enter(ThreadKind::Api) {
                log::error!("The API is not served: {}", chain(&error));
            } else if let Err(error) = server.run(&mut desk) {
                log::error!("The API is not served any more: {error}");
            }
        };
        let thread = thread::Builder::new()
            .name("api".into())
            .stack_size(STACK_BYTES)
            .spawn(body)?;
        Ok(ApiThread { thread, stopper })
    }
}

impl ApiThread {
    /// Lets the thread answer what it has, and end.
    pub fn end(self) {
        drop(self.stopper);
        let mut waited = Duration::ZERO;
        while !self.thread.is_finished() && waited < PATIENCE {
            thread::sleep(PAUSE);
            waited += PAUSE;
        }
    }
}
