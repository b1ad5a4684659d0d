//! CBFS, coreboot's file system in flash: big-endian headers, files at 64-byte boundaries.
//!
//! A file is a header of 24 bytes (`LARCHIVE`, length, type, offset of the attributes, offset of the data), its name ended
//! by NUL, attributes, then the data. Header, name and attributes ("metadata") are at most 256 bytes. Free space is a file
//! too. Format: coreboot `cbfs_serialized.h`; how a reader must walk: `cbfs_private.c`.

use core::fmt;
use core::ops::Range;

use thiserror::Error;

use crate::bytes::{align_up, be32};
use crate::hash::{self, Digest};
use crate::name::Name;

mod attribute;
#[cfg(feature = "std")]
mod editor;
mod kind;
mod master;
#[cfg(feature = "std")]
mod new_file;
#[cfg(feature = "std")]
mod writer;

pub use attribute::{
    Attribute, Attributes, Compression, TAG_ALIGNMENT, TAG_BLAKE3, TAG_COMPRESSION, TAG_HASH,
    TAG_POSITION,
};
#[cfg(feature = "std")]
pub use editor::{EditError, Editor};
pub use kind::Kind;
pub use master::MasterHeader;
#[cfg(feature = "std")]
pub use new_file::{Hashes, NewFile, Place};
#[cfg(feature = "std")]
pub use writer::{WriteError, Writer};

/// First bytes of every file.
pub const MAGIC: [u8; 8] = *b"LARCHIVE";
/// Files begin at multiples of this many bytes from the start of the region.
pub const ALIGNMENT: usize = 64;
/// Largest metadata (header, name and attributes) in bytes.
pub const MAX_METADATA: usize = 256;

const HEADER_SIZE: usize = 24;

/// Why a file in CBFS cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CbfsError {
    /// The header's offset to the data is impossible.
    #[error(
        "The CBFS file at offset {at:#x} has its data at {offset:#x} from its header, which must be 25 to 256"
    )]
    DataOffset {
        /// Offset of the header in the region.
        at: usize,
        /// Offset of the data from the header.
        offset: u32,
    },
    /// The data reach past the end of the region.
    #[error(
        "The CBFS file at offset {at:#x} is {len:#x} bytes long and reaches past the end of its region ({region:#x} bytes)"
    )]
    TooLong {
        /// Offset of the header in the region.
        at: usize,
        /// Bytes of data according to the header.
        len: u32,
        /// Size of the region.
        region: usize,
    },
    /// The offset of the attributes is impossible.
    #[error(
        "The CBFS file at offset {at:#x} has its attributes at {offset:#x} from its header, outside its metadata"
    )]
    AttributesOffset {
        /// Offset of the header in the region.
        at: usize,
        /// Offset of the attributes from the header.
        offset: u32,
    },
    /// The name does not end, or is not UTF-8.
    #[error("The CBFS file at offset {at:#x} has a name without an end, or one that is not UTF-8")]
    BadName {
        /// Offset of the header in the region.
        at: usize,
    },
    /// An attribute is cut off or has an impossible length.
    #[error("CBFS file {name}: the attribute with tag {tag:#010x} is malformed")]
    BadAttribute {
        /// Name of the file.
        name: Name,
        /// Tag of the attribute; 0 if even that is cut off.
        tag: u32,
    },
    /// No file of that name.
    #[error("No file {name} in CBFS")]
    NotFound {
        /// The name looked for.
        name: Name,
    },
    /// The contents do not match their hash.
    #[error(
        "CBFS file {name}: its contents do not match its {algorithm} hash: flash is damaged or was changed, write it again"
    )]
    WrongHash {
        /// Name of the file.
        name: Name,
        /// The hash that does not match.
        algorithm: Algorithm,
    },
    /// The file carries no hash that is known here.
    #[error(
        "CBFS file {name} carries no BLAKE3, SHA-256 or SHA-512 hash, so its contents cannot be trusted"
    )]
    NoHash {
        /// Name of the file.
        name: Name,
    },
}

/// Which hash of a file was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// BLAKE3, in the attribute [`TAG_BLAKE3`].
    Blake3,
    /// SHA-256, in coreboot's hash attribute.
    Sha256,
    /// SHA-512, in coreboot's hash attribute.
    Sha512,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blake3 => "BLAKE3",
            Self::Sha256 => "SHA-256",
            Self::Sha512 => "SHA-512",
        })
    }
}

/// A CBFS in a region of flash.
#[derive(Clone, Copy, Debug)]
pub struct Cbfs<'a> {
    region: &'a [u8],
}

impl<'a> Cbfs<'a> {
    /// The CBFS in `region`, which is an area of the flash map. Nothing is read yet: an area without any file is an empty
    /// CBFS.
    pub fn new(region: &'a [u8]) -> Self {
        Self { region }
    }

    /// All files that are not free space, in the order of flash. A file with a bad header is an error, after which the walk
    /// goes on at the next boundary.
    pub fn files(&self) -> impl Iterator<Item = Result<File<'a>, CbfsError>> + use<'a> {
        self.walk()
            .filter(|file| !file.is_ok_and(|file| file.kind.is_free()))
    }

    /// All files, free space included.
    pub fn walk(&self) -> Walk<'a> {
        Walk {
            region: self.region,
            at: 0,
        }
    }

    /// The first file called `name`. A bad header of another file does not matter.
    pub fn find(&self, name: &str) -> Result<File<'a>, CbfsError> {
        self.files()
            .filter_map(Result::ok)
            .find(|file| file.name == name)
            .ok_or_else(|| CbfsError::NotFound {
                name: Name::new(name),
            })
    }

    /// SHA-256 of the metadata of all files except free space: what the anchor in the boot block protects. An error in any
    /// header is an error here, because it makes the metadata ambiguous.
    pub fn metadata_hash(&self) -> Result<Digest, CbfsError> {
        hash::sha256_of_parts(self.files().map(|file| file.map(|file| file.metadata)))
    }
}

