//! What the library takes for granted about the header of an image: that the table of feature names consists of whole
//! entries. It would panic otherwise.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Qcow2Error;

/// Offsets in the header.
const VERSION: u64 = 4;
const HEADER_LENGTH: u64 = 100;
/// The largest cluster there is: all extensions are in the first one.
const MAX_CLUSTER: u64 = 2 << 20;
/// Type of the feature name table, and bytes of an entry of it.
const FEATURE_NAMES: u32 = 0x6803_f857;
const ENTRY: u32 = 48;

/// Checks the header extensions of the image in `file`. What else may be wrong with them the library says.
pub(super) fn check(file: &File) -> Result<(), Qcow2Error> {
    let field = |offset| {
        let mut bytes = [0; 4];
        let read = file.read_exact_at(&mut bytes, offset);
        read.ok().map(|()| u32::from_be_bytes(bytes))
    };
    // Older versions have none.
    if field(VERSION).is_none_or(|version| version < 3) {
        return Ok(());
    }
    let mut offset = field(HEADER_LENGTH).map_or(MAX_CLUSTER, u64::from);
    while offset < MAX_CLUSTER {
        match (field(offset), field(offset + 4)) {
            (Some(0) | None, _) | (_, None) => break,
            (Some(FEATURE_NAMES), Some(len)) if len % ENTRY != 0 => {
                return Err(Qcow2Error::FeatureNames { len });
            }
            (Some(_), Some(len)) => offset += 8 + u64::from(len).next_multiple_of(8),
        }
    }
    Ok(())
}
