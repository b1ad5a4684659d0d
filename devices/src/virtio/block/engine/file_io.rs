//! Work done by system calls that return when it is done.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;

use libc::{c_int, iovec, off_t};

use super::work::Work;
use crate::virtio::block::backend::Action;

/// How many zeroes are written at a time where nothing better is there.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The kernel's `BLKDISCARD`: `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// Where a transfer stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// At its end.
    Complete,
    /// It would have to wait, and must not.
    WouldWait,
}

/// Does `work` from beginning to end. `block_device` says whether `file` is one.
pub(super) fn perform(file: &File, work: &mut Work, block_device: bool) -> io::Result<()> {
    match work.action {
        Action::Read => transfer(file, work, 0).map(drop),
        Action::Write { durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            transfer(file, work, flags).map(drop)
        }
        Action::Flush => file.sync_data(),
        Action::Discard if block_device => discard_blocks(file, work),
        Action::Discard | Action::WriteZeroes { .. } => {
            let result = fallocate(file, work);
            finish_fallocate(file, work, result)
        }
    }
}

/// Moves all bytes of `work`, with the `RWF_*` `flags`.
pub(super) fn transfer(file: &File, work: &mut Work, flags: c_int) -> io::Result<Transfer> {
    while !work.vectors.is_empty() {
        let at = off_t::try_from(work.offset).map_err(|_| ErrorKind::InvalidInput)?;
        let vectors = work.vectors.front();
        match usize::try_from(call(file.as_raw_fd(), work.action, vectors, at, flags)) {
            Ok(moved) => work.advance(moved)?,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == ErrorKind::Interrupted => {}
                error if error.kind() == ErrorKind::WouldBlock && flags & libc::RWF_NOWAIT != 0 => {
                    return Ok(Transfer::WouldWait);
                }
                error => return Err(error),
            },
        }
    }
    Ok(Transfer::Complete)
}

fn call(file: c_int, action: Action, vectors: &[iovec], at: off_t, flags: c_int) -> isize {
    let count = c_int::try_from(vectors.len()).unwrap_or(c_int::MAX);
    let vectors = vectors.as_ptr();
    if action == Action::Read {
        // SAFETY: the engine's vectors are mapped guest memory, which it keeps mapped and to which nothing in this
        // process holds a reference: it is only accessed by volatile means.
        unsafe { libc::preadv2(file, vectors, count, at, flags) }
    } else {
        // SAFETY: as above.
        unsafe { libc::pwritev2(file, vectors, count, at, flags) }
    }
}

/// How a file system is asked for what `work` wants.
pub(super) fn fallocate_mode(action: Action) -> c_int {
    match action {
        Action::WriteZeroes { unmap: false } => {
            libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE
        }
        _ => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
    }
}

fn fallocate(file: &File, work: &Work) -> io::Result<()> {
    let invalid = |_| io::Error::from(ErrorKind::InvalidInput);
    let offset = off_t::try_from(work.offset).map_err(invalid)?;
    let len = off_t::try_from(work.len).map_err(invalid)?;
    // SAFETY: takes no pointers.
    match unsafe { libc::fallocate(file.as_raw_fd(), fallocate_mode(work.action), offset, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the answer of the file system to [`fallocate_mode`] means for `work`.
pub(super) fn finish_fallocate(file: &File, work: &Work, result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_unsupported(&error) => match work.action {
            Action::WriteZeroes { .. } => write_zeroes(file, work.offset, work.len),
            // A wish, which not every file system can fulfil.
            _ => Ok(()),
        },
        result => result,
    }
}

/// The file system, or the block device, cannot do such things at all.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

fn write_zeroes(file: &File, mut offset: u64, mut len: u64) -> io::Result<()> {
    while len > 0 {
        let vector = iovec {
            // Read only, whatever the type says.
            iov_base: ZEROES.as_ptr().cast_mut().cast(),
            iov_len: usize::try_from(len).map_or(ZEROES.len(), |len| len.min(ZEROES.len())),
        };
        let at = i64::try_from(offset).map_err(|_| ErrorKind::InvalidInput)?;
        // By the call that writes a guest's data, too: the thread needs no other for this.
        // SAFETY: the call reads `iov_len` bytes of `ZEROES`, which has as many.
        let written = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const vector, 1, at, 0) };
        match u64::try_from(written) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written;
                len -= written;
            }
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

fn discard_blocks(file: &File, work: &Work) -> io::Result<()> {
    let range = [work.offset, work.len];
    // SAFETY: the call reads offset and length, two 64-bit numbers, from the address it gets.
    match unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, &raw const range) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if is_unsupported(&error) => Ok(()),
            error => Err(error),
        },
    }
}
