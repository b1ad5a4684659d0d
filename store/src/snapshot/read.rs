//! Reading a snapshot: any part, in any order, each page verified.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Info, ObjectInfo, corrupt, info};
use crate::PAGE;
use crate::error::{Error, Fault, Result};
use crate::hash::{self, Digest};
use crate::segment::Window;
use crate::store::{Inner, Store};
use crate::tree::{self, Child, FANOUT, FANOUT_BITS, Failed, Node};

/// Pages that are read and verified together.
const GROUP: usize = 8 * hash::LANES;

/// A snapshot that is open: it cannot be deleted meanwhile.
pub struct Snapshot {
    pub(super) inner: Arc<Inner>,
    pub(super) info: Info,
}

impl Store {
    /// Opens a snapshot.
    pub fn snapshot(&self, id: u64) -> Result<Arc<Snapshot>> {
        open(&self.0, id)
    }
}

/// Opens a snapshot.
pub(crate) fn open(inner: &Arc<Inner>, id: u64) -> Result<Arc<Snapshot>> {
    let mut use_ = inner.use_();
    if use_.going == Some(id) {
        return Err(Error::NoSnapshot { id });
    }
    let info = info(&inner.index.view()?, id)?;
    *use_.open.entry(id).or_default() += 1;
    drop(use_);
    let inner = Arc::clone(inner);
    Ok(Arc::new(Snapshot { inner, info }))
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let mut use_ = self.inner.use_();
        if let Some(count) = use_.open.get_mut(&self.info.id) {
            *count -= 1;
            if *count == 0 {
                use_.open.remove(&self.info.id);
            }
        }
    }
}

impl Snapshot {
    /// What is known of it.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// One of its objects.
    pub fn object(self: &Arc<Self>, name: &str) -> Result<Object> {
        let info = self.info.object(name).ok_or_else(|| Error::NoObject {
            snapshot: self.info.id,
            object: name.to_owned(),
        })?;
        Ok(Object {
            info: info.clone(),
            snapshot: Arc::clone(self),
            reader: Mutex::new(Reader {
                leaf: None,
                windows: [Window::single(), Window::wide()],
            }),
        })
    }
}

/// An object of a snapshot. Threads may share it.
pub struct Object {
    info: ObjectInfo,
    snapshot: Arc<Snapshot>,
    reader: Mutex<Reader>,
}

struct Reader {
    /// The leaf that was used last, and its first page.
    leaf: Option<(u64, Option<Arc<Node>>)>,
    windows: [Window; 2],
}

impl Object {
    /// Its name and size.
    pub fn info(&self) -> &ObjectInfo {
        &self.info
    }

    /// The snapshot that it is in.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Reads a page; whether it has anything but zeros. For a page fault: nothing is read ahead.
    pub fn page(&self, page: u64, bytes: &mut [u8; PAGE]) -> Result<bool> {
        let mut reader = self.lock();
        let read = self.child(&mut reader, page).and_then(|child| {
            if let Some(child) = &child {
                let window = &mut reader.windows[0];
                self.snapshot.inner.page(child, window, bytes)?;
            }
            Ok(child)
        });
        match read.map_err(|fault| self.corrupt(page, fault))? {
            Some(child) => Ok(child.digest != hash::zero_page()),
            None => {
                drop(reader);
                self.below(page, std::slice::from_mut(bytes))?;
                Ok(self.image_digest(page)?.is_some())
            }
        }
    }

    /// Reads pages that are not in the tree.
    fn below(&self, first: u64, pages: &mut [[u8; PAGE]]) -> Result<()> {
        match &self.info.image {
            Some(image) => self.snapshot.inner.image(image)?.pages(first, pages),
            None => {
                pages.as_flattened_mut().fill(0);
                Ok(())
            }
        }
    }

    /// What a page is that is not in the tree: `None` if it is zero.
    fn image_digest(&self, page: u64) -> Result<Option<Digest>> {
        match &self.info.image {
            Some(image) => self.snapshot.inner.image_list(image)?.digest(page),
            None => Ok(None),
        }
    }

    /// What a page is: `None` if it is zero.
    pub(crate) fn digest(&self, page: u64) -> Result<Option<Digest>> {
        let child = self.child(&mut self.lock(), page);
        match child.map_err(|fault| self.corrupt(page, fault))? {
            Some(child) => Ok(Some(child.digest).filter(|digest| *digest != hash::zero_page())),
            None => self.image_digest(page),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads `bytes` at `offset`, in pages that are read ahead.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.info.len) {
            return Err(Error::Range {
                what: self.info.name.clone(),
                offset,
                len: bytes.len() as u64,
                size: self.info.len,
            });
        }
        let mut page = offset / PAGE as u64;
        // In a page, it is less than a page.
        let skip = usize::try_from(offset % PAGE as u64).unwrap_or(0);
        let head = if skip == 0 {
            0
        } else {
            (PAGE - skip).min(bytes.len())
        };
        let (head, rest) = bytes.split_at_mut(head);
        if !head.is_empty() {
            let mut whole = [0; PAGE];
            self.page(page, &mut whole)?;
            head.copy_from_slice(&whole[skip..skip + head.len()]);
            page += 1;
        }
        let (pages, tail) = rest.as_chunks_mut::<PAGE>();
        for group in pages.chunks_mut(GROUP) {
            self.group(page, group)?;
            page += group.len() as u64;
        }
        if !tail.is_empty() {
            let mut whole = [0; PAGE];
            self.page(page, &mut whole)?;
            tail.copy_from_slice(&whole[..tail.len()]);
        }
        Ok(())
    }