/// Iterator of [`Cbfs::walk`].
#[derive(Clone, Debug)]
pub struct Walk<'a> {
    region: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<File<'a>, CbfsError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Each turn moves `at` forward by at least one boundary, and the region has an end.
        loop {
            let at = align_up(self.at, ALIGNMENT)?;
            let bytes = self.region.get(at..)?;
            let header = bytes.get(..HEADER_SIZE)?;
            self.at = at + ALIGNMENT;
            if header.starts_with(&MAGIC) {
                let file = File::parse(self.region, at);
                if let Ok(file) = &file {
                    self.at = file.data_at + file.data.len();
                }
                return Some(file);
            }
        }
    }
}

/// A file whose header was checked; its data only once [`File::verify`] says so.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    name: &'a str,
    kind: Kind,
    metadata: &'a [u8],
    attributes: &'a [u8],
    data: &'a [u8],
    data_at: usize,
}

impl<'a> File<'a> {
    fn parse(region: &'a [u8], at: usize) -> Result<Self, CbfsError> {
        let bytes = region.get(at..).unwrap_or_default();
        let field = |offset| be32(bytes, offset).unwrap_or_default();
        let (len, kind, attributes, offset) = (field(8), field(12), field(16), field(20));
        let data_from = offset as usize;
        if !(HEADER_SIZE + 1..=MAX_METADATA).contains(&data_from) {
            return Err(CbfsError::DataOffset { at, offset });
        }
        let too_long = CbfsError::TooLong {
            at,
            len,
            region: region.len(),
        };
        let metadata = bytes.get(..data_from).ok_or(too_long)?;
        let data = bytes[data_from..].get(..len as usize).ok_or(too_long)?;
        let attributes_from = match attributes as usize {
            0 => data_from,
            from if (HEADER_SIZE + 1..=data_from).contains(&from) => from,
            _ => {
                return Err(CbfsError::AttributesOffset {
                    at,
                    offset: attributes,
                });
            }
        };
        let name = &metadata[HEADER_SIZE..attributes_from];
        let name = name
            .iter()
            .position(|byte| *byte == 0)
            .and_then(|end| core::str::from_utf8(&name[..end]).ok())
            .ok_or(CbfsError::BadName { at })?;
        Ok(Self {
            name,
            kind: Kind(kind),
            metadata,
            attributes: &metadata[attributes_from..],
            data,
            data_at: at + data_from,
        })
    }

    /// The name, e.g. `daruma/kernel`.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// What the file is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The bytes as stored: compressed if [`File::compression`] says so. Not checked against the hash.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Where the data lie in the region.
    pub fn data_range(&self) -> Range<usize> {
        self.data_at..self.data_at + self.data.len()
    }

    /// Where the header begins in the region; the metadata follow each other from there to the data.
    pub fn start(&self) -> usize {
        self.data_at - self.metadata.len()
    }

    /// Header, name and attributes as stored.
    pub fn metadata(&self) -> &'a [u8] {
        self.metadata
    }

    /// All attributes; a malformed one ends the list with an error.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.name, self.attributes)
    }

    /// How the data are compressed.
    pub fn compression(&self) -> Result<Compression, CbfsError> {
        for attribute in self.attributes() {
            if let Attribute::Compression(compression) = attribute? {
                return Ok(compression);
            }
        }
        Ok(Compression::None)
    }

    /// Checks the data against the cheapest strong hash the file carries: BLAKE3, else SHA-256, else SHA-512 (with the
    /// feature `std`). A file without any of them is an error.
    pub fn verify(&self) -> Result<Algorithm, CbfsError> {
        let mut best: Option<Attribute<'a>> = None;
        for attribute in self.attributes() {
            let attribute = attribute?;
            if matches!(attribute, Attribute::Blake3(_))
                || (best.is_none()
                    && matches!(attribute, Attribute::Sha256(_) | Attribute::Sha512(_)))
            {
                best = Some(attribute);
            }
        }
        self.check(best)
    }

    /// Checks the data against every hash the file carries, and returns how many there were: for tools that read an image
    /// at leisure. A file without any is an error.
    pub fn verify_all(&self) -> Result<usize, CbfsError> {
        let mut checked = 0;
        for attribute in self.attributes() {
            let attribute = attribute?;
            if attribute.is_hash() {
                self.check(Some(attribute))?;
                checked += 1;
            }
        }
        if checked == 0 {
            self.check(None)?;
        }
        Ok(checked)
    }

    fn check(&self, attribute: Option<Attribute<'_>>) -> Result<Algorithm, CbfsError> {
        let (algorithm, matches) = match attribute {
            Some(Attribute::Blake3(digest)) => {
                (Algorithm::Blake3, hash::blake3(self.data) == digest)
            }
            Some(Attribute::Sha256(digest)) => {
                (Algorithm::Sha256, hash::sha256(self.data) == digest)
            }
            // 20 KiB of code that the ROM stage can do without: the writer here, and cbfstool by default, use SHA-256.
            #[cfg(feature = "std")]
            Some(Attribute::Sha512(digest)) => {
                (Algorithm::Sha512, hash::sha512(self.data)[..] == *digest)
            }
            _ => {
                return Err(CbfsError::NoHash {
                    name: Name::new(self.name),
                });
            }
        };
        if matches {
            Ok(algorithm)
        } else {
            Err(CbfsError::WrongHash {
                name: Name::new(self.name),
                algorithm,
            })
        }
    }
}

#[cfg(test)]
mod tests;
