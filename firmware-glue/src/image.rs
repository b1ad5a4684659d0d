//! Someone's flash image: its areas, the CBFSes in them, and changes that touch nothing else.
//!
//! An image has a flash map; one from before there were flash maps has a master header, and is one CBFS as a whole.

use std::ops::Range;

use thiserror::Error;

use crate::anchor::{self, Anchor, AnchorError};
use crate::cbfs::{Cbfs, CbfsError, EditError, Editor, Kind, MAGIC, MasterHeader};
use crate::fmap::{Fmap, FmapError};
use crate::layout::{AREA_CBFS, BOOTBLOCK};

/// The name of the only region of an image without a flash map.
pub const WHOLE_IMAGE: &str = "(image)";

/// Why an image cannot be used or changed.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Neither a flash map nor a master header.
    #[error("This is no coreboot image")]
    NoImage(#[source] FmapError),
    /// The master header says what cannot be.
    #[error(
        "The CBFS master header at {at:#x} does not fit an image of {len:#x} bytes: the image is cut off or damaged"
    )]
    MasterHeader {
        /// Its offset.
        at: usize,
        /// Bytes in the image.
        len: usize,
    },
    /// Two areas share bytes without one being inside the other; such an image can only be looked into.
    #[error("Flash area {first} overlaps {second}, so it cannot be changed")]
    Overlap {
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// Something else lies in the CBFS, where files of it could go.
    #[error("{inner} lies inside of area {region}, so its CBFS cannot be changed")]
    Inside {
        /// Name of the CBFS's area.
        region: String,
        /// What lies in it.
        inner: String,
    },
    /// Two areas have the name that was asked for.
    #[error("The flash map has two areas called {name}")]
    TwoAreas {
        /// The name.
        name: String,
    },
    /// No area of that name.
    #[error("The image has no area {name}; those with a CBFS are: {known}")]
    NoRegion {
        /// The name looked for.
        name: String,
        /// Names of the regions that could have been meant.
        known: String,
    },
    /// The image is for another processor.
    #[error(
        "The image is for architecture {architecture:#x} by its master header, not for x86 (1)"
    )]
    Foreign {
        /// coreboot's number.
        architecture: u32,
    },
    /// The change failed.
    #[error("Area {region} cannot be changed")]
    Edit {
        /// Name of the area.
        region: String,
        /// Cause.
        #[source]
        source: EditError,
    },
    /// The hash that vouches for the files is wrong already, or of a kind that cannot be made anew.
    #[error(
        "The image is protected by a metadata hash that cannot be made anew after a change, and is left as it is"
    )]
    Anchor(#[source] AnchorError),
}

/// A part of the image with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its name in the flash map.
    pub name: String,
    /// Where it lies in the image.
    pub range: Range<usize>,
    /// Flags of the flash map.
    pub flags: u16,
    /// Whether it is a CBFS itself, not only around one.
    pub is_cbfs: bool,
}

/// A whole flash image.
#[derive(Clone, Debug)]
pub struct Image {
    bytes: Vec<u8>,
    map_at: Option<usize>,
    regions: Vec<Region>,
}

impl Image {
    /// Finds out how `bytes` are laid out.
    pub fn open(bytes: Vec<u8>) -> Result<Self, ImageError> {
        let (map_at, mut regions) = match Fmap::find(&bytes) {
            Ok(map) => (Some(map.offset()), areas(&map)),
            Err(error) => (None, legacy(&bytes, error)?),
        };
        for index in 0..regions.len() {
            let range = &regions[index].range;
            let begins = bytes
                .get(range.clone())
                .is_some_and(|area| area.starts_with(&MAGIC));
            // Of areas that begin together the innermost is the CBFS.
            let innermost = regions.iter().enumerate().all(|(other, region)| {
                other == index
                    || region.range.start != range.start
                    || region.range.is_empty()
                    || region.range.len() > range.len()
                    || (region.range.len() == range.len() && other > index)
            });
            regions[index].is_cbfs = begins && innermost;
        }
        Ok(Self {
            bytes,
            map_at,
            regions,
        })
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All of it, to be written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The flash map, if there is one.
    pub fn map(&self) -> Option<Fmap<'_>> {
        // `open` has read it, and changes go to CBFS only.
        Fmap::parse(&self.bytes, self.map_at?).ok()
    }

