//! A file to write.

use super::attribute::{
    PREFIX, TAG_ALIGNMENT, TAG_BLAKE3, TAG_COMPRESSION, TAG_HASH, TAG_POSITION, VBOOT_SHA256,
};
use super::{ALIGNMENT, CbfsError, File, HEADER_SIZE, Kind, MAGIC, MAX_METADATA, WriteError};
use crate::compress::{CompressError, Method, compress};
use crate::hash::{blake3, sha256};

/// Names and attributes are padded to this many bytes.
pub(super) const NAME_ALIGNMENT: usize = 4;

/// Which hashes of its stored data a file carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hashes {
    /// None.
    None,
    /// SHA-256, which coreboot and its tools know.
    Sha256,
    /// SHA-256 and BLAKE3, which our ROM stage and host check.
    #[default]
    Both,
}

/// Where in the region the data of a file go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Where there is room.
    #[default]
    Anywhere,
    /// At a multiple of this many bytes.
    Aligned(u32),
    /// At this offset.
    At(u32),
}

/// A file to write.
#[derive(Clone, Debug)]
pub struct NewFile {
    name: String,
    kind: Kind,
    data: Vec<u8>,
    attributes: Vec<u8>,
    place: Place,
}

impl NewFile {
    /// A file of `kind` that carries SHA-256 and BLAKE3 of its data.
    pub fn new(name: impl Into<String>, kind: Kind, data: Vec<u8>) -> Self {
        Self::with(name, kind, data, Hashes::Both, Place::Anywhere)
    }

    /// A file with these hashes, for this place.
    pub fn with(
        name: impl Into<String>,
        kind: Kind,
        data: Vec<u8>,
        hashes: Hashes,
        place: Place,
    ) -> Self {
        let mut attributes = Vec::new();
        append_place(&mut attributes, place);
        append_hashes(&mut attributes, hashes, &data);
        Self {
            name: name.into(),
            kind,
            data,
            attributes,
            place,
        }
    }

    /// A file whose data are compressed by `method`, unless that would not make them smaller.
    pub fn compressed(
        name: impl Into<String>,
        kind: Kind,
        data: Vec<u8>,
        method: Method,
        hashes: Hashes,
    ) -> Result<Self, CompressError> {
        let packed = compress(method, &data)?;
        if method == Method::None || packed.len() >= data.len() {
            return Ok(Self::with(name, kind, data, hashes, Place::Anywhere));
        }
        let mut attributes = Vec::new();
        let value = [method.number().to_be_bytes(), be(data.len())].concat();
        append(&mut attributes, TAG_COMPRESSION, &value);
        append_hashes(&mut attributes, hashes, &packed);
        Ok(Self {
            name: name.into(),
            kind,
            data: packed,
            attributes,
            place: Place::Anywhere,
        })
    }

    /// The same, for the same place, without an attribute that says so: as cbfstool writes it unless told to.
    #[must_use]
    pub fn without_place(mut self) -> Self {
        if self.place != Place::Anywhere {
            // It is the first attribute, of one number.
            self.attributes
                .drain(..(PREFIX + 4).min(self.attributes.len()));
        }
        self
    }

    /// The same file as in another region: data and attributes as stored, whether they are known here or not. What lies
    /// at a fixed or aligned place goes to such a place again.
    pub fn copy_of(file: &File<'_>) -> Result<Self, CbfsError> {
        use super::Attribute;
        let mut place = Place::Anywhere;
        let mut used = 0;
        let mut attributes = file.attributes();
        while let Some(attribute) = attributes.next() {
            match attribute? {
                Attribute::Position(at) => place = Place::At(at),
                Attribute::Alignment(to) => place = Place::Aligned(to),
                _ => {}
            }
            used = file.attributes.len() - attributes.rest().len();
        }
        Ok(Self {
            name: file.name().to_owned(),
            kind: file.kind(),
            data: file.data().to_vec(),
            attributes: file.attributes[..used].to_vec(),
            place,
        })
    }

    /// The boot block. It carries no hash of its own: it contains the hash of all metadata, its own included.
    pub fn bootblock(data: Vec<u8>) -> Self {
        let name = crate::layout::BOOTBLOCK;
        Self::with(name, Kind::BOOTBLOCK, data, Hashes::None, Place::Anywhere)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its data as they are stored.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Where it must go.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Bytes of data.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether it has no data.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Bytes of flash that it takes where it need not be at a certain place, up to the next boundary.
    pub fn room(&self) -> usize {
        self.unpadded().next_multiple_of(ALIGNMENT)
    }

    /// Bytes of metadata and data.
    pub fn unpadded(&self) -> usize {
        self.metadata_size() + self.len()
    }

    /// Bytes of metadata, before any padding for a fixed place.
    pub(super) fn metadata_size(&self) -> usize {
        HEADER_SIZE + padded_name_size(&self.name) + self.attributes.len()
    }

    /// The metadata, padded with zeros to `size`.
    pub(super) fn metadata(&self, size: usize) -> Vec<u8> {
        let attributes_at = HEADER_SIZE + padded_name_size(&self.name);
        let said = if self.attributes.is_empty() {
            0
        } else {
            attributes_at
        };
        let mut out = header(self.data.len(), self.kind, said, size);
        out.extend_from_slice(self.name.as_bytes());
        out.resize(attributes_at, 0);
        out.extend_from_slice(&self.attributes);
        out.resize(size, 0);
        out
    }

    pub(super) fn check(&self) -> Result<(), WriteError> {
        let max = (MAX_METADATA - HEADER_SIZE - 1).saturating_sub(self.attributes.len());
        if self.name.is_empty() || self.name.len() > max || self.name.contains('\0') {
            return Err(WriteError::BadName {
                name: self.name.clone(),
                max,
            });
        }
        Ok(())
    }
}

fn append(attributes: &mut Vec<u8>, tag: u32, value: &[u8]) {
    attributes.extend_from_slice(&tag.to_be_bytes());
    attributes.extend_from_slice(&be(PREFIX + value.len()));
    attributes.extend_from_slice(value);
}

fn append_hashes(attributes: &mut Vec<u8>, hashes: Hashes, data: &[u8]) {
    if hashes != Hashes::None {
        let value = [&VBOOT_SHA256.to_be_bytes()[..], &sha256(data).0].concat();
        append(attributes, TAG_HASH, &value);
    }
    if hashes == Hashes::Both {
        append(attributes, TAG_BLAKE3, &blake3(data).0);
    }
}

fn append_place(attributes: &mut Vec<u8>, place: Place) {
    match place {
        Place::Anywhere => {}
        Place::Aligned(to) => append(attributes, TAG_ALIGNMENT, &to.to_be_bytes()),
        Place::At(at) => append(attributes, TAG_POSITION, &at.to_be_bytes()),
    }
}

/// The 24 bytes that a file begins with.
pub(super) fn header(len: usize, kind: Kind, attributes: usize, data: usize) -> Vec<u8> {
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

/// Sizes in CBFS have 32 bits; a larger file is cut short here and refused by who writes it, as no region is larger.
fn be(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes()
}
