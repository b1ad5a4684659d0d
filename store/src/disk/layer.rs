//! A layer: what was written to a disk since the layer below it was frozen.
//!
//! A file of a header, a map of two bits per block (the block is below, here, or zero) and the blocks in their places.
//! A block's bits change on the disk only after its data is durable, so that a power cut shows the block below rather than
//! half of this one. What a guest has not flushed may be lost; what it has flushed, and what it never wrote, is not.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::PAGE;
use crate::error::{Error, Result};
use crate::hash::Digest;
use crate::medium::{Medium, MediumFile, read_exact};

const MAGIC: &[u8; 8] = b"DRMALAY\x1a";
/// Version of this file's format.
const FORMAT: u32 = 1;
/// Magic, format, id, blocks, store, hash of these.
const HEADER: usize = 44 + 32;
const MAP: u64 = PAGE as u64;
/// Blocks whose bits share a byte.
const PER_BYTE: u64 = 4;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Below,
    Here,
    Zero,
}

impl Place {
    fn bits(self) -> u8 {
        match self {
            Self::Below => 0,
            Self::Here => 1,
            Self::Zero => 2,
        }
    }
}

/// A layer's file.
#[derive(Debug)]
pub struct Layer {
    pub id: u64,
    blocks: u64,
    file: Arc<dyn MediumFile>,
    map: Mutex<Map>,
}

#[derive(Debug)]
struct Map {
    bits: Vec<u8>,
    /// Pages of the map that are not durable.
    dirty: BTreeSet<usize>,
    /// Whether data was written since the last sync.
    written: bool,
}

/// Name of a layer's file.
pub fn name(id: u64) -> String {
    format!("layer-{id:08x}")
}

/// Number of the layer that a file name names.
pub fn number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("layer-")?;
    (digits.len() >= 8).then(|| u64::from_str_radix(digits, 16).ok())?
}

fn map_len(blocks: u64) -> u64 {
    blocks.div_ceil(PER_BYTE).next_multiple_of(PAGE as u64)
}

