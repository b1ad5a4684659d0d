//! Writing a flash map.

use super::{HEADER_SIZE, MAJOR_VERSION, NAME_SIZE, SIGNATURE};

/// An area to write. Names longer than 31 bytes are refused by [`write`].
#[derive(Clone, Copy, Debug)]
pub struct NewArea<'a> {
    /// Printable ASCII, 1 to 31 bytes.
    pub name: &'a str,
    /// Offset from the start of the flash, in bytes.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
    /// `FLAG_…` bits.
    pub flags: u16,
}

/// The bytes of a flash map for a flash of `size` bytes at physical address `base`; `None` if a name does not fit or there
/// are more than 65,535 areas.
pub fn write(base: u64, size: u32, name: &str, areas: &[NewArea<'_>]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(HEADER_SIZE + areas.len() * super::AREA_SIZE);
    out.extend_from_slice(&SIGNATURE);
    out.extend_from_slice(&[MAJOR_VERSION, 1]);
    out.extend_from_slice(&base.to_le_bytes());
    out.extend_from_slice(&size.to_le_bytes());
    out.extend_from_slice(&padded(name)?);
    out.extend_from_slice(&u16::try_from(areas.len()).ok()?.to_le_bytes());
    for area in areas {
        out.extend_from_slice(&area.offset.to_le_bytes());
        out.extend_from_slice(&area.size.to_le_bytes());
        out.extend_from_slice(&padded(area.name)?);
        out.extend_from_slice(&area.flags.to_le_bytes());
    }
    Some(out)
}

fn padded(name: &str) -> Option<[u8; NAME_SIZE]> {
    let fits = (1..NAME_SIZE).contains(&name.len());
    if !fits || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let mut out = [0; NAME_SIZE];
    out[..name.len()].copy_from_slice(name.as_bytes());
    Some(out)
}
