//! A thread for what the main thread shall not do once the guest runs: opening files, and waiting for their locks.

use std::io;
use std::sync::mpsc::{self, Sender};
use std::thread;

use crate::jail::seccomp::{Seccomp, ThreadKind};
use crate::logger::chain;

/// Bytes of stack: an image format's code goes a few dozen calls deep.
const STACK_BYTES: usize = 512 << 10;

/// Something to do there.
pub type Job = Box<dyn FnOnce() + Send>;

/// Hands jobs to the thread, which does them one after the other.
pub struct Opener(Sender<Job>);

impl Opener {
    /// Starts the thread; it ends with its opener. Its filter is that of the thread that plugs in devices: it opens the
    /// same kind of files, and sees as little of what a guest writes.
    pub fn start(seccomp: Seccomp) -> io::Result<Self> {
        let (sender, jobs) = mpsc::channel::<Job>();
        let body = move || {
            if let Err(error) = seccomp.enter(ThreadKind::Hotplug) {
                return log::error!("No more files are opened: {}", chain(&error));
            }
            for job in jobs {
                job();
            }
        };
        let thread = thread::Builder::new().name("opener".into());
        thread.stack_size(STACK_BYTES).spawn(body)?;
        Ok(Self(sender))
    }

    /// Has `job` done. Without the thread it is dropped, and whoever waits for it sees that.
    pub fn put(&self, job: Job) {
        let _ = self.0.send(job);
    }
}