impl Layer {
    fn header(id: u64, store: [u8; 16], blocks: u64) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        header[12..20].copy_from_slice(&id.to_le_bytes());
        header[20..28].copy_from_slice(&blocks.to_le_bytes());
        header[28..44].copy_from_slice(&store);
        let digest = Digest::of(&header[..44]);
        header[44..].copy_from_slice(&digest.0);
        header
    }

    fn with(id: u64, blocks: u64, file: Arc<dyn MediumFile>, bits: Vec<u8>) -> Self {
        let map = Mutex::new(Map {
            bits,
            dirty: BTreeSet::new(),
            written: false,
        });
        Self {
            id,
            blocks,
            file,
            map,
        }
    }

    /// Makes a layer, with its name durable.
    pub fn create(medium: &dyn Medium, id: u64, store: [u8; 16], blocks: u64) -> Result<Self> {
        let name = name(id);
        let doing = || Error::io(format!("create {name}"));
        let file = medium.create(&name).map_err(doing())?;
        (file.write_at(0, &Self::header(id, store, blocks))).map_err(doing())?;
        file.set_size(MAP + map_len(blocks)).map_err(doing())?;
        file.sync().map_err(doing())?;
        medium.sync_names().map_err(doing())?;
        let len = usize::try_from(map_len(blocks)).unwrap_or(usize::MAX);
        Ok(Self::with(id, blocks, file, vec![0; len]))
    }

    /// Opens a layer, which must be this one.
    pub fn open(medium: &dyn Medium, id: u64, store: [u8; 16], blocks: u64) -> Result<Self> {
        let name = name(id);
        let needed = MAP + map_len(blocks);
        let partial = |found| Error::Partial {
            name: name.clone(),
            found,
            needed,
        };
        let doing = || Error::io(format!("read {name}"));
        let file = match medium.open(&name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(partial(0)),
            Err(error) => return Err(doing()(error)),
        };
        let size = file.size().map_err(doing())?;
        if size < needed {
            return Err(partial(size));
        }
        let mut header = [0; HEADER];
        read_exact(&*file, 0, &mut header).map_err(doing())?;
        if header != Self::header(id, store, blocks) {
            return Err(Error::Foreign {
                name,
                why: "its header is another layer's, or damaged".to_owned(),
            });
        }
        let len = usize::try_from(map_len(blocks)).unwrap_or(usize::MAX);
        let mut bits = vec![0; len];
        read_exact(&*file, MAP, &mut bits).map_err(doing())?;
        Ok(Self::with(id, blocks, file, bits))
    }

    fn offset(&self, block: u64) -> u64 {
        MAP + map_len(self.blocks) + block * PAGE as u64
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a block is.
    pub fn place(&self, block: u64) -> Place {
        self.lock().place(block)
    }

    /// Reads in a block that is here.
    pub fn read(&self, block: u64, skip: usize, bytes: &mut [u8]) -> Result<()> {
        (read_exact(&*self.file, self.offset(block) + skip as u64, bytes))
            .map_err(Error::io(format!("read {}", name(self.id))))
    }

    fn put(&self, block: u64, skip: usize, bytes: &[u8]) -> Result<()> {
        (self.file.write_at(self.offset(block) + skip as u64, bytes))
            .map_err(Error::io(format!("write {}", name(self.id))))
    }

    /// Writes in a block. If it was below, `below` says what it was.
    pub fn write_part(
        &self,
        block: u64,
        skip: usize,
        bytes: &[u8],
        below: &mut dyn FnMut(&mut [u8; PAGE]) -> Result<()>,
    ) -> Result<()> {
        // Held all the time: two parts of one block may come at once.
        let mut map = self.lock();
        map.written = true;
        let place = map.place(block);
        if place == Place::Here {
            return self.put(block, skip, bytes);
        }
        let mut whole = [0; PAGE];
        if place == Place::Below {
            below(&mut whole)?;
        }
        whole[skip..skip + bytes.len()].copy_from_slice(bytes);
        self.put(block, 0, &whole)?;
        map.set(block, Place::Here);
        Ok(())
    }

    /// Writes whole blocks.
    pub fn write_whole(&self, block: u64, blocks: &[[u8; PAGE]]) -> Result<()> {
        let mut map = self.lock();
        map.written = true;
        self.put(block, 0, blocks.as_flattened())?;
        (block..block + blocks.len() as u64).for_each(|block| map.set(block, Place::Here));
        Ok(())
    }

    /// Makes whole blocks zero.
    pub fn zero(&self, blocks: std::ops::Range<u64>) {
        let mut map = self.lock();
        blocks.for_each(|block| map.set(block, Place::Zero));
    }

    /// Makes all that was written durable: first the data, then where it is.
    pub fn flush(&self) -> Result<()> {
        let doing = || Error::io(format!("make {} durable", name(self.id)));
        let mut map = self.lock();
        if map.written {
            self.file.sync().map_err(doing())?;
            map.written = false;
        }
        if map.dirty.is_empty() {
            return Ok(());
        }
        for page in &map.dirty {
            let start = page * PAGE;
            let bytes = &map.bits[start..start + PAGE];
            (self.file.write_at(MAP + start as u64, bytes)).map_err(doing())?;
        }
        self.file.sync().map_err(doing())?;
        map.dirty.clear();
        Ok(())
    }

    /// Blocks that are here or zero, in order.
    pub fn changed(&self) -> Vec<u64> {
        let map = self.lock();
        let bytes = (0_u64..).zip(&map.bits).filter(|(_, bits)| **bits != 0);
        let blocks = bytes.flat_map(|(at, _)| at * PER_BYTE..(at + 1) * PER_BYTE);
        let blocks = blocks.filter(|block| *block < self.blocks);
        blocks
            .filter(|block| map.place(*block) != Place::Below)
            .collect()
    }
}

impl Map {
    fn at(block: u64) -> (usize, u32) {
        let byte = usize::try_from(block / PER_BYTE).unwrap_or(usize::MAX);
        (byte, u32::try_from(block % PER_BYTE).unwrap_or(0) * 2)
    }

    fn place(&self, block: u64) -> Place {
        let (byte, shift) = Self::at(block);
        match self.bits.get(byte).map_or(0, |bits| bits >> shift & 3) {
            0 => Place::Below,
            1 => Place::Here,
            // The fourth value is nobody's; zeros show nothing that the guest may not see.
            _ => Place::Zero,
        }
    }

    fn set(&mut self, block: u64, place: Place) {
        if self.place(block) == place {
            return;
        }
        let (byte, shift) = Self::at(block);
        if let Some(bits) = self.bits.get_mut(byte) {
            *bits = *bits & !(3 << shift) | place.bits() << shift;
            self.dirty.insert(byte / PAGE);
        }
    }
}
