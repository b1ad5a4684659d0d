//! The list of an image's digests: what each of its pages is, and so what the image is.
//!
//! ```text
//! page 0: magic (8) · format (u32) · 0 (u32) · bytes of the image (u64) · id (32) · zeros
//! then:   digest of each group (32), padded to whole pages
//! then:   groups: a page each, of the digests of 128 pages of the image
//! ```
//! A page of zeros has 32 zero bytes for a digest, and so has a group of such pages, which is a hole in the list. The id is
//! the BLAKE3 of the image's length and the groups' digests: a list that has an id is that image's, whoever gives it, and
//! a group is checked when it is read. So opening a list costs 64 bytes per MiB of image, and a wrong one shows nothing.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::Image;
use crate::PAGE;
use crate::error::{Error, Fault, Result};
use crate::hash::{self, Digest};
use crate::medium::{MediumFile, read_exact};
use crate::tree;

const MAGIC: &[u8; 8] = b"DRMAIMG\x1a";
const FORMAT: u32 = 1;
const HEADER: usize = 56;
const DIGEST: usize = 32;
/// Pages of the image in a group.
pub const GROUP: usize = PAGE / DIGEST;
/// Largest image: as large as a disk.
const MAX: u64 = 4 << 40;
/// Groups that are kept: 256 KiB.
const KEPT: usize = 64;
/// What stands for a page of zeros.
const ZERO: Digest = Digest([0; DIGEST]);

type Group = [[u8; DIGEST]; GROUP];
/// Groups with their places in the list.
type Groups<'a> = Vec<(u64, &'a [u8])>;

fn groups(len: u64) -> u64 {
    tree::pages(len).div_ceil(GROUP as u64)
}

fn table_len(len: u64) -> u64 {
    (groups(len) * DIGEST as u64).next_multiple_of(PAGE as u64)
}

fn offset(len: u64, group: u64) -> u64 {
    (1 + group) * PAGE as u64 + table_len(len)
}

/// Bytes of the list of an image of `len` bytes.
pub fn size(len: u64) -> u64 {
    offset(len, groups(len))
}

/// What a list begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub id: Digest,
    pub len: u64,
    groups: Vec<Digest>,
}

impl Head {
    fn new(len: u64, groups: Vec<Digest>) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(MAGIC).update(&len.to_le_bytes());
        for group in &groups {
            hasher.update(&group.0);
        }
        let id = Digest(*hasher.finalize().as_bytes());
        Self { id, len, groups }
    }

    /// As it is stored: whole pages, the header first.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.len.to_le_bytes());
        bytes.extend_from_slice(&self.id.0);
        bytes.resize(PAGE, 0);
        for group in &self.groups {
            bytes.extend_from_slice(&group.0);
        }
        bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
        bytes
    }

    /// The image's length and its id, as a header names them.
    fn header(bytes: &[u8; HEADER]) -> Result<(u64, Digest), &'static str> {
        let (magic, rest) = bytes.split_at(MAGIC.len());
        let (versions, rest) = rest.split_at(8);
        if magic != MAGIC {
            return Err("it does not begin as a list of digests does");
        }
        if versions != u64::from(FORMAT).to_le_bytes() {
            return Err("it has a format that this program does not know");
        }
        let (len, id) = rest.split_at(8);
        let len = len.first_chunk().copied().map_or(0, u64::from_le_bytes);
        if len > MAX {
            return Err("it is of an image larger than 4 TiB");
        }
        Ok((len, Digest(id.first_chunk().copied().unwrap_or_default())))
    }

    fn table(len: u64, id: Digest, table: &[u8]) -> Result<Self, &'static str> {
        let table = table
            .as_chunks::<DIGEST>()
            .0
            .iter()
            .map(|bytes| Digest(*bytes));
        let count = usize::try_from(groups(len)).unwrap_or(usize::MAX);
        let head = Self::new(len, table.take(count).collect());
        if head.id != id {
            return Err("its digests do not have the hash that it names");
        }
        Ok(head)
    }

    /// The head of a list, and its groups that are not empty, each with its place: if all of it is right.
    pub fn parse(bytes: &[u8]) -> Result<(Self, Groups<'_>), &'static str> {
        const CUT: &str = "it is cut off, or goes on behind its end";
        let (len, id) = Self::header(bytes.first_chunk().ok_or(CUT)?)?;
        if u64::try_from(bytes.len()) != Ok(size(len)) {
            return Err(CUT);
        }
        let at = usize::try_from(offset(len, 0)).map_err(|_| CUT)?;
        let (front, rest) = bytes.split_at_checked(at).ok_or(CUT)?;
        let head = Self::table(len, id, front.get(PAGE..).ok_or(CUT)?)?;
        let mut there = Vec::new();
        let groups = rest.as_chunks::<PAGE>().0.iter().zip(&head.groups);
        for ((group, digest), number) in groups.zip(0..) {
            if of_group(group) != *digest {
                return Err("a part of it does not have its hash");
            }
            if *digest != ZERO {
                there.push((offset(len, number), &group[..]));
            }
        }
        Ok((head, there))
    }
}

fn of_group(group: &[u8; PAGE]) -> Digest {
    if hash::is_zero(group) {
        return ZERO;
    }
    Digest::of(group)
}

