//! Attributes of a CBFS file: a tag, a length that includes tag and length, and a value, all big-endian.

use core::fmt;

use super::CbfsError;
use crate::bytes::{array, be32};
use crate::hash::{DIGEST_SIZE, Digest};
use crate::name::Name;

/// Tag: compression algorithm and uncompressed size.
pub const TAG_COMPRESSION: u32 = 0x4243_5a4c;
/// Tag: a hash of the stored data by one of the algorithms of vboot.
pub const TAG_HASH: u32 = 0x6873_6148;
/// Tag: the offset in the region where the data must be.
pub const TAG_POSITION: u32 = 0x4243_5350;
/// Tag: what the offset of the data must be a multiple of.
pub const TAG_ALIGNMENT: u32 = 0x4243_4c41;
/// Tag of ours, "BLK3": the 32 bytes of BLAKE3 over the stored data. coreboot's tools pass over tags they do not know.
pub const TAG_BLAKE3: u32 = u32::from_be_bytes(*b"BLK3");

/// vboot's number for SHA-256.
pub(crate) const VBOOT_SHA256: u32 = 2;
/// vboot's number for SHA-512.
const VBOOT_SHA512: u32 = 3;

/// Bytes of tag and length.
pub(super) const PREFIX: usize = 8;

/// How the data of a file are compressed, with the size in bytes that they unpack to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not compressed.
    None,
    /// LZMA with an 13-byte "alone" header.
    Lzma(u32),
    /// LZ4 frames.
    Lz4(u32),
    /// Zstandard.
    Zstd(u32),
    /// An algorithm not known here.
    Unknown {
        /// coreboot's number of the algorithm.
        algorithm: u32,
        /// Uncompressed size.
        size: u32,
    },
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lzma(size) => write!(f, "LZMA, {size} bytes unpacked"),
            Self::Lz4(size) => write!(f, "LZ4, {size} bytes unpacked"),
            Self::Zstd(size) => write!(f, "zstd, {size} bytes unpacked"),
            Self::Unknown { algorithm, size } => {
                write!(f, "algorithm {algorithm}, {size} bytes unpacked")
            }
        }
    }
}

/// One attribute, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute<'a> {
    /// How the data are compressed.
    Compression(Compression),
    /// SHA-256 of the stored data.
    Sha256(Digest),
    /// SHA-512 of the stored data.
    Sha512(&'a [u8; 64]),
    /// BLAKE3 of the stored data.
    Blake3(Digest),
    /// Offset of the data in the region, in bytes.
    Position(u32),
    /// What the offset of the data must be a multiple of.
    Alignment(u32),
    /// Any other.
    Other {
        /// Its tag.
        tag: u32,
        /// Its value.
        value: &'a [u8],
    },
}

impl Attribute<'_> {
    /// Whether it is a hash that can be checked here.
    pub fn is_hash(&self) -> bool {
        matches!(self, Self::Sha256(_) | Self::Sha512(_) | Self::Blake3(_))
    }
}

/// Iterator over the attributes of a file.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    name: &'a str,
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub(super) fn new(name: &'a str, bytes: &'a [u8]) -> Self {
        Self { name, rest: bytes }
    }

    /// What has not been read yet.
    #[cfg(feature = "std")]
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn decode(&mut self) -> Option<Result<Attribute<'a>, u32>> {
        if self.rest.len() < PREFIX {
            return None;
        }
        let tag = be32(self.rest, 0)?;
        // Unused space: zeroed, or as erased flash.
        if tag == 0 || tag == u32::MAX {
            return None;
        }
        let len = be32(self.rest, 4)? as usize;
        let Some(value) = self.rest.get(PREFIX..len) else {
            return Some(Err(tag));
        };
        self.rest = &self.rest[len..];
        let decoded = match tag {
            TAG_COMPRESSION => compression(value).map(Attribute::Compression),
            TAG_HASH => hash(value),
            TAG_POSITION => be32(value, 0).map(Attribute::Position),
            TAG_ALIGNMENT => be32(value, 0).map(Attribute::Alignment),
            TAG_BLAKE3 => exact(value).map(|digest| Attribute::Blake3(Digest(digest))),
            _ => Some(Attribute::Other { tag, value }),
        };
        Some(decoded.ok_or(tag))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, CbfsError>;

    fn next(&mut self) -> Option<Self::Item> {
        let decoded = self.decode()?;
        if decoded.is_err() {
            self.rest = &[];
        }
        Some(decoded.map_err(|tag| CbfsError::BadAttribute {
            name: Name::new(self.name),
            tag,
        }))
    }
}

fn compression(value: &[u8]) -> Option<Compression> {
    let size = be32(value, 4)?;
    Some(match be32(value, 0)? {
        0 => Compression::None,
        1 => Compression::Lzma(size),
        2 => Compression::Lz4(size),
        3 => Compression::Zstd(size),
        algorithm => Compression::Unknown { algorithm, size },
    })
}

fn hash(value: &[u8]) -> Option<Attribute<'_>> {
    let digest = value.get(4..)?;
    match be32(value, 0)? {
        VBOOT_SHA256 => exact(digest).map(|digest| Attribute::Sha256(Digest(digest))),
        VBOOT_SHA512 => digest.try_into().ok().map(Attribute::Sha512),
        _ => Some(Attribute::Other {
            tag: TAG_HASH,
            value,
        }),
    }
}

fn exact(value: &[u8]) -> Option<[u8; DIGEST_SIZE]> {
    (value.len() == DIGEST_SIZE).then(|| array(value, 0))?
}
