//! FMAP, the flash map: a little-endian table of named areas of a flash image.
//!
//! Layout (coreboot, `fmap_serialized.h`): a header of 56 bytes (signature, version 1.1, base address, size, name, number
//! of areas), then 42 bytes for each area (offset, size, name, flags). Offsets are from the start of the flash.

use core::ops::Range;

use thiserror::Error;

use crate::bytes::{le16, le32, le64};
use crate::name::Name;

#[cfg(feature = "std")]
mod writer;
#[cfg(feature = "std")]
pub use writer::{NewArea, write};

/// First bytes of a flash map.
pub const SIGNATURE: [u8; 8] = *b"__FMAP__";
/// Only this major version is known; minor versions are compatible.
pub const MAJOR_VERSION: u8 = 1;

const HEADER_SIZE: usize = 56;
const AREA_SIZE: usize = 42;
const NAME_SIZE: usize = 32;

/// Flag: the contents never change after the image was written.
pub const FLAG_STATIC: u16 = 1;
/// Flag: the area is compressed.
pub const FLAG_COMPRESSED: u16 = 2;
/// Flag: the area is read-only.
pub const FLAG_READ_ONLY: u16 = 4;
/// Flag: an update keeps the area.
pub const FLAG_PRESERVE: u16 = 8;

/// Why a flash map cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FmapError {
    /// The signature occurs nowhere.
    #[error(
        "No flash map (FMAP) in {len} bytes of flash: this is not a flash image, or its start was overwritten"
    )]
    NotFound {
        /// Bytes searched.
        len: usize,
    },
    /// The header or the table of areas is cut off.
    #[error(
        "The flash map at offset {at:#x} is cut off: it needs {needed} bytes, and {available} follow"
    )]
    Truncated {
        /// Offset of the signature.
        at: usize,
        /// Bytes the flash map says it has.
        needed: usize,
        /// Bytes from its start to the end of the image.
        available: usize,
    },
    /// A major version other than 1.
    #[error(
        "The flash map at offset {at:#x} has version {major}, only version {MAJOR_VERSION} is known"
    )]
    Version {
        /// Offset of the signature.
        at: usize,
        /// Major version found.
        major: u8,
    },
    /// The map describes a flash larger than the image.
    #[error(
        "The flash map describes {size:#x} bytes of flash, the image has {len:#x}: the image is cut off"
    )]
    Size {
        /// Size in the header.
        size: u32,
        /// Bytes in the image.
        len: usize,
    },
    /// An area reaches past the end of the flash.
    #[error(
        "Flash area {area} ({size:#x} bytes at {offset:#x}) reaches past the end of the flash at {flash:#x}"
    )]
    AreaOutside {
        /// Name of the area.
        area: Name,
        /// Its offset.
        offset: u32,
        /// Its size.
        size: u32,
        /// Size of the flash.
        flash: u32,
    },
    /// The name of an area, or of the map, is not text.
    #[error("Entry {index} of the flash map has a name that is not printable ASCII text")]
    BadName {
        /// Index in the table of areas.
        index: usize,
    },
    /// No area of this name.
    #[error("The flash map has no area {area}")]
    NoArea {
        /// The name looked for.
        area: Name,
    },
}

/// One area of the flash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area<'a> {
    /// Name, unique in a sound map.
    pub name: &'a str,
    /// Offset from the start of the flash, in bytes.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
    /// `FLAG_…` bits.
    pub flags: u16,
}

impl Area<'_> {
    /// The bytes of the flash that the area covers.
    pub fn range(&self) -> Range<usize> {
        let start = self.offset as usize;
        start..start.saturating_add(self.size as usize)
    }
}

/// A flash map whose every area was checked to lie in the image.
#[derive(Clone, Copy, Debug)]
pub struct Fmap<'a> {
    image: &'a [u8],
    at: usize,
    base: u64,
    size: u32,
    areas: &'a [u8],
}

