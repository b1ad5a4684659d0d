//! A raw disk image in a file, or on a block device: byte `n` of the disk is byte `n` of the file.
//!
//! Raw is never guessed. A guest can write any image format's header to its raw disk, and a host that
//! probes would then follow that header to files of its own.

#![expect(
    unsafe_code,
    reason = "vectored I/O straight between a file and guest memory"
)]

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use libc::{c_int, iovec, off_t, ssize_t};
use thiserror::Error;
use vm_memory::bitmap::Bitmap;

use super::SECTOR_SIZE;
use super::backend::Backend;
use crate::memory::GuestSlice;

/// The most slices one system call takes (`IOV_MAX`).
const MAX_VECTORS: usize = 1024;

/// Why a file cannot be a disk.
#[derive(Debug, Error)]
pub enum RawFileError {
    /// Its length cannot be found out.
    #[error("Cannot find out how long the disk image is")]
    Length(#[source] io::Error),
    /// It has no sectors, or part of one.
    #[error(
        "Disk image is {len} bytes long; a raw image is one or more whole sectors of 512 bytes"
    )]
    NotWholeSectors {
        /// Length of the file in bytes.
        len: u64,
    },
    /// Another guest has it.
    #[error(
        "Disk image is in use by another guest; only read-only disks can be shared, by guests that \
         all have them read-only"
    )]
    InUse,
    /// It cannot be locked.
    #[error("Cannot lock the disk image against use by another guest")]
    Lock(#[source] io::Error),
}

/// A raw disk image in a file. Locked as long as it lives: by one writer, or by any number of readers.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    len: u64,
    read_only: bool,
}

impl RawFile {
    /// Makes a disk of `file`, opened for reading, and for writing unless `read_only`.
    pub fn new(mut file: File, read_only: bool) -> Result<Self, RawFileError> {
        let locked = if read_only {
            file.try_lock_shared()
        } else {
            file.try_lock()
        };
        locked.map_err(|error| match error {
            TryLockError::WouldBlock => RawFileError::InUse,
            TryLockError::Error(error) => RawFileError::Lock(error),
        })?;
        // Unlike its metadata, its end is also where a block device ends.
        let len = file.seek(SeekFrom::End(0)).map_err(RawFileError::Length)?;
        if len == 0 || len % SECTOR_SIZE != 0 {
            return Err(RawFileError::NotWholeSectors { len });
        }
        Ok(Self {
            file,
            len,
            read_only,
        })
    }

    /// Moves all bytes of `buffers` at `offset` by `call`, which may move fewer at a time.
    fn transfer(
        &self,
        offset: u64,
        buffers: &[GuestSlice<'_>],
        call: impl Fn(c_int, &[iovec], off_t) -> ssize_t,
    ) -> io::Result<()> {
        let mut vectors: Vec<iovec> = buffers
            .iter()
            .map(|slice| iovec {
                // The guard only does something for memory of Xen's.
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            })
            .collect();
        let mut position = offset;
        let mut rest = vectors.as_mut_slice();
        while !rest.is_empty() {
            let now = rest.len().min(MAX_VECTORS);
            let at = off_t::try_from(position).map_err(|_| ErrorKind::InvalidInput)?;
            let moved = match usize::try_from(call(self.file.as_raw_fd(), &rest[..now], at)) {
                // The image was cut short under us.
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(moved) => moved,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == ErrorKind::Interrupted => continue,
                    error => return Err(error),
                },
            };
            position = position.saturating_add(moved as u64);
            rest = advance(rest, moved);
        }
        Ok(())
    }
}

/// Drops the first `moved` bytes of `vectors`.
fn advance(vectors: &mut [iovec], mut moved: usize) -> &mut [iovec] {
    let mut done = 0;
    for vector in vectors.iter_mut() {
        if moved < vector.iov_len {
            vector.iov_base = vector.iov_base.wrapping_byte_add(moved);
            vector.iov_len -= moved;
            break;
        }
        moved -= vector.iov_len;
        done += 1;
    }
    &mut vectors[done..]
}

/// Length of `vectors` as the system calls want it. Never more than [`MAX_VECTORS`].
fn count(vectors: &[iovec]) -> c_int {
    c_int::try_from(vectors.len()).unwrap_or(c_int::MAX)
}

impl Backend for RawFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, buffers: &[GuestSlice<'_>]) -> io::Result<()> {
        let result = self.transfer(offset, buffers, |file, vectors, at| {
            // SAFETY: `vectors` are parts of `buffers`, mapped guest memory that outlives the call, and
            // to which nothing in this process holds a reference: it is only accessed by volatile means.
            unsafe { libc::preadv(file, vectors.as_ptr(), count(vectors), at) }
        });
        for slice in buffers {
            // The kernel wrote behind the bitmap's back; after an error, perhaps some of it.
            slice.bitmap().mark_dirty(0, slice.len());
        }
        result
    }

    fn write_at(&mut self, offset: u64, buffers: &[GuestSlice<'_>]) -> io::Result<()> {
        self.transfer(offset, buffers, |file, vectors, at| {
            // SAFETY: `vectors` are parts of `buffers`, mapped guest memory that outlives the call.
            unsafe { libc::pwritev(file, vectors.as_ptr(), count(vectors), at) }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use tempfile::NamedTempFile;

    use super::*;

    fn image(len: usize) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&vec![0; len]).unwrap();
        file
    }

    fn open(image: &NamedTempFile, read_only: bool) -> Result<RawFile, RawFileError> {
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(image.path())
            .unwrap();
        RawFile::new(file, read_only)
    }

    #[test]
    fn image_must_be_whole_sectors() {
        for len in [0, 1, 511, 513, 1023] {
            let error = open(&image(len), true).unwrap_err();
            assert!(
                matches!(error, RawFileError::NotWholeSectors { len: l } if l == len as u64),
                "{error}"
            );
        }
        assert_eq!(open(&image(1536), true).unwrap().len(), 1536);
    }

    #[test]
    fn disk_has_one_writer_or_many_readers() {
        let image = image(512);
        let writer = open(&image, false).unwrap();
        assert!(matches!(open(&image, false), Err(RawFileError::InUse)));
        assert!(matches!(open(&image, true), Err(RawFileError::InUse)));
        drop(writer);
        let readers = [open(&image, true).unwrap(), open(&image, true).unwrap()];
        assert!(matches!(open(&image, false), Err(RawFileError::InUse)));
        drop(readers);
        open(&image, false).unwrap();
    }

    #[test]
    fn content_is_never_looked_at() {
        // What a hostile guest may leave behind: the header of a qcow2 image.
        let mut image = NamedTempFile::new().unwrap();
        let mut data = [0; 1024];
        data[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        image.write_all(&data).unwrap();
        assert_eq!(open(&image, true).unwrap().len(), 1024);
    }

    #[test]
    fn moved_bytes_are_dropped_from_the_front() {
        let mut bytes = [0_u8; 30];
        let base: *mut u8 = bytes.as_mut_ptr();
        let vector = |at: usize, len| iovec {
            iov_base: base.wrapping_add(at).cast(),
            iov_len: len,
        };
        for (moved, left, first) in [(0, 3, 10), (4, 3, 6), (10, 2, 5), (14, 2, 1), (30, 0, 0)] {
            let mut vectors = [vector(0, 10), vector(10, 5), vector(15, 15)];
            let rest = advance(&mut vectors, moved);
            assert_eq!(rest.len(), left);
            if let Some(next) = rest.first() {
                assert_eq!(next.iov_len, first);
                assert_eq!(next.iov_base.cast::<u8>(), base.wrapping_add(moved));
            }
        }
    }
}
