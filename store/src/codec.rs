//! How a page is stored: as it is, or compressed if that saves something.

use std::fmt;

use lz4_flex::block::{self, CompressTable};

use crate::PAGE;

/// How a payload is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Raw,
    /// One LZ4 block.
    Lz4,
}

impl Codec {
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Lz4),
            _ => None,
        }
    }
}

/// What a writer does with pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Nothing: a page costs its hash and a copy. For what must be quick; garbage collection can compress it later.
    Off,
    /// LZ4 where it saves an eighth or more.
    #[default]
    Fast,
}

/// Room for a page that grows.
const ROOM: usize = block::get_maximum_output_size(PAGE);

/// Compresses pages one after the other.
pub struct Encoder {
    compression: Compression,
    table: CompressTable,
    room: Box<[u8; ROOM]>,
}

impl Encoder {
    pub fn new(compression: Compression) -> Self {
        let room = Box::new([0; ROOM]);
        Self {
            compression,
            table: CompressTable::small(),
            room,
        }
    }

    pub fn encode<'a>(&'a mut self, page: &'a [u8; PAGE]) -> (Codec, &'a [u8]) {
        if self.compression == Compression::Fast
            && let Ok(len) = block::compress_into_with_table(page, &mut *self.room, &mut self.table)
            && len <= PAGE - PAGE / 8
        {
            return (Codec::Lz4, &self.room[..len]);
        }
        (Codec::Raw, page)
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Encoder").field(&self.compression).finish()
    }
}

/// Whether `payload` is a page. The bytes are not checked for what they are: their hash is.
pub fn decode(codec: Codec, payload: &[u8], page: &mut [u8; PAGE]) -> bool {
    match codec {
        Codec::Raw => match payload.first_chunk() {
            Some(bytes) if payload.len() == PAGE => {
                *page = *bytes;
                true
            }
            _ => false,
        },
        Codec::Lz4 => block::decompress_into(payload, page).is_ok_and(|len| len == PAGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back() {
        let text: [u8; PAGE] = std::array::from_fn(|at| b"all work and no play "[at % 21]);
        let mut noise = [0; PAGE];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        for compression in [Compression::Off, Compression::Fast] {
            for (page, shrinks) in [(&text, true), (&noise, false)] {
                let mut encoder = Encoder::new(compression);
                let (codec, payload) = encoder.encode(page);
                let lz4 = shrinks && compression == Compression::Fast;
                assert_eq!(codec == Codec::Lz4, lz4);
                assert_eq!(payload.len() < PAGE, lz4);
                let mut back = [0; PAGE];
                assert!(decode(codec, payload, &mut back));
                assert!(back == *page);
            }
        }
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let mut page = [0; PAGE];
        assert!(!decode(Codec::Raw, &[0; PAGE - 1], &mut page));
        assert!(!decode(Codec::Lz4, &[0xff; 40], &mut page));
        assert!(!decode(Codec::Lz4, &[], &mut page));
    }
}