/// Reads an image once. `put` gets each group that is not empty, with its place in the list; the head comes last.
pub fn build(
    image: &dyn Image,
    progress: &mut dyn FnMut(u64, u64),
    put: &mut dyn FnMut(u64, &[u8; PAGE]) -> Result<()>,
) -> Result<Head> {
    let len = (image.size()).map_err(Error::io("read the image's size"))?;
    if len > MAX {
        return Err(Error::Unusable {
            what: format!("An image of {len} bytes"),
            why: "it has up to 4 TiB",
        });
    }
    let span = (GROUP * PAGE) as u64;
    let mut digests = Vec::new();
    let mut buffer = vec![[0; PAGE]; GROUP];
    let mut data = 0;
    for number in 0..groups(len) {
        let start = number * span;
        let end = (start + span).min(len);
        let doing = || Error::io(format!("read the image at offset {start:#x}"));
        if data <= start {
            data = image.next_data(start).map_err(doing())?;
        }
        if data >= end {
            digests.push(ZERO);
            progress(end, len);
            continue;
        }
        let there = usize::try_from(end - start).unwrap_or(usize::MAX);
        let (there, behind) = buffer.as_flattened_mut().split_at_mut(there);
        behind.fill(0);
        image.read_at(start, there).map_err(doing())?;
        let mut group: Group = [ZERO.0; GROUP];
        let pages = buffer.iter().zip(&mut group);
        let (pages, slots): (Vec<_>, Vec<_>) =
            pages.filter(|(page, _)| !hash::is_zero(page)).unzip();
        for (slot, digest) in slots.into_iter().zip(hash::pages(&pages)) {
            *slot = digest.0;
        }
        let mut bytes = [0; PAGE];
        bytes.copy_from_slice(group.as_flattened());
        let digest = of_group(&bytes);
        if digest != ZERO {
            put(offset(len, number), &bytes)?;
        }
        digests.push(digest);
        progress(end, len);
    }
    Ok(Head::new(len, digests))
}

/// A list in the store.
#[derive(Debug)]
pub struct List {
    head: Head,
    file: Arc<dyn MediumFile>,
    /// Groups that were read last.
    kept: Mutex<HashMap<u64, Arc<Group>>>,
}

impl List {
    pub fn new(head: Head, file: Arc<dyn MediumFile>) -> Self {
        let kept = Mutex::default();
        Self { head, file, kept }
    }

    /// Opens the list of an image of this id and length.
    pub fn open(name: &str, file: Arc<dyn MediumFile>, id: Digest, len: u64) -> Result<Self> {
        let doing = || Error::io(format!("read {name}"));
        let found = file.size().map_err(doing())?;
        let needed = size(len);
        if found < needed {
            let name = name.to_owned();
            return Err(Error::Partial {
                name,
                found,
                needed,
            });
        }
        let mut header = [0; HEADER];
        read_exact(&*file, 0, &mut header).map_err(doing())?;
        let mut table = vec![0; usize::try_from(table_len(len)).unwrap_or(usize::MAX)];
        read_exact(&*file, PAGE as u64, &mut table).map_err(doing())?;
        let head = Head::header(&header).and_then(|found| {
            if found != (len, id) {
                return Err("it is the list of another image");
            }
            Head::table(len, id, &table)
        });
        let head = head.map_err(|why| Error::Foreign {
            name: name.to_owned(),
            why: why.to_owned(),
        })?;
        Ok(Self::new(head, file))
    }

    pub fn id(&self) -> Digest {
        self.head.id
    }

    /// Bytes of the image.
    pub fn len(&self) -> u64 {
        self.head.len
    }

    pub fn pages(&self) -> u64 {
        tree::pages(self.head.len)
    }

    /// What a page of the image is: `None` if it is zero, or behind the end.
    pub fn digest(&self, page: u64) -> Result<Option<Digest>> {
        if page >= self.pages() {
            return Ok(None);
        }
        let group = self.group(page / GROUP as u64);
        let group = group.map_err(|fault| self.wrong(page, fault))?;
        let slot = usize::try_from(page % GROUP as u64).unwrap_or(0);
        Ok(group
            .map(|group| Digest(group[slot]))
            .filter(|digest| *digest != ZERO))
    }

    fn group(&self, number: u64) -> Result<Option<Arc<Group>>, Fault> {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        let Some(wanted) = self.head.groups.get(at).filter(|digest| **digest != ZERO) else {
            return Ok(None);
        };
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = lock().get(&number) {
            return Ok(Some(Arc::clone(group)));
        }
        let mut group: Group = [ZERO.0; GROUP];
        let bytes = group.as_flattened_mut();
        read_exact(&*self.file, offset(self.head.len, number), bytes)
            .map_err(|error: io::Error| Fault::Io(error.to_string()))?;
        if Digest::of(bytes) != *wanted {
            return Err(Fault::List);
        }
        let group = Arc::new(group);
        let mut kept = lock();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(number, Arc::clone(&group));
        Ok(Some(group))
    }

    /// An error of a page of the image.
    pub fn wrong(&self, page: u64, fault: Fault) -> Error {
        Error::Image {
            image: self.head.id.to_string(),
            offset: page * PAGE as u64,
            fault,
        }
    }
}
