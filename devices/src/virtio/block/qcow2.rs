//! A disk image in QEMU's qcow2 format, by way of the `imago` library.
//!
//! The header of an image is whatever its last writer left there, and may name files of the host's. So nothing is
//! opened by an image's order: an external data file is refused, and a backing file comes from the caller, who is told
//! the name and decides. Formats are as the header says, never probed.

mod extensions;
mod refcounts;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::storage::StorageOpenOptions;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};
use thiserror::Error;
use vm_memory::{Address, Bytes, GuestAddress};

pub use self::refcounts::RefcountError;
use super::SECTOR_SIZE;
use super::backend::{Action, Backend, Job, Start};
use super::engine::Engine;
use super::raw_file::RawFileError;
use crate::file_lock;
use crate::memory::GuestMemory;

/// Most images on top of each other: each read may go through all of them.
const MAX_CHAIN: usize = 16;
/// Most bytes copied at a time between image and guest. Data goes through memory of our own: the library takes
/// ordinary buffers, which a guest must not change meanwhile.
const CHUNK: usize = 256 << 10;
/// Where a header has the logarithm of its cluster size.
const CLUSTER_BITS: u64 = 20;

/// Why a file cannot be a disk.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum Qcow2Error {
    #[error(transparent)]
    File(#[from] RawFileError),
    #[error("Disk image is not a qcow2 image that can be used")]
    Image(#[source] io::Error),
    #[error(
        "qcow2 image holds a disk of {len} bytes; a disk is one or more whole sectors of 512 bytes"
    )]
    NotWholeSectors { len: u64 },
    #[error("qcow2 image keeps its data in another file: convert it to one that does not")]
    ExternalData,
    #[error(
        "qcow2 image has the backing file \"{name}\", which the configuration does not permit: name it in backing_files"
    )]
    BackingNotPermitted { name: String },
    #[error("Cannot open the backing file \"{name}\"")]
    BackingOpen {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "qcow2 image does not say that its backing file \"{name}\" is \"raw\" or \"qcow2\", but {format}: set it by qemu-img rebase -u -F"
    )]
    BackingFormat { name: String, format: String },
    #[error(
        "qcow2 image is damaged: repair it by qemu-img check -r all, or copy it by qemu-img convert"
    )]
    Damaged(#[from] RefcountError),
    #[error(
        "qcow2 image has a table of feature names of {len} bytes, which is no multiple of 48: copy it by qemu-img convert"
    )]
    FeatureNames { len: u32 },
    #[error("More than {MAX_CHAIN} images are stacked on each other")]
    ChainTooLong,
}

/// Says what a backing file's name in an image stands for: a file opened for reading, or an error.
///
/// Names in one chain of images come from top to bottom; a relative one is relative to the image it is in.
pub type OpenBacking<'a> = dyn FnMut(&str) -> Result<File, Qcow2Error> + 'a;

type Access = FormatAccess<ImageFile>;

/// A qcow2 image with its backing images. Locked like a [`RawFile`](super::RawFile), all of them.
pub struct Qcow2File {
    image: Access,
    read_only: bool,
    cluster: u32,
    chunk: Vec<u8>,
}

impl Qcow2File {
    /// Makes a disk of `file`, opened for reading, and for writing unless `read_only`. Backing files come from
    /// `open_backing`.
    pub fn new(
        file: File,
        read_only: bool,
        open_backing: &mut OpenBacking<'_>,
    ) -> Result<Self, Qcow2Error> {
        let mut bits = [0; 4];
        let header = file.read_exact_at(&mut bits, CLUSTER_BITS);
        let image = open(file, read_only, open_backing, MAX_CHAIN)?;
        header.map_err(Qcow2Error::Image)?;
        let len = image.size();
        if len == 0 || len % SECTOR_SIZE != 0 {
            return Err(Qcow2Error::NotWholeSectors { len });
        }
        Ok(Self {
            image,
            read_only,
            // The library has checked it: at most 2 MiB.
            cluster: 1_u32
                .checked_shl(u32::from_be_bytes(bits))
                .unwrap_or(1 << 16),
            chunk: Vec::new(),
        })
    }

    fn perform(&mut self, memory: &GuestMemory, job: &Job<'_>) -> io::Result<()> {
        match job.action {
            Action::Read => self.copy(job, |image, chunk, at, ranges| {
                image.read(&mut *chunk, at)?;
                let mut done = 0;
                for (address, len) in ranges {
                    let piece = &chunk[done..done + len];
                    memory
                        .write_slice(piece, address)
                        .map_err(io::Error::other)?;
                    done += len;
                }
                Ok(())
            }),
            Action::Write { durable } => {
                self.copy(job, |image, chunk, at, ranges| {
                    let mut done = 0;
                    for (address, len) in ranges {
                        let piece = &mut chunk[done..done + len];
                        memory
                            .read_slice(piece, address)
                            .map_err(io::Error::other)?;
                        done += len;
                    }
                    image.write(&*chunk, at)
                })?;
                if durable { self.settle() } else { Ok(()) }
            }
            Action::Flush => self.settle(),
            Action::Discard => match self.image.discard_to_any(job.offset, job.len) {
                // A wish, which images of version 2 cannot fulfil.
                Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
                result => result,
            },
            Action::WriteZeroes { unmap } => {
                let result = if unmap {
                    self.image.discard_to_zero(job.offset, job.len)
                } else {
                    self.image.write_zeroes(job.offset, job.len)
                };
                match result {
                    Err(error) if error.kind() == ErrorKind::Unsupported => {
                        self.fill_with_zeroes(job)
                    }
                    result => result,
                }
            }
        }
    }