impl<'a> Fmap<'a> {
    /// Finds the flash map in a whole flash image: the first sound one, wherever it lies.
    ///
    /// The signature may also occur by chance (in a program that reads flash maps, for one), so a signature without a
    /// sound map after it is passed over; if none is sound, the error is that of the first.
    pub fn find(image: &'a [u8]) -> Result<Self, FmapError> {
        let mut first_error = None;
        let candidates = image
            .windows(SIGNATURE.len())
            .enumerate()
            .filter(|(_, window)| *window == SIGNATURE);
        for (at, _) in candidates {
            match Self::parse(image, at) {
                Ok(map) => return Ok(map),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or(FmapError::NotFound { len: image.len() }))
    }

    /// Reads the flash map at offset `at` of a whole flash image and checks all of it.
    pub fn parse(image: &'a [u8], at: usize) -> Result<Self, FmapError> {
        let bytes = image.get(at..).unwrap_or_default();
        let truncated = |needed| FmapError::Truncated {
            at,
            needed,
            available: bytes.len(),
        };
        if bytes.get(..SIGNATURE.len()) != Some(&SIGNATURE[..]) {
            return Err(FmapError::NotFound { len: image.len() });
        }
        let header = bytes
            .get(..HEADER_SIZE)
            .ok_or_else(|| truncated(HEADER_SIZE))?;
        if header[8] != MAJOR_VERSION {
            return Err(FmapError::Version {
                at,
                major: header[8],
            });
        }
        // The header is there in full, so these reads cannot fail.
        let base = le64(header, 10).unwrap_or_default();
        let size = le32(header, 18).unwrap_or_default();
        let count = usize::from(le16(header, 54).unwrap_or_default());
        if size as usize > image.len() {
            return Err(FmapError::Size {
                size,
                len: image.len(),
            });
        }
        let needed = HEADER_SIZE + count * AREA_SIZE;
        let areas = bytes
            .get(HEADER_SIZE..needed)
            .ok_or_else(|| truncated(needed))?;
        for (index, entry) in areas.chunks_exact(AREA_SIZE).enumerate() {
            let area = area(entry).ok_or(FmapError::BadName { index })?;
            if area
                .offset
                .checked_add(area.size)
                .is_none_or(|end| end > size)
            {
                return Err(FmapError::AreaOutside {
                    area: Name::new(area.name),
                    offset: area.offset,
                    size: area.size,
                    flash: size,
                });
            }
        }
        Ok(Self {
            image,
            at,
            base,
            size,
            areas,
        })
    }

    /// Physical address at which the start of the flash appears.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Size of the flash in bytes; at most the size of the image.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Offset of the map itself in the image.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// The map as it lies in flash: what coreboot's FMAP hash covers.
    pub fn raw(&self) -> &'a [u8] {
        let end = self.at + HEADER_SIZE + self.areas.len();
        self.image.get(self.at..end).unwrap_or_default()
    }

    /// All areas in the order of the map.
    pub fn areas(&self) -> impl Iterator<Item = Area<'a>> + use<'a> {
        self.areas.chunks_exact(AREA_SIZE).filter_map(area)
    }

    /// The area called `name`.
    pub fn area(&self, name: &str) -> Result<Area<'a>, FmapError> {
        self.areas()
            .find(|area| area.name == name)
            .ok_or_else(|| FmapError::NoArea {
                area: Name::new(name),
            })
    }

    /// The bytes of the area called `name`.
    pub fn region(&self, name: &str) -> Result<&'a [u8], FmapError> {
        let area = self.area(name)?;
        // `parse` checked every area against the size and the size against the image.
        Ok(self.image.get(area.range()).unwrap_or_default())
    }
}

/// The flash image in a `window` of memory that ends at 4 GiB, as x86 maps flash: the last bytes of the window, as many as
/// the flash map says. A window larger than the flash is the usual case, because its size is not known beforehand.
///
/// Looks at every 4 KiB only: that is where maps of x86 flash lie, and each read may be slow.
pub fn flash_in_window(window: &[u8]) -> Result<&[u8], FmapError> {
    let mut first_error = None;
    // From the top down, so that nothing below the flash is read once its map was found.
    let steps = window.len() / crate::layout::FMAP_AREA_SIZE;
    for step in 1..=steps {
        let at = window.len() - step * crate::layout::FMAP_AREA_SIZE;
        let found = &window[at..];
        if !found.starts_with(&SIGNATURE) {
            continue;
        }
        let Some(size) = le32(found, 18).map(|size| size as usize) else {
            continue;
        };
        let Some(start) = window.len().checked_sub(size).filter(|start| *start <= at) else {
            continue;
        };
        let flash = &window[start..];
        match Fmap::parse(flash, at - start) {
            Ok(_) => return Ok(flash),
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    Err(first_error.unwrap_or(FmapError::NotFound { len: window.len() }))
}

/// Decodes one entry; `None` if its name is not printable ASCII.
fn area(entry: &[u8]) -> Option<Area<'_>> {
    let name = entry.get(8..8 + NAME_SIZE)?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(NAME_SIZE);
    let name = core::str::from_utf8(&name[..end]).ok()?;
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    Some(Area {
        name,
        offset: le32(entry, 0)?,
        size: le32(entry, 4)?,
        flags: le16(entry, 40)?,
    })
}

#[cfg(test)]
mod tests;
