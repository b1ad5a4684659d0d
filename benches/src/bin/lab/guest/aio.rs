//! Linux's asynchronous I/O (`io_submit(2)`): a queue of requests to one file, at a fixed depth.
#![expect(
    unsafe_code,
    reason = "std and libc have no wrapper for these system calls"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Result, bail};

use super::phase::Laps;

/// Direct I/O wants its buffers aligned.
const PAGE: usize = 4096;

/// What a request does.
#[derive(Clone, Copy)]
pub enum Kind {
    /// `IOCB_CMD_PREAD`
    Read = 0,
    /// `IOCB_CMD_PWRITE`
    Write = 1,
}

#[derive(Clone)]
#[repr(align(4096))]
struct Page([u8; PAGE]);

/// Aligned buffers of one size, one for each request in flight.
pub struct Buffers {
    pages: Vec<Page>,
    size: u64,
}

impl Buffers {
    /// `count` buffers of `size` bytes, a multiple of a page.
    pub fn new(count: usize, size: u64) -> Self {
        let pages = usize::try_from(size).unwrap_or(usize::MAX).div_ceil(PAGE);
        Self {
            pages: vec![Page([0x5a; PAGE]); count * pages],
            size,
        }
    }

    /// The first page of the first buffer.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.pages[0].0
    }

    fn address(&mut self, index: usize) -> u64 {
        let pages = usize::try_from(self.size).unwrap_or(usize::MAX) / PAGE;
        (&raw mut self.pages[index * pages]).addr() as u64
    }
}

/// `struct iocb` of `linux/aio_abi.h`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event: u32,
}

/// `struct io_event`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Completion {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

/// A queue of requests.
pub struct Context {
    id: u64,
    depth: usize,
}

impl Context {
    /// A queue of `depth` requests.
    pub fn new(depth: usize) -> io::Result<Self> {
        let mut id = 0_u64;
        // SAFETY: io_setup(2) writes the identifier of the new queue to `id`.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut id) };
        check(result)?;
        Ok(Self { id, depth })
    }

    /// Runs one request for each of `places`, always as many at a time as the queue takes: those that have ended are
    /// replaced in one batch.
    pub fn run(
        &mut self,
        file: &File,
        kind: Kind,
        mut buffers: Buffers,
        mut places: impl Iterator<Item = u64>,
        laps: &mut Laps,
    ) -> Result<()> {
        let mut requests = vec![Request::default(); self.depth];
        let mut free: Vec<usize> = (0..self.depth).collect();
        let mut completions = vec![Completion::default(); self.depth];
        laps.begin();
        loop {
            let mut batch: Vec<*mut Request> = Vec::with_capacity(self.depth);
            while let Some(slot) = free.pop() {
                let Some(place) = places.next() else {
                    free.push(slot);
                    break;
                };
                requests[slot] = Request {
                    data: slot as u64,
                    opcode: kind as u16,
                    file: file.as_raw_fd().cast_unsigned(),
                    buffer: buffers.address(slot),
                    bytes: buffers.size,
                    offset: i64::try_from(place)?,
                    ..Request::default()
                };
                batch.push(&raw mut requests[slot]);
            }
            if !batch.is_empty() {
                self.submit(&batch)?;
            }
            if free.len() == self.depth {
                return Ok(());
            }
            for completion in self.wait(&mut completions)? {
                if u64::try_from(completion.result) != Ok(buffers.size) {
                    bail!(
                        "A request of {} bytes gave {}",
                        buffers.size,
                        completion.result
                    );
                }
                free.push(usize::try_from(completion.data)?);
            }
            laps.lap();
        }
    }

    fn submit(&self, batch: &[*mut Request]) -> Result<()> {
        // SAFETY: the requests and the buffers they name live until `run` has seen their completions, or the process
        // ends with the error.
        let taken =
            unsafe { libc::syscall(libc::SYS_io_submit, self.id, batch.len(), batch.as_ptr()) };
        if check(taken)? != batch.len() {
            bail!("Only {taken} of {} requests were taken", batch.len());
        }
        Ok(())
    }

    /// Waits for one completion and takes all that are there.
    fn wait<'a>(&self, completions: &'a mut [Completion]) -> io::Result<&'a [Completion]> {
        // SAFETY: there is room for as many completions as the call is told.
        let count = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                1_usize,
                completions.len(),
                completions.as_mut_ptr(),
                std::ptr::null_mut::<libc::timespec>(),
            )
        };
        Ok(&completions[..check(count)?])
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: io_destroy(2) waits for what is in flight; the identifier is this queue's own.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

fn check(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
