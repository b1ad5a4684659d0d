//! Segment files: records of chunks, only ever appended.
//!
//! A segment begins with one page of header; from [`FIRST`] on it holds records: digest (32 bytes), length of the payload
//! (u32), codec (u8), kind (u8), two zero bytes, payload. What counts of a segment is up to the length that the index
//! has committed; each writer begins on a page behind that, so that no sector with committed bytes is written again.

mod append;
mod window;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

pub use self::append::Appender;
pub use self::window::Window;
use crate::PAGE;
use crate::codec::{self, Codec};
use crate::error::{Error, Fault, Result};
use crate::hash::Digest;
use crate::medium::{Medium, MediumFile};

/// Bytes before a payload.
pub const RECORD: usize = 40;
/// Offset of a segment's first record.
pub const FIRST: u32 = 4096;
/// Where the next record goes to a new segment.
pub const FULL: u32 = 64 << 20;
/// Files held open.
const OPEN: usize = 256;
const MAGIC: &[u8; 8] = b"DRMASEG\x1a";
/// Version of this file's format.
const FORMAT: u32 = 1;
const HEADER: usize = 64;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// Number of the segment.
    pub segment: u32,
    /// Offset of the record in it.
    pub offset: u32,
}

impl Location {
    pub fn to_bytes(self) -> [u8; 8] {
        (u64::from(self.segment) << 32 | u64::from(self.offset)).to_le_bytes()
    }

    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        let both = u64::from_le_bytes(bytes);
        Self {
            segment: (both >> 32) as u32,
            offset: both as u32,
        }
    }
}

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A page of an object.
    Page,
    /// A node of a tree.
    Node,
}

/// Name of a segment's file.
pub fn name(segment: u32) -> String {
    format!("segment-{segment:08x}")
}

/// Number of the segment that a file name names.
pub fn number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("segment-")?;
    (digits.len() == 8).then(|| u32::from_str_radix(digits, 16).ok())?
}

/// All segments of a store.
#[derive(Debug)]
pub struct Segments {
    medium: Arc<dyn Medium>,
    store: [u8; 16],
    files: Mutex<HashMap<u32, Arc<dyn MediumFile>>>,
}

impl Segments {
    pub fn new(medium: Arc<dyn Medium>, store: [u8; 16]) -> Self {
        let files = Mutex::default();
        Self {
            medium,
            store,
            files,
        }
    }

    fn header(&self, segment: u32) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        header[12..16].copy_from_slice(&segment.to_le_bytes());
        header[16..32].copy_from_slice(&self.store);
        let digest = Digest::of(&header[..32]);
        header[32..].copy_from_slice(&digest.0);
        header
    }

    /// Makes a segment. Its name is not durable yet.
    pub fn create(&self, segment: u32) -> Result<Arc<dyn MediumFile>> {
        let name = name(segment);
        let file = (self.medium.create(&name)).map_err(Error::io(format!("create {name}")))?;
        file.write_at(0, &self.header(segment))
            .map_err(Error::io(format!("write {name}")))?;
        self.keep(segment, &file);
        Ok(file)
    }

    fn keep(&self, segment: u32, file: &Arc<dyn MediumFile>) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.len() >= OPEN {
            files.clear();
        }
        files.insert(segment, Arc::clone(file));
    }

    /// A segment's file.
    pub fn file(&self, segment: u32) -> io::Result<Arc<dyn MediumFile>> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&segment) {
            return Ok(Arc::clone(file));
        }
        drop(files);
        let file = self.medium.open(&name(segment))?;
        self.keep(segment, &file);
        Ok(file)
    }

    /// Refuses a file that is not this store's segment, or is shorter than `committed`. Returns its size.
    pub fn check(&self, segment: u32, committed: u64) -> Result<u64> {
        let name = name(segment);
        let partial = |found| Error::Partial {
            name: name.clone(),
            found,
            needed: committed,
        };
        let file = match self.file(segment) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(partial(0)),
            Err(error) => return Err(Error::io(format!("open {name}"))(error)),
        };
        let doing = || format!("read {name}");
        let size = file.size().map_err(Error::io(doing()))?;
        if size < committed {
            return Err(partial(size));
        }
        let mut header = [0; HEADER];
        file.read_at(0, &mut header).map_err(Error::io(doing()))?;
        let why = if header[..8] != *MAGIC {
            "it does not begin as a segment does"
        } else if header[32..] != Digest::of(&header[..32]).0 {
            "its header is damaged"
        } else if header[16..32] != self.store {
            "it belongs to another store"
        } else if header[12..16] != segment.to_le_bytes() {
            "it is another segment under this name"
        } else {
            return Ok(size);
        };
        let why = why.to_owned();
        Err(Error::Foreign { name, why })
    }

    /// Removes a segment's file. The name is not durably gone yet.
    pub fn remove(&self, segment: u32) -> Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.remove(&segment);
        drop(files);
        let name = name(segment);
        (self.medium.remove(&name)).map_err(Error::io(format!("remove {name}")))
    }

    pub fn sync_names(&self) -> Result<()> {
        (self.medium.sync_names()).map_err(Error::io("make the names of segments durable"))
    }

    /// Reads the record at `location`: payload and how it is encoded. The digest in the record is only compared with
    /// the wanted one here; the caller hashes what it decodes.
    pub fn read<'a>(
        &self,
        location: Location,
        wanted: &Digest,
        kind: Kind,
        window: &'a mut Window,
    ) -> Result<(Codec, &'a [u8]), Fault> {
        let fault = |why| Fault::Record {
            hash: wanted.to_string(),
            why,
        };
        let bytes = window.get(self, location).map_err(|error| match error {
            error if error.kind() == io::ErrorKind::NotFound => Fault::Missing {
                hash: wanted.to_string(),
            },
            error => Fault::Io(error.to_string()),
        })?;
        let (header, rest) = bytes
            .split_first_chunk::<RECORD>()
            .ok_or_else(|| fault("the segment ends in it"))?;
        if header[..32] != wanted.0 {
            return Err(fault("another one is in its place"));
        }
        let len = u32::from_le_bytes([header[32], header[33], header[34], header[35]]);
        let codec = Codec::from_byte(header[36]).ok_or_else(|| fault("its encoding is unknown"))?;
        if header[37] != kind as u8 {
            return Err(fault("it is of another kind"));
        }
        let payload = usize::try_from(len)
            .ok()
            .filter(|len| *len <= PAGE)
            .and_then(|len| rest.get(..len))
            .ok_or_else(|| fault("its length is impossible"))?;
        Ok((codec, payload))
    }

    /// Reads and verifies the page with digest `wanted`.
    pub fn page(
        &self,
        location: Location,
        wanted: &Digest,
        window: &mut Window,
        page: &mut [u8; PAGE],
    ) -> Result<(), Fault> {
        self.page_unhashed(location, wanted, window, page)?;
        if Digest::of(page) != *wanted {
            return Err(Fault::Hash {
                expected: wanted.to_string(),
            });
        }
        Ok(())
    }

    /// Reads a page, whose hash the caller is about to check.
    pub fn page_unhashed(
        &self,
        location: Location,
        wanted: &Digest,
        window: &mut Window,
        page: &mut [u8; PAGE],
    ) -> Result<(), Fault> {
        let (codec, payload) = self.read(location, wanted, Kind::Page, window)?;
        if codec::decode(codec, payload, page) {
            Ok(())
        } else {
            Err(Fault::Hash {
                expected: wanted.to_string(),
            })
        }
    }
}