    /// Goes through `job` in chunks, each with its place on the disk and the pieces of guest memory it stands for.
    fn copy(
        &mut self,
        job: &Job<'_>,
        mut chunk: impl FnMut(&mut Access, &mut [u8], u64, Pieces) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut rest = job.buffers.ranges().to_vec();
        rest.reverse();
        let mut offset = job.offset;
        while !rest.is_empty() {
            let mut pieces = Pieces::new();
            let mut len = 0;
            while let Some((address, left)) = rest.pop() {
                let taken = (left as usize).min(CHUNK - len);
                pieces.push((address, taken));
                len += taken;
                let taken = u32::try_from(taken).unwrap_or(u32::MAX);
                if taken < left {
                    rest.push((address.unchecked_add(taken.into()), left - taken));
                    break;
                }
            }
            self.chunk.resize(len, 0);
            chunk(&mut self.image, &mut self.chunk, offset, pieces)?;
            offset += len as u64;
        }
        Ok(())
    }

    fn fill_with_zeroes(&mut self, job: &Job<'_>) -> io::Result<()> {
        self.chunk.clear();
        self.chunk.resize(CHUNK, 0);
        let (mut offset, mut left) = (job.offset, job.len);
        while left > 0 {
            let now = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            self.image.write(&self.chunk[..now], offset)?;
            offset += now as u64;
            left -= now as u64;
        }
        Ok(())
    }
}

/// Pieces of guest memory.
type Pieces = Vec<(GuestAddress, usize)>;

/// Opens an image and what is below it, at most `left` images in all.
fn open(
    file: File,
    read_only: bool,
    open_backing: &mut OpenBacking<'_>,
    left: usize,
) -> Result<Access, Qcow2Error> {
    let left = left.checked_sub(1).ok_or(Qcow2Error::ChainTooLong)?;
    file_lock::lock(&file, read_only).map_err(RawFileError::from)?;
    extensions::check(&file)?;
    let options = StorageOpenOptions::new().write(!read_only);
    let again = file.try_clone().map_err(Qcow2Error::Image)?;
    let storage = ImageFile::from_open_file(file, options).map_err(Qcow2Error::Image)?;
    let mut image = Qcow2::<ImageFile>::builder(storage)
        .write(!read_only)
        .data_file(None)
        .backing(None)
        .open(DenyImplicitOpenGate::default())
        .map_err(Qcow2Error::Image)?;
    if !read_only {
        refcounts::check(&again)?;
    }
    if image.requires_external_data_file() {
        return Err(Qcow2Error::ExternalData);
    }
    if let Some(name) = image.implicit_backing_file().cloned() {
        let backing = match image.implicit_backing_format().map(String::as_str) {
            Some("qcow2") => open(open_backing(&name)?, true, open_backing, left)?,
            Some("raw") => open_raw(open_backing(&name)?)?,
            format => {
                let format =
                    format.map_or_else(|| "nothing".into(), |format| format!("\"{format}\""));
                return Err(Qcow2Error::BackingFormat { name, format });
            }
        };
        image.set_backing(Some(backing));
    }
    Ok(FormatAccess::new(image))
}

fn open_raw(file: File) -> Result<Access, Qcow2Error> {
    file_lock::lock(&file, true).map_err(RawFileError::from)?;
    let storage =
        ImageFile::from_open_file(file, StorageOpenOptions::new()).map_err(Qcow2Error::Image)?;
    let raw = Raw::builder(storage)
        .open(DenyImplicitOpenGate::default())
        .map_err(Qcow2Error::Image)?;
    Ok(FormatAccess::new(raw))
}

impl Backend for Qcow2File {
    fn len(&self) -> u64 {
        self.image.size()
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn discard_granularity(&self) -> u32 {
        self.cluster
    }

    fn start(&mut self, engine: &mut Engine, _token: u16, job: &Job<'_>) -> Start {
        Start::Done(match engine.memory().cloned() {
            Some(memory) => self.perform(&memory, job),
            None => Err(ErrorKind::NotConnected.into()),
        })
    }

    /// Writes the tables back, then makes everything durable.
    fn settle(&mut self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.image.flush()?;
        self.image.sync()
    }
}

#[cfg(test)]
mod tests;
