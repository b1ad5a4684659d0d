//! A raw disk image in a file, or on a block device: byte `n` of the disk is byte `n` of the file.
//!
//! Raw is never guessed. A guest can write any image format's header to its raw disk, and a host that
//! probes would then follow that header to files of its own.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use thiserror::Error;

use super::SECTOR_SIZE;
use super::backend::{Backend, Job, Start};
use super::engine::Engine;
use crate::file_lock::{self, LockError};

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
    /// It cannot be had for this use.
    #[error("Cannot have the disk image for this guest alone")]
    Lock(#[from] LockError),
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
        file_lock::lock(&file, read_only)?;
        let len = length(&mut file)?;
        Ok(Self {
            file,
            len,
            read_only,
        })
    }
}

fn length(file: &mut File) -> Result<u64, RawFileError> {
    // Unlike its metadata, its end is also where a block device ends.
    let len = file.seek(SeekFrom::End(0)).map_err(RawFileError::Length)?;
    if len == 0 || len % SECTOR_SIZE != 0 {
        return Err(RawFileError::NotWholeSectors { len });
    }
    Ok(len)
}

impl Backend for RawFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn attach(&mut self, engine: &mut Engine) -> io::Result<()> {
        engine.attach_file(self.file.try_clone()?);
        Ok(())
    }

    fn start(&mut self, engine: &mut Engine, token: u16, job: &Job<'_>) -> Start {
        engine.start(token, job)
    }

    fn refresh(&mut self) -> io::Result<()> {
        self.len = length(&mut self.file).map_err(io::Error::other)?;
        Ok(())
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
        assert!(matches!(
            open(&image, false),
            Err(RawFileError::Lock(LockError::InUse))
        ));
        assert!(matches!(
            open(&image, true),
            Err(RawFileError::Lock(LockError::InUse))
        ));
        drop(writer);
        let readers = [open(&image, true).unwrap(), open(&image, true).unwrap()];
        assert!(matches!(
            open(&image, false),
            Err(RawFileError::Lock(LockError::InUse))
        ));
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
}