    /// All areas in the order of the flash map.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The areas that are a CBFS.
    pub fn cbfs_regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().filter(|region| region.is_cbfs)
    }

    /// The area called `name`; without a name the main CBFS.
    pub fn region(&self, name: Option<&str>) -> Result<&Region, ImageError> {
        let name = name.unwrap_or(match self.map_at {
            Some(_) => AREA_CBFS,
            None => WHOLE_IMAGE,
        });
        let mut found = self.regions.iter().filter(|region| region.name == name);
        let first = found.next();
        if found.next().is_some() {
            let name = name.to_owned();
            return Err(ImageError::TwoAreas { name });
        }
        first.ok_or_else(|| {
            let known: Vec<&str> = self.cbfs_regions().map(|region| &*region.name).collect();
            ImageError::NoRegion {
                name: name.to_owned(),
                known: match &known[..] {
                    [] => "none".to_owned(),
                    known => known.join(", "),
                },
            }
        })
    }

    /// The bytes of an area.
    pub fn bytes_of(&self, region: &Region) -> &[u8] {
        self.bytes.get(region.range.clone()).unwrap_or_default()
    }

    /// The CBFS in an area.
    pub fn cbfs(&self, region: &Region) -> Cbfs<'_> {
        Cbfs::new(self.bytes_of(region))
    }

    /// The hash that vouches for the files of the main CBFS and for the flash map, with its offset in the image, if there
    /// is one. It has not been compared with anything yet.
    pub fn anchor(&self) -> Result<Option<(usize, Anchor)>, AnchorError> {
        let Ok(region) = self.region(None) else {
            return Ok(None);
        };
        let bootblock = match self.cbfs(region).find(BOOTBLOCK) {
            Ok(file) if file.kind() == Kind::BOOTBLOCK => file,
            Ok(_) | Err(CbfsError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(AnchorError::Cbfs(error)),
        };
        match Anchor::find(bootblock.data()) {
            Err(AnchorError::Missing) => Ok(None),
            Err(error) => Err(error),
            Ok(at) => {
                let anchor = Anchor::parse(&bootblock.data()[at..])?;
                let offset = region.range.start + bootblock.data_range().start + at;
                Ok(Some((offset, anchor)))
            }
        }
    }

    /// Compares the anchor, if there is one, with what it vouches for; says whether there is one.
    pub fn check_anchor(&self) -> Result<bool, AnchorError> {
        let (Some((_, anchor)), Some(map)) = (self.anchor()?, self.map()) else {
            return Ok(false);
        };
        let region = self.region(None).map_err(|_| AnchorError::Missing)?;
        anchor.verify(&map, &self.cbfs(region))?;
        Ok(true)
    }

    /// Changes the CBFS in the area `name`, or nothing if `change` fails. If a hash vouches for its files, that is made
    /// anew; one that is wrong already is not made right by this.
    pub fn edit<T, E: From<ImageError>>(
        &mut self,
        name: Option<&str>,
        change: impl FnOnce(&mut Editor<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let region = self.region(name)?.clone();
        self.check_apart(&region)?;
        self.check_architecture(&region)?;
        self.check_anchor().map_err(ImageError::Anchor)?;
        let mut bytes = self.bytes_of(&region).to_vec();
        let mut editor = Editor::new(&mut bytes).map_err(|source| ImageError::Edit {
            region: region.name.clone(),
            source,
        })?;
        let result = change(&mut editor)?;
        let before = self.bytes[region.range.clone()].to_vec();
        self.bytes[region.range.clone()].copy_from_slice(&bytes);
        if let Err(error) = self.renew_anchor() {
            self.bytes[region.range].copy_from_slice(&before);
            return Err(ImageError::Anchor(error).into());
        }
        Ok(result)
    }

    /// Whether what is written to the region is written to nothing else.
    fn check_apart(&self, region: &Region) -> Result<(), ImageError> {
        let of = &region.range;
        let inside = |inner: &str| ImageError::Inside {
            region: region.name.clone(),
            inner: inner.to_owned(),
        };
        for Region { name, range, .. } in &self.regions {
            if overlap(of, range) {
                return Err(ImageError::Overlap {
                    first: region.name.clone(),
                    second: name.clone(),
                });
            }
            if !range.is_empty()
                && range.start >= of.start
                && range.end <= of.end
                && range.len() < of.len()
            {
                return Err(inside(&format!("Area {name}")));
            }
        }
        match self.map() {
            Some(map) if map.offset() < of.end && map.offset() + map.raw().len() > of.start => {
                Err(inside("The flash map"))
            }
            _ => Ok(()),
        }
    }

    fn check_architecture(&self, region: &Region) -> Result<(), ImageError> {
        let bytes = self.bytes_of(region);
        let in_file = self
            .cbfs(region)
            .files()
            .filter_map(Result::ok)
            .find(|file| file.kind() == Kind::MASTER_HEADER)
            .and_then(|file| MasterHeader::parse(bytes, file.data_range().start));
        match in_file.or_else(|| MasterHeader::find(&self.bytes)) {
            Some(header) if header.is_foreign() => Err(ImageError::Foreign {
                architecture: header.architecture,
            }),
            _ => Ok(()),
        }
    }

    fn renew_anchor(&mut self) -> Result<(), AnchorError> {
        let (Some((at, _)), Some(map)) = (self.anchor()?, self.map()) else {
            return Ok(());
        };
        let region = self.region(None).map_err(|_| AnchorError::Missing)?;
        let anchor = Anchor::of(&map, &self.cbfs(region))?.to_bytes();
        self.bytes[at..at + anchor::SIZE].copy_from_slice(&anchor);
        Ok(())
    }
}

fn areas(map: &Fmap<'_>) -> Vec<Region> {
    map.areas()
        .map(|area| Region {
            name: area.name.to_owned(),
            range: area.range(),
            flags: area.flags,
            is_cbfs: false,
        })
        .collect()
}

/// Whether both share bytes and neither lies in the other.
fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    let apart = a.end <= b.start || b.end <= a.start;
    let inside = |x: &Range<usize>, y: &Range<usize>| x.start >= y.start && x.end <= y.end;
    !(apart || inside(a, b) || inside(b, a))
}

fn legacy(bytes: &[u8], error: FmapError) -> Result<Vec<Region>, ImageError> {
    let Some(header) = MasterHeader::find(bytes) else {
        return Err(ImageError::NoImage(error));
    };
    let damaged = || ImageError::MasterHeader {
        at: header.at,
        len: bytes.len(),
    };
    Ok(vec![Region {
        name: WHOLE_IMAGE.to_owned(),
        range: header.range(bytes.len()).ok_or_else(damaged)?,
        flags: 0,
        is_cbfs: false,
    }])
}

#[cfg(test)]
mod tests;