    /// Reads pages into their places and hashes them together there.
    fn group(&self, first: u64, pages: &mut [[u8; PAGE]]) -> Result<()> {
        let mut reader = self.lock();
        let mut absent: Vec<usize> = Vec::new();
        let mut wanted: Vec<(usize, Child)> = Vec::with_capacity(GROUP);
        let mut again: Vec<(usize, Child)> = Vec::new();
        for (at, bytes) in pages.iter_mut().enumerate() {
            let page = first + at as u64;
            let child = self.child(&mut reader, page);
            let Some(child) = child.map_err(|fault| self.corrupt(page, fault))? else {
                absent.push(at);
                continue;
            };
            let window = &mut reader.windows[1];
            let segments = &self.snapshot.inner.segments;
            match segments.page_unhashed(child.location, &child.digest, window, bytes) {
                Ok(()) => wanted.push((at, child)),
                Err(_) => again.push((at, child)),
            }
        }
        let refs: Vec<&[u8; PAGE]> = wanted.iter().map(|(at, _)| &pages[*at]).collect();
        let digests: Vec<Digest> = hash::pages(&refs);
        let wrong = wanted.iter().zip(digests);
        let wrong = wrong.filter(|((_, child), digest)| child.digest != *digest);
        again.extend(wrong.map(|(wanted, _)| *wanted));
        // Moved, perhaps: the index knows. If not, this says what is wrong.
        for (at, child) in again {
            let window = &mut reader.windows[0];
            let read = self.snapshot.inner.page(&child, window, &mut pages[at]);
            read.map_err(|fault| self.corrupt(first + at as u64, fault))?;
        }
        drop(reader);
        for run in absent.chunk_by(|a, b| a + 1 == *b) {
            let pages = &mut pages[run[0]..run[0] + run.len()];
            self.below(first + run[0] as u64, pages)?;
        }
        Ok(())
    }

    /// Pages that have anything but zeros, in order, from `from` on and at most `limit` of them: what a restore
    /// fetches.
    pub fn occupied(&self, from: u64, limit: usize) -> Result<Vec<u64>> {
        let Some(image) = &self.info.image else {
            return self.stored(from, limit);
        };
        let end = self.snapshot.inner.image_list(image)?.pages();
        let mut found = Vec::new();
        let mut page = from;
        while page < end && found.len() < limit {
            if self.digest(page)?.is_some() {
                found.push(page);
            }
            page += 1;
        }
        // No page of zeros is stored behind the image's end.
        found.extend(self.stored(page, limit - found.len())?);
        Ok(found)
    }

    /// Pages that are in the store, in order.
    pub(crate) fn stored(&self, from: u64, limit: usize) -> Result<Vec<u64>> {
        let mut reader = self.lock();
        let mut found = Vec::new();
        let mut page = from;
        while page < tree::pages(self.info.len) && found.len() < limit {
            let leaf = self.leaf(&mut reader, page);
            let (first, leaf) = leaf.map_err(|fault| self.corrupt(page, fault))?;
            let slots = leaf.iter().flat_map(|leaf| leaf.children());
            let pages = slots.map(|(slot, _)| first + slot as u64);
            found.extend(pages.filter(|found| *found >= page));
            page = first + FANOUT as u64;
        }
        found.truncate(limit);
        Ok(found)
    }

    fn child(&self, reader: &mut Reader, page: u64) -> Result<Option<Child>, Fault> {
        let (first, leaf) = self.leaf(reader, page)?;
        let slot = usize::try_from(page - first).unwrap_or(FANOUT);
        Ok(leaf.and_then(|leaf| leaf.child(slot).copied()))
    }

    /// The leaf over a page, with its first page.
    fn leaf(&self, reader: &mut Reader, page: u64) -> Result<(u64, Option<Arc<Node>>), Fault> {
        let first = page - page % FANOUT as u64;
        if let Some((at, leaf)) = &reader.leaf
            && *at == first
        {
            return Ok((first, leaf.clone()));
        }
        let leaf = self.descend(first, &mut reader.windows[0])?;
        reader.leaf = Some((first, leaf.clone()));
        Ok((first, leaf))
    }

    fn descend(&self, page: u64, window: &mut Window) -> Result<Option<Arc<Node>>, Fault> {
        let Some(root) = self.info.tree() else {
            return Ok(None);
        };
        let mut child = root.child;
        let mut level = root.level;
        loop {
            let node = self.snapshot.inner.cached(&child, level, window)?;
            if level == 0 {
                return Ok(Some(node));
            }
            let index = page >> (FANOUT_BITS * u32::from(level));
            let slot = usize::try_from(index % FANOUT as u64).unwrap_or(0);
            let Some(next) = node.child(slot) else {
                return Ok(None);
            };
            child = *next;
            level -= 1;
        }
    }

    fn corrupt(&self, page: u64, fault: Fault) -> Error {
        corrupt(
            self.snapshot.info.id,
            &self.info.name,
            Failed { page, fault },
        )
    }
}
