//! The metadata hash anchor: the one place in the boot block that all trust in CBFS hangs on.
//!
//! coreboot's format (`metadata_hash.h`): the magic, the number of vboot's hash algorithm (big-endian), the hash of the
//! metadata of all CBFS files, and the hash of the flash map. cbfstool finds it by the magic, checks it on `print -v` and
//! rewrites it when it changes the image.

use thiserror::Error;

use crate::bytes::{array, be32};
use crate::cbfs::{Cbfs, CbfsError};
use crate::fmap::Fmap;
use crate::hash::{DIGEST_SIZE, Digest, sha256};

/// First bytes of an anchor. The boot block must contain them once only.
pub const MAGIC: [u8; 8] = *b"\xadMdtHsh\x15";
/// Bytes of an anchor with SHA-256.
pub const SIZE: usize = MAGIC.len() + 4 + 2 * DIGEST_SIZE;

const VBOOT_SHA256: u32 = 2;

/// Why an anchor does not vouch for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AnchorError {
    /// No anchor in the boot block.
    #[error(
        "The boot block contains no metadata hash anchor, so nothing vouches for the files in flash"
    )]
    Missing,
    /// More than one place in the boot block looks like an anchor.
    #[error("The boot block contains more than one metadata hash anchor")]
    Ambiguous,
    /// Not SHA-256, or cut off.
    #[error(
        "The metadata hash anchor is cut off or uses hash algorithm {algorithm}; only 2 (SHA-256) is known"
    )]
    Algorithm {
        /// vboot's number of the algorithm.
        algorithm: u32,
    },
    /// A file header could not be read.
    #[error("The metadata of CBFS cannot be hashed")]
    Cbfs(#[source] CbfsError),
    /// The metadata changed.
    #[error(
        "The CBFS file headers do not match the hash in the boot block: flash is damaged or was changed, write it again"
    )]
    WrongMetadata,
    /// The flash map changed.
    #[error(
        "The flash map does not match the hash in the boot block: flash is damaged or was changed, write it again"
    )]
    WrongFmap,
}

/// An anchor with SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// SHA-256 of all CBFS metadata.
    pub metadata: Digest,
    /// SHA-256 of the flash map.
    pub fmap: Digest,
}

impl Anchor {
    /// The anchor that vouches for this flash map and CBFS.
    pub fn of(fmap: &Fmap<'_>, cbfs: &Cbfs<'_>) -> Result<Self, AnchorError> {
        Ok(Self {
            metadata: cbfs.metadata_hash().map_err(AnchorError::Cbfs)?,
            fmap: sha256(fmap.raw()),
        })
    }

    /// An anchor still to be filled in, as the boot block is built with.
    pub const fn blank() -> [u8; SIZE] {
        let mut out = [0; SIZE];
        let mut at = 0;
        while at < MAGIC.len() {
            out[at] = MAGIC[at];
            at += 1;
        }
        out[MAGIC.len() + 3] = 2;
        out
    }

    /// The anchor as it lies in the boot block.
    pub fn to_bytes(&self) -> [u8; SIZE] {
        let mut out = Self::blank();
        let (metadata, fmap) = out[MAGIC.len() + 4..].split_at_mut(DIGEST_SIZE);
        metadata.copy_from_slice(&self.metadata.0);
        fmap.copy_from_slice(&self.fmap.0);
        out
    }

    /// Reads an anchor that starts with the magic.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnchorError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(AnchorError::Missing);
        }
        Self::parse_fields(&bytes[MAGIC.len()..])
    }

    /// Reads what follows the magic. The ROM stage knows where its own anchor is, and must not contain the magic a second
    /// time in a comparison.
    pub fn parse_fields(bytes: &[u8]) -> Result<Self, AnchorError> {
        let algorithm = be32(bytes, 0).unwrap_or_default();
        if algorithm != VBOOT_SHA256 {
            return Err(AnchorError::Algorithm { algorithm });
        }
        let digest = |at| {
            array(bytes, at)
                .map(Digest)
                .ok_or(AnchorError::Algorithm { algorithm })
        };
        Ok(Self {
            metadata: digest(4)?,
            fmap: digest(4 + DIGEST_SIZE)?,
        })
    }

    /// Where the only anchor of a boot block is.
    pub fn find(bootblock: &[u8]) -> Result<usize, AnchorError> {
        let mut places = bootblock
            .windows(MAGIC.len())
            .enumerate()
            .filter(|(_, window)| *window == MAGIC)
            .map(|(at, _)| at);
        let first = places.next().ok_or(AnchorError::Missing)?;
        match places.next() {
            Some(_) => Err(AnchorError::Ambiguous),
            None => Ok(first),
        }
    }

    /// Checks that the anchor vouches for this flash map and CBFS.
    pub fn verify(&self, fmap: &Fmap<'_>, cbfs: &Cbfs<'_>) -> Result<(), AnchorError> {
        let actual = Self::of(fmap, cbfs)?;
        if actual.fmap != self.fmap {
            return Err(AnchorError::WrongFmap);
        }
        if actual.metadata != self.metadata {
            return Err(AnchorError::WrongMetadata);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_is_found_once_or_refused() {
        let anchor = Anchor {
            metadata: Digest([1; 32]),
            fmap: Digest([2; 32]),
        };
        let mut bootblock = vec![0; 100];
        assert_eq!(Anchor::find(&bootblock), Err(AnchorError::Missing));
        bootblock.extend_from_slice(&anchor.to_bytes());
        assert_eq!(Anchor::find(&bootblock), Ok(100));
        assert_eq!(Anchor::parse(&bootblock[100..]), Ok(anchor));
        bootblock.extend_from_slice(&MAGIC);
        assert_eq!(Anchor::find(&bootblock), Err(AnchorError::Ambiguous));
    }

    #[test]
    fn another_algorithm_or_a_cut_anchor_is_refused() {
        let mut bytes = Anchor::blank();
        assert_eq!(
            Anchor::parse(&bytes[..SIZE - 1]),
            Err(AnchorError::Algorithm { algorithm: 2 })
        );
        bytes[MAGIC.len() + 3] = 3;
        assert_eq!(
            Anchor::parse(&bytes),
            Err(AnchorError::Algorithm { algorithm: 3 })
        );
    }
}
