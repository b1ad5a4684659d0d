//! Work done by the kernel while we do something else: io_uring.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};
use thiserror::Error;

use super::file_io;
use super::work::Work;
use crate::virtio::block::backend::Action;

/// Where our one file is in the ring's table of files.
const FILE: Fixed = Fixed(0);

/// Why there is no ring.
#[derive(Debug, Error)]
pub(super) enum RingError {
    #[error("The kernel gives no io_uring: {0}")]
    Setup(#[source] io::Error),
    #[error("The kernel's io_uring lacks {0}")]
    Lacks(&'static str),
    #[error("The kernel's io_uring does not take the disk's file: {0}")]
    File(#[source] io::Error),
}

/// An io_uring for one file, and the work it carries.
pub(super) struct Ring {
    uring: IoUring,
    /// By token.
    slots: Box<[Work]>,
    /// Tokens of work that the kernel does not know of yet.
    queued: Vec<u16>,
    /// How many the kernel knows of.
    in_flight: usize,
    /// Ended without the kernel's queue.
    ended: Vec<(u16, io::Result<()>)>,
    /// The kernel takes no more: what is in flight comes back, the rest is done without it.
    broken: bool,
    #[cfg(test)]
    deaf: bool,
}

impl Ring {
    /// A ring for `file` with room for `slots` pieces of work.
    pub(super) fn new(file: &File, slots: u16) -> Result<Self, RingError> {
        let entries = u32::from(slots);
        // Completions are looked for where we enter the kernel anyway: no interrupts for them. Kernels before 5.19 do
        // not know that.
        let uring = IoUring::builder()
            .setup_coop_taskrun()
            .build(entries)
            .or_else(|_| IoUring::new(entries))
            .map_err(RingError::Setup)?;
        if !uring.params().is_feature_submit_stable() || !uring.params().is_feature_nodrop() {
            return Err(RingError::Lacks("stable submissions (Linux 5.5)"));
        }
        let mut probe = Probe::new();
        let submitter = uring.submitter();
        submitter
            .register_probe(&mut probe)
            .map_err(RingError::Setup)?;
        for (code, name) in [
            (opcode::Readv::CODE, "reads"),
            (opcode::Writev::CODE, "writes"),
            (opcode::Fsync::CODE, "flushes"),
            (opcode::Fallocate::CODE, "fallocate"),
        ] {
            if !probe.is_supported(code) {
                return Err(RingError::Lacks(name));
            }
        }
        submitter
            .register_files(&[file.as_raw_fd()])
            .map_err(RingError::File)?;
        Ok(Self {
            uring,
            slots: (0..slots).map(|_| Work::default()).collect(),
            queued: Vec::with_capacity(slots.into()),
            in_flight: 0,
            ended: Vec::new(),
            broken: false,
            #[cfg(test)]
            deaf: false,
        })
    }

    /// Works on `file` from now on. Nothing is in flight.
    pub(super) fn change_file(&mut self, file: &File) -> Result<(), RingError> {
        self.uring
            .submitter()
            .register_files_update(0, &[file.as_raw_fd()])
            .map(drop)
            .map_err(RingError::File)
    }

    /// Takes work.
    pub(super) fn is_usable(&self) -> bool {
        !self.broken
    }

    /// Ready when something has ended.
    pub(super) fn descriptor(&self) -> RawFd {
        self.uring.as_raw_fd()
    }

    /// Something is queued, or in flight, or has ended and was not reaped.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight > 0 || !self.queued.is_empty() || !self.ended.is_empty()
    }

    /// The kernel works on something in guest memory.
    pub(super) fn uses_memory(&self) -> bool {
        self.in_flight > 0
    }

    /// Takes `work` over, to be submitted. No other work in flight has its `token`.
    pub(super) fn queue(&mut self, token: u16, work: &mut Work) {
        std::mem::swap(&mut self.slots[usize::from(token)], work);
        self.queued.push(token);
    }

    /// The work of `token`.
    pub(super) fn work(&self, token: u16) -> &Work {
        &self.slots[usize::from(token)]
    }

    /// Shows the kernel what is queued, all at once.
    pub(super) fn submit(&mut self, file: &File, block_device: bool) {
        if self.queued.is_empty() {
            return;
        }
        if self.broken {
            return self.perform_queued(0, file, block_device);
        }
        for &token in &self.queued {
            let entry = entry(token, &self.slots[usize::from(token)]);
            // SAFETY: the entry's vectors stay where they are until the kernel has copied them, in `submit`; what they
            // point to is guest memory, which the engine keeps mapped as long as something is in flight.
            let pushed = unsafe { self.uring.submission().push(&entry) };
            debug_assert!(pushed.is_ok(), "the ring has an entry for each token");
        }
        let error = loop {
            match self.uring.submit() {
                Ok(0) => break io::ErrorKind::WriteZero.into(),
                Ok(_) if self.uring.submission().is_empty() => {
                    self.in_flight += self.queued.len();
                    self.queued.clear();
                    return;
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
        };
        log::warn!("io_uring takes no more work, going on without: {error}");
        self.broken = true;
        let taken = self.queued.len() - self.uring.submission().len();
        self.in_flight += taken;
        self.perform_queued(taken, file, block_device);
    }

    /// Does what is queued from the `first` on by ordinary system calls.
    fn perform_queued(&mut self, first: usize, file: &File, block_device: bool) {
        for &token in &self.queued[first..] {
            let work = &mut self.slots[usize::from(token)];
            let result = file_io::perform(file, work, block_device);
            self.ended.push((token, result));
        }
        self.queued.clear();
    }

    /// Something that has ended, if there is.
    pub(super) fn reap(
        &mut self,
        file: &File,
        block_device: bool,
    ) -> Option<(u16, io::Result<()>)> {
        loop {
            if let Some(ended) = self.ended.pop() {
                return Some(ended);
            }
            let Some(entry) = self.uring.completion().next() else {
                if self.queued.is_empty() {
                    return None;
                }
                // What was moved in part only.
                self.submit(file, block_device);
                continue;
            };
            self.in_flight -= 1;
            let token = u16::try_from(entry.user_data()).unwrap_or(u16::MAX);
            let work = &mut self.slots[usize::from(token)];
            let moved = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(entry.result().saturating_neg()));
            let result = match (work.action, moved) {
                // It did not come to it: a signal, or the end of the thread that had submitted it.
                (_, Err(error)) if did_not_start(&error) => {
                    file_io::perform(file, work, block_device)
                }
                (Action::Read | Action::Write { .. }, Ok(moved)) => match work.advance(moved) {
                    Ok(()) if !work.vectors.is_empty() => {
                        self.queued.push(token);
                        continue;
                    }
                    result => result,
                },
                (Action::Discard | Action::WriteZeroes { .. }, moved) => {
                    file_io::finish_fallocate(file, work, moved.map(drop))
                }
                (_, moved) => moved.map(drop),
            };
            return Some((token, result));
        }
    }

    #[cfg(test)]
    pub(super) fn lose(&mut self) {
        self.broken = true;
    }

    #[cfg(test)]
    pub(super) fn deafen(&mut self) {
        self.deaf = true;
    }

    /// Waits until something has ended.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        #[cfg(test)]
        if std::mem::take(&mut self.deaf) {
            return Err(io::Error::from_raw_os_error(libc::EBADR));
        }
        loop {
            if !self.ended.is_empty() || self.in_flight == 0 {
                return Ok(());
            }
            // SAFETY: submits nothing, waits for one completion, and passes no argument.
            let waited = unsafe {
                self.uring
                    .submitter()
                    .enter::<libc::sigset_t>(0, 1, ENTER_GETEVENTS, None)
            };
            match waited {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                waited => return waited.map(drop),
            }
        }
    }
}

/// Wait for completions (`IORING_ENTER_GETEVENTS`).
const ENTER_GETEVENTS: u32 = 1;

fn did_not_start(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::EINTR | libc::ECANCELED)
    )
}

/// What the kernel is told of `work`.
fn entry(token: u16, work: &Work) -> squeue::Entry {
    let vectors = work.vectors.front();
    let count = u32::try_from(vectors.len()).unwrap_or(u32::MAX);
    let entry = match work.action {
        Action::Read => opcode::Readv::new(FILE, vectors.as_ptr(), count)
            .offset(work.offset)
            .build(),
        Action::Write { durable } => opcode::Writev::new(FILE, vectors.as_ptr(), count)
            .offset(work.offset)
            .rw_flags(if durable { libc::RWF_DSYNC } else { 0 })
            .build(),
        Action::Flush => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        Action::Discard | Action::WriteZeroes { .. } => opcode::Fallocate::new(FILE, work.len)
            .offset(work.offset)
            .mode(file_io::fallocate_mode(work.action))
            .build(),
    };
    entry.user_data(token.into())
}
