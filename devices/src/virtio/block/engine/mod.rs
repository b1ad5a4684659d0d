//! How bytes move between a disk's file and guest memory: at once where nothing has to be waited for, by io_uring where
//! the kernel has it, by waiting where it has not.
//!
//! - Reads are tried without waiting first: from the page cache one system call is less work than any queue. What is not
//!   there is queued, so that many can be in flight.
//! - Writes go to the page cache the same way. Where the file system cannot say whether it would wait (ext4), they are
//!   written at once all the same: io_uring would hand them to a worker thread, and workers write one after the other to
//!   the same file.
//! - What waits for the disk by its nature (flush, discard, write zeroes, durable writes) is queued.
//! - Files in memory (tmpfs) never wait: no queue.
//! - A disk that a server has is no file: its backend brings what carries work there ([`Remote`]).
//!
//! The page cache is used, not bypassed: guests that share a base image share its cache, and the cache is the host's to
//! take back when it needs memory.
#![expect(
    unsafe_code,
    reason = "vectored I/O straight between a file and guest memory"
)]

mod file_io;
mod patience;
mod remote;
mod ring;
mod vectors;
mod work;

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::epoll::Epoll;

use self::file_io::Transfer;
use self::patience::{Advice, Patience};
pub(super) use self::remote::Remote;
use self::ring::Ring;
pub(super) use self::vectors::MAX_VECTORS;
pub(super) use self::work::Work;
use super::backend::{Action, Job, Start};
use crate::memory::GuestMemory;

/// Most jobs in flight at once, of all queues of a disk.
pub const MAX_IN_FLIGHT: u16 = 128;

/// How to do a disk's work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// What is best for the file.
    #[default]
    Automatic,
    /// Wait for each job.
    Synchronous,
    /// By io_uring, if the kernel has it.
    Asynchronous,
}

/// What does a disk's work.
pub struct Engine {
    preference: Preference,
    /// Never waits, whatever the job: the file is in memory.
    in_memory: bool,
    block_device: bool,
    file: Option<File>,
    memory: Option<Arc<GuestMemory>>,
    /// Somebody wants to know which memory is written.
    tracked: bool,
    /// The job that is being started.
    now: Work,
    ring: Option<Ring>,
    remote: Option<Box<dyn Remote>>,
    /// Watches what the remote waits for, one after the other.
    epoll: Option<Epoll>,
    reads: Patience,
    writes: Patience,
}

impl Engine {
    /// An engine without a file.
    pub fn new(preference: Preference) -> Self {
        Self {
            preference,
            in_memory: false,
            block_device: false,
            file: None,
            memory: None,
            tracked: false,
            now: Work::default(),
            ring: None,
            remote: None,
            epoll: None,
            reads: Patience::default(),
            writes: Patience::default(),
        }
    }

    /// Works on `file` from now on. Nothing is in flight.
    ///
    /// The first file decides whether there is an io_uring.
    pub fn attach_file(&mut self, file: File) {
        // In the place of a server: nobody would look for the end of what a new ring does.
        let second = self.remote.take().is_some();
        let first = self.file.is_none() && !second;
        self.in_memory = self.preference == Preference::Automatic && lives_in_memory(&file);
        self.block_device = file
            .metadata()
            .is_ok_and(|metadata| metadata.file_type().is_block_device());
        (self.reads, self.writes) = (Patience::default(), Patience::default());
        if let Some(ring) = &mut self.ring {
            if let Err(error) = ring.change_file(&file) {
                log::warn!("Disk goes on without io_uring: {error}");
                self.in_memory = true;
            }
        } else if first && !self.in_memory && self.preference != Preference::Synchronous {
            match Ring::new(&file, MAX_IN_FLIGHT) {
                Ok(ring) => self.ring = Some(ring),
                Err(error) => log::info!("Disk is read and written synchronously: {error}"),
            }
        }
        self.file = Some(file);
    }

    /// Has `remote` do the work from now on. Nothing is in flight.
    pub(super) fn attach_remote(&mut self, mut remote: Box<dyn Remote>) -> io::Result<()> {
        if self.file.is_some() {
            // Its descriptor is not what the device waits for.
            return Err(io::ErrorKind::Unsupported.into());
        }
        if self.epoll.is_none() {
            self.epoll = Some(Epoll::new()?);
        }
        if let Some(epoll) = &self.epoll {
            remote.watch(epoll.as_raw_fd())?;
        }
        self.remote = Some(remote);
        Ok(())
    }

    /// All buffers lie in `memory` from now on. Nothing is in flight.
    pub fn attach_memory(&mut self, memory: Arc<GuestMemory>) {
        self.tracked = memory.iter().any(|region| region.bitmap().is_some());
        if let Some(remote) = &mut self.remote {
            remote.abandon();
        }
        let old = self.memory.replace(memory);
        if self.ring.as_ref().is_some_and(Ring::uses_memory) {
            // Its end could not be waited for: the old memory must never go.
            std::mem::forget(old);
        }
    }

    /// The memory in which buffers lie.
    pub fn memory(&self) -> Option<&Arc<GuestMemory>> {
        self.memory.as_ref()
    }

    /// Jobs can be in flight.
    pub fn is_asynchronous(&self) -> bool {
        self.remote.is_some() || self.ring.as_ref().is_some_and(Ring::is_usable) && !self.in_memory
    }

