//! Building a CBFS region from files.

use thiserror::Error;

use super::new_file::{NAME_ALIGNMENT, NewFile, header};
use super::{ALIGNMENT, HEADER_SIZE, Kind};
use crate::bytes::align_up;

/// Bytes of erased flash.
pub(super) const ERASED: u8 = 0xff;
/// Metadata of free space, in bytes.
pub(super) const FREE_METADATA: usize = HEADER_SIZE + NAME_ALIGNMENT;

/// Why a CBFS region cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WriteError {
    /// The name is empty, too long or contains NUL.
    #[error("{name:?} cannot be the name of a CBFS file: it must have 1 to {max} bytes and no NUL")]
    BadName {
        /// The name.
        name: String,
        /// Longest name.
        max: usize,
    },
    /// Two files have one name, so only the first would ever be found.
    #[error("Two CBFS files are called {name}")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// The region is too small.
    #[error("The files need {needed} bytes of CBFS, the region has {available}")]
    Full {
        /// Bytes needed.
        needed: usize,
        /// Size of the region.
        available: usize,
    },
}

/// Collects files and lays them out: in order from the start of the region, the boot block at its very end.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    files: Vec<NewFile>,
    bootblock: Option<NewFile>,
}

impl Writer {
    /// A writer without files.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file after the others.
    pub fn add(&mut self, file: NewFile) -> Result<(), WriteError> {
        file.check()?;
        if self.files.iter().any(|other| other.name() == file.name()) {
            return Err(WriteError::Duplicate {
                name: file.name().to_owned(),
            });
        }
        self.files.push(file);
        Ok(())
    }

    /// Sets the file that ends at the last byte of the region.
    pub fn set_bootblock(&mut self, file: NewFile) -> Result<(), WriteError> {
        file.check()?;
        self.bootblock = Some(file);
        Ok(())
    }

    /// All files in the order of flash.
    pub fn files(&self) -> impl Iterator<Item = &NewFile> {
        self.files.iter().chain(&self.bootblock)
    }

    /// Smallest region, in bytes, that takes all files.
    pub fn needed(&self) -> usize {
        let files: usize = self.files.iter().map(NewFile::room).sum();
        files + self.bootblock.as_ref().map_or(0, NewFile::room)
    }

    /// The bytes of a region of `size` bytes.
    pub fn build(&self, size: usize) -> Result<Vec<u8>, WriteError> {
        let full = || WriteError::Full {
            needed: self.needed(),
            available: size,
        };
        if self.needed() > size {
            return Err(full());
        }
        let mut out = Vec::with_capacity(size);
        for file in &self.files {
            out.extend_from_slice(&file.metadata(file.metadata_size()));
            out.extend_from_slice(file.data());
            out.resize(align_up(out.len(), ALIGNMENT).ok_or_else(full)?, ERASED);
        }
        let Some(bootblock) = &self.bootblock else {
            fill(&mut out, size);
            return Ok(out);
        };
        let data_at = size - bootblock.len();
        let header_at = data_at
            .checked_sub(bootblock.metadata_size())
            .map(|at| at & !(ALIGNMENT - 1))
            .filter(|at| *at >= out.len())
            .ok_or_else(full)?;
        fill(&mut out, header_at);
        out.extend_from_slice(&bootblock.metadata(data_at - header_at));
        out.extend_from_slice(bootblock.data());
        Ok(out)
    }
}

/// Makes everything from the end of `out` (a boundary) to `end` a file of free space, so that tools that go from file to
/// file find no hole.
fn fill(out: &mut Vec<u8>, end: usize) {
    out.extend_from_slice(&free_space(end.saturating_sub(out.len())));
}

/// `size` bytes of free space: a file of their own, or only erased if they are too few for one.
pub(super) fn free_space(size: usize) -> Vec<u8> {
    let mut out = match size.checked_sub(FREE_METADATA) {
        Some(len) => header(len, Kind::EMPTY, 0, FREE_METADATA),
        None => Vec::new(),
    };
    if !out.is_empty() {
        out.resize(FREE_METADATA, 0);
    }
    out.resize(size, ERASED);
    out
}
