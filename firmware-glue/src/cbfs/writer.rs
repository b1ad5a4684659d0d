//! Building a CBFS region from files.

use thiserror::Error;

use super::attribute::{PREFIX, TAG_BLAKE3, TAG_HASH, VBOOT_SHA256};
use super::{ALIGNMENT, HEADER_SIZE, Kind, MAGIC, MAX_METADATA};
use crate::bytes::align_up;
use crate::hash::{blake3, sha256};

/// Bytes of erased flash.
const ERASED: u8 = 0xff;
/// Names and attributes are padded to this many bytes.
const NAME_ALIGNMENT: usize = 4;

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

/// A file to write.
#[derive(Clone, Debug)]
pub struct NewFile {
    name: String,
    kind: Kind,
    data: Vec<u8>,
    hashed: bool,
}

impl NewFile {
    /// A file of `kind` that carries SHA-256 and BLAKE3 of its data.
    pub fn new(name: impl Into<String>, kind: Kind, data: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            kind,
            data,
            hashed: true,
        }
    }

    /// The boot block. It carries no hash of its own: it contains the hash of all metadata, its own included.
    pub fn bootblock(data: Vec<u8>) -> Self {
        Self {
            name: crate::layout::BOOTBLOCK.to_owned(),
            kind: Kind::BOOTBLOCK,
            data,
            hashed: false,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of data.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether it has no data.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    fn attributes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.hashed {
            let mut attribute = |tag: u32, value: &[&[u8]]| {
                let value = value.concat();
                out.extend_from_slice(&tag.to_be_bytes());
                out.extend_from_slice(&be(PREFIX + value.len()));
                out.extend_from_slice(&value);
            };
            let sha256 = sha256(&self.data);
            attribute(TAG_HASH, &[&VBOOT_SHA256.to_be_bytes(), &sha256.0]);
            attribute(TAG_BLAKE3, &[&blake3(&self.data).0]);
        }
        out
    }

    /// Bytes of metadata, before any padding for a fixed place.
    fn metadata_size(&self) -> usize {
        let attributes = if self.hashed {
            2 * PREFIX + 4 + 32 + 32
        } else {
            0
        };
        HEADER_SIZE + padded_name_size(&self.name) + attributes
    }

    /// The metadata, padded with zeros to `size`.
    fn metadata(&self, size: usize) -> Vec<u8> {
        let attributes = self.attributes();
        let attributes_at = HEADER_SIZE + padded_name_size(&self.name);
        let mut out = header(
            self.data.len(),
            self.kind,
            if attributes.is_empty() {
                0
            } else {
                attributes_at
            },
            size,
        );
        out.extend_from_slice(self.name.as_bytes());
        out.resize(attributes_at, 0);
        out.extend_from_slice(&attributes);
        out.resize(size, 0);
        out
    }

    fn check(&self) -> Result<(), WriteError> {
        let max = MAX_METADATA - (self.metadata_size() - padded_name_size(&self.name)) - 1;
        if self.name.is_empty() || self.name.len() > max || self.name.contains('\0') {
            return Err(WriteError::BadName {
                name: self.name.clone(),
                max,
            });
        }
        Ok(())
    }
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
        if self.files.iter().any(|other| other.name == file.name) {
            return Err(WriteError::Duplicate { name: file.name });
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
        let files: usize = self.files.iter().map(used).sum();
        files + self.bootblock.as_ref().map_or(0, used)
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
            out.extend_from_slice(&file.data);
            out.resize(align_up(out.len(), ALIGNMENT).ok_or_else(full)?, ERASED);
        }
        let Some(bootblock) = &self.bootblock else {
            fill(&mut out, size);
            return Ok(out);
        };
        let data_at = size - bootblock.data.len();
        let header_at = data_at
            .checked_sub(bootblock.metadata_size())
            .map(|at| at & !(ALIGNMENT - 1))
            .filter(|at| *at >= out.len())
            .ok_or_else(full)?;
        fill(&mut out, header_at);
        out.extend_from_slice(&bootblock.metadata(data_at - header_at));
        out.extend_from_slice(&bootblock.data);
        Ok(out)
    }
}

/// Bytes that a file takes at a boundary, up to the next.
fn used(file: &NewFile) -> usize {
    (file.metadata_size() + file.data.len()).next_multiple_of(ALIGNMENT)
}

/// Makes everything from the end of `out` (a boundary) to `end` a file of free space, so that tools that go from file to
/// file find no hole.
fn fill(out: &mut Vec<u8>, end: usize) {
    let metadata_size = HEADER_SIZE + NAME_ALIGNMENT;
    if let Some(len) = end
        .checked_sub(out.len())
        .and_then(|space| space.checked_sub(metadata_size))
    {
        out.extend_from_slice(&header(len, Kind::EMPTY, 0, metadata_size));
        out.extend_from_slice(&[0; NAME_ALIGNMENT]);
    }
    out.resize(end, ERASED);
}

fn header(len: usize, kind: Kind, attributes: usize, data: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(MAX_METADATA);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&be(len));
    out.extend_from_slice(&kind.0.to_be_bytes());
    out.extend_from_slice(&be(attributes));
    out.extend_from_slice(&be(data));
    out
}

fn padded_name_size(name: &str) -> usize {
    (name.len() + 1).next_multiple_of(NAME_ALIGNMENT)
}

/// Sizes in CBFS have 32 bits; a larger file is cut short here and refused by [`Writer::build`], as no region is larger.
fn be(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes()
}