    /// Ready when a job has ended.
    pub fn descriptor(&self) -> Option<RawFd> {
        let epoll = self.epoll.as_ref().map(AsRawFd::as_raw_fd);
        epoll.or_else(|| self.ring.as_ref().map(Ring::descriptor))
    }

    /// Starts `job` on the file. Where it goes on, it has `token`, which no other in flight has and which is less than
    /// [`MAX_IN_FLIGHT`]; [`submit`](Self::submit) must follow.
    pub fn start(&mut self, token: u16, job: &Job<'_>) -> Start {
        let Some(memory) = &self.memory else {
            return Start::Done(Err(io::ErrorKind::NotConnected.into()));
        };
        if let Err(error) = self.now.load(job, memory, self.tracked) {
            return Start::Done(Err(error));
        }
        if let Some(remote) = &mut self.remote {
            remote.queue(token, &mut self.now);
            return Start::InFlight;
        }
        let Some(file) = &self.file else {
            return Start::Done(Err(io::ErrorKind::NotConnected.into()));
        };
        let ring = self.ring.as_mut().filter(|ring| ring.is_usable());
        let Some(ring) = ring.filter(|_| !self.in_memory) else {
            let result = file_io::perform(file, &mut self.now, self.block_device);
            return Start::Done(self.finished(result));
        };
        let patience = match job.action {
            Action::Read => &mut self.reads,
            Action::Write { durable: false } => &mut self.writes,
            // The one that io_uring does not know for all kernels.
            Action::Discard if self.block_device => {
                return Start::Done(file_io::perform(file, &mut self.now, true));
            }
            _ => {
                ring.queue(token, &mut self.now);
                return Start::InFlight;
            }
        };
        if patience.advice() == Advice::Try {
            match file_io::transfer(file, &mut self.now, libc::RWF_NOWAIT) {
                Ok(Transfer::Complete) => {
                    patience.hit();
                    return Start::Done(self.finished(Ok(())));
                }
                Ok(Transfer::WouldWait) => patience.miss(),
                Err(error) if file_io::is_unsupported(&error) => patience.give_up(),
                Err(error) => return Start::Done(self.finished(Err(error))),
            }
        }
        if job.action != Action::Read && patience.is_impossible() {
            let result = file_io::perform(file, &mut self.now, self.block_device);
            return Start::Done(result);
        }
        ring.queue(token, &mut self.now);
        Start::InFlight
    }

    /// What has to follow the job that was done at once.
    fn finished(&self, result: io::Result<()>) -> io::Result<()> {
        if let Some(memory) = &self.memory {
            self.now.mark_dirty(memory);
        }
        result
    }

    /// Gives the kernel what was started, all at once.
    pub fn submit(&mut self) {
        if let Some(remote) = &mut self.remote {
            remote.submit();
        } else if let (Some(ring), Some(file)) = (&mut self.ring, &self.file) {
            ring.submit(file, self.block_device);
        }
    }

    /// A job that has ended, by its token.
    pub fn reap(&mut self) -> Option<(u16, io::Result<()>)> {
        if let Some(remote) = &mut self.remote {
            let (token, result) = remote.reap()?;
            if let Some(memory) = &self.memory {
                remote.work(token).mark_dirty(memory);
            }
            return Some((token, result));
        }
        let (ring, file) = (self.ring.as_mut()?, self.file.as_ref()?);
        if !ring.is_busy() {
            return None;
        }
        let (token, result) = ring.reap(file, self.block_device)?;
        if let Some(memory) = &self.memory {
            ring.work(token).mark_dirty(memory);
        }
        Some((token, result))
    }

    /// Some job has not been reaped.
    pub fn is_busy(&self) -> bool {
        match &self.remote {
            Some(remote) => remote.is_busy(),
            None => self.ring.as_ref().is_some_and(Ring::is_busy),
        }
    }

    /// Waits until some job has ended, if one is in flight.
    pub fn wait(&mut self) -> io::Result<()> {
        self.submit();
        if let Some(remote) = &mut self.remote {
            remote.wait();
            return Ok(());
        }
        self.ring.as_mut().map_or(Ok(()), Ring::wait)
    }

    /// Has the kernel refuse all that is submitted from now on: for tests of what comes then.
    #[cfg(test)]
    pub(super) fn lose_ring(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.lose();
        }
    }

    /// Has the next wait fail: for tests of what comes then.
    #[cfg(test)]
    pub(super) fn fail_next_wait(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.deafen();
        }
    }

    /// Queues every read and write, as if nothing were in the page cache: for tests of what comes then.
    #[cfg(test)]
    pub(super) fn expect_nothing_cached(&mut self) {
        (self.reads, self.writes) = (Patience::exhausted(), Patience::exhausted());
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self::new(Preference::default())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The kernel must be done with guest memory before anybody unmaps it.
        while self.ring.as_ref().is_some_and(Ring::uses_memory) {
            if let Err(error) = self.wait() {
                log::error!("The end of a disk's work cannot be waited for: {error}");
                std::mem::forget(self.memory.take());
                return;
            }
            while self.reap().is_some() {}
        }
    }
}

/// The file system keeps all its files in memory.
fn lives_in_memory(file: &File) -> bool {
    let mut info = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `info` is large enough for what the call writes.
    if unsafe { libc::fstatfs(file.as_raw_fd(), info.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: the call has succeeded, and all bits are valid for these numbers anyway.
    let kind = unsafe { info.assume_init() }.f_type;
    [libc::TMPFS_MAGIC, 0x8584_58f6 /* ramfs */].contains(&kind)
}

#[cfg(test)]
mod tests;
