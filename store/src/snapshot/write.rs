//! Writing a snapshot: pages in any order, then one commit.

use std::sync::Arc;

use super::chunks::Chunks;
use super::{Info, ObjectInfo, Spec, count, info};
use crate::PAGE;
use crate::codec::{Compression, Encoder};
use crate::disk::Frozen;
use crate::error::{Error, Result};
use crate::hash::{self, Digest};
use crate::image::List;
use crate::index::{Counter, Counts, View};
use crate::record;
use crate::store::{Inner, Store};
use crate::tree::{self, Edit, Root};

/// Longest name of an object, bytes.
const NAME: usize = 255;
/// Objects of one snapshot.
const OBJECTS: usize = 1024;

/// An object of a snapshot that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectId(usize);

pub(super) struct Draft {
    name: String,
    len: u64,
    old: Option<Root>,
    /// What it is where it has no pages.
    image: Option<Arc<List>>,
    pub(super) edits: Vec<Edit>,
}

impl Draft {
    /// What a page is without being in the tree: `None` if it is zero. A page that is this is not stored, so that equal
    /// objects have equal trees.
    pub(super) fn below(&self, page: u64) -> Result<Option<Digest>> {
        match &self.image {
            Some(image) => image.digest(page),
            None => Ok(None),
        }
    }
}

/// A snapshot that is being written. Nothing of it is visible before [`Writer::commit`], and nothing remains if it is
/// dropped.
pub struct Writer {
    inner: Arc<Inner>,
    spec: Spec,
    parent: Option<Info>,
    objects: Vec<Draft>,
    encoder: Encoder,
    chunks: Chunks,
    disks: Vec<(Arc<Frozen>, String)>,
    committed: bool,
}

impl Store {
    /// Begins a snapshot.
    pub fn begin(&self, spec: Spec) -> Result<Writer> {
        self.begin_with(spec, self.0.options.compression)
    }

    /// Begins a snapshot whose pages are compressed, or not.
    pub fn begin_with(&self, spec: Spec, compression: Compression) -> Result<Writer> {
        let inner = Arc::clone(&self.0);
        inner.writable("a snapshot")?;
        inner.index.usable()?;
        let mut use_ = inner.use_();
        if use_.deleting {
            return Err(Error::Busy {
                what: "The store".to_owned(),
                user: "a deletion".to_owned(),
            });
        }
        use_.writers += 1;
        drop(use_);
        let begin = || -> Result<(View, Option<Info>)> {
            let view = inner.index.view()?;
            let parent = spec.parent.map(|id| info(&view, id)).transpose()?;
            Ok((view, parent))
        };
        let (view, parent) = begin().inspect_err(|_| inner.use_().writers -= 1)?;
        Ok(Writer {
            chunks: Chunks::new(Arc::clone(&inner), view),
            inner,
            spec,
            parent,
            objects: Vec::new(),
            encoder: Encoder::new(compression),
            disks: Vec::new(),
            committed: false,
        })
    }
}

impl Writer {
    /// An object of `len` bytes, which is what the parent has under this name until pages are written. What is behind
    /// the parent's end is zero.
    pub fn object(&mut self, name: &str, len: u64) -> Result<ObjectId> {
        let parent = self.parent.as_ref();
        let old = parent.and_then(|parent| parent.object(name));
        let tree = old.and_then(ObjectInfo::tree);
        let image = old.and_then(|old| old.image);
        self.declare(name, len, tree, image)
    }

    /// An object of `len` bytes of zeros, whatever the parent has.
    pub fn fresh(&mut self, name: &str, len: u64) -> Result<ObjectId> {
        self.declare(name, len, None, None)
    }

    /// An object of `len` bytes that is as an image until pages are written, whatever the parent has.
    pub(crate) fn fresh_on(
        &mut self,
        name: &str,
        len: u64,
        image: Option<Digest>,
    ) -> Result<ObjectId> {
        self.declare(name, len, None, image)
    }

    /// An object that holds these bytes.
    pub fn blob(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let object = self.fresh(name, bytes.len() as u64)?;
        let whole = bytes.len() - bytes.len() % PAGE;
        self.write(object, 0, &bytes[..whole])?;
        if whole < bytes.len() {
            let mut page = [0; PAGE];
            page[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.write(object, whole as u64, &page)?;
        }
        Ok(())
    }

    /// A disk as it was when it was frozen. With the commit the disk stands on this snapshot, and the frozen layers go.
    pub fn disk(&mut self, name: &str, frozen: &Arc<Frozen>) -> Result<()> {
        let (root, image) = frozen.root();
        let object = self.declare(name, frozen.len(), root, image)?;
        let mut page = [0; PAGE];
        for block in frozen.changed() {
            frozen.block(block, &mut page)?;
            self.write(object, block * PAGE as u64, &page)?;
        }
        self.disks.push((Arc::clone(frozen), name.to_owned()));
        Ok(())
    }

    fn declare(
        &mut self,
        name: &str,
        len: u64,
        old: Option<Root>,
        image: Option<Digest>,
    ) -> Result<ObjectId> {
        let unusable = |why| Error::Unusable {
            what: format!(
                "Object {:?} of {len} bytes",
                &name[..name.floor_char_boundary(NAME)]
            ),
            why,
        };
        if name.is_empty() || name.len() > NAME {
            return Err(unusable("a name has 1 to 255 bytes"));
        }
        if len > tree::MAX_LEN {
            return Err(unusable("it is larger than 256 TiB"));
        }
        if self.objects.len() >= OBJECTS {
            return Err(unusable("the snapshot has 1024 objects already"));
        }
        if self.objects.iter().any(|object| object.name == name) {
            return Err(unusable("the snapshot has one of this name already"));
        }
        let image = image
            .map(|image| self.inner.image_list(&image))
            .transpose()?;
        if image.as_ref().is_some_and(|image| len < image.len()) {
            // What a longer one shows behind its end would not be zeros.
            return Err(unusable("the image that it stands on is larger"));
        }
        self.objects.push(Draft {
            name: name.to_owned(),
            len,
            old,
            image,
            edits: Vec::new(),
        });
        Ok(ObjectId(self.objects.len() - 1))
    }

    /// Writes whole pages at `offset`, which is a page's. The last page of an object is given whole, zero behind the
    /// end. The last write of a page counts.
    pub fn write(&mut self, object: ObjectId, offset: u64, data: &[u8]) -> Result<()> {
        let draft = &mut self.objects[object.0];
        let (pages, rest) = data.as_chunks::<PAGE>();
        let end = offset.checked_add(data.len() as u64);
        let size = tree::pages(draft.len) * PAGE as u64;
        if !rest.is_empty()
            || !offset.is_multiple_of(PAGE as u64)
            || end.is_none_or(|end| end > size)
        {
            return Err(Error::Range {
                what: draft.name.clone(),
                offset,
                len: data.len() as u64,
                size: draft.len,
            });
        }
        let first = offset / PAGE as u64;
        let mut group: Vec<(u64, &[u8; PAGE])> = Vec::with_capacity(hash::LANES);
        for (page, bytes) in (first..).zip(pages) {
            if hash::is_zero(bytes) && draft.below(page)?.is_none() {
                draft.edits.push(Edit { page, child: None });
                continue;
            }
            group.push((page, bytes));
            if group.len() == hash::LANES {
                self.chunks.pages(&mut self.encoder, draft, &group)?;
                group.clear();
            }
        }
        self.chunks.pages(&mut self.encoder, draft, &group)
    }

    /// Makes the snapshot visible, whole and durable. It is known as this from then on.
    pub fn commit(self) -> Result<Info> {
        self.commit_if(&mut |_| Ok(()))
    }

    /// Commits if `check` agrees with what it is going to be.
    pub(crate) fn commit_if(mut self, check: &mut dyn FnMut(&Info) -> Result<()>) -> Result<Info> {
        let id = {
            let mut use_ = self.inner.use_();
            use_.next_snapshot += 1;
            use_.next_snapshot - 1
        };
        let mut objects = Vec::new();
        for mut draft in std::mem::take(&mut self.objects) {
            draft.edits.sort_by_key(|edit| edit.page);
            let root = tree::update(&mut self.chunks, draft.old, &draft.edits, draft.len)?;
            let image = draft.image.map(|image| image.id());
            objects.push(ObjectInfo::new(draft.name, draft.len, root, image));
        }
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        let spec = std::mem::take(&mut self.spec);
        let mut info = Info {
            id,
            guest: spec.guest,
            parent: spec.parent,
            time_ms: spec.time_ms,
            labels: spec.labels,
            good: false,
            added: 0,
            objects,
        };
        check(&info)?;
        let mut counts = Counts::default();
        count(
            &mut self.chunks,
            self.parent.as_ref(),
            &info,
            1,
            &mut counts,
        )?;
        self.chunks.finish()?;
        let added = self
            .chunks
            .new_ones()
            .values()
            .map(|(_, len)| u64::from(*len));
        info.added = added.sum();
        let (chunks, disks) = (&self.chunks, &self.disks);
        let next = u64::from(self.inner.use_().next_segment);
        // If this fails, it may be durable all the same: what it speaks of stays until the store is opened again.
        self.committed = true;
        self.inner.index.change("commit a snapshot", |change| {
            for &(segment, len) in chunks.done() {
                change.set_segment_len(segment, u64::from(len))?;
            }
            change.count(counts, chunks.new_ones())?;
            for object in &info.objects {
                Inner::image_known(change, object.image.as_ref())?;
            }
            change.set_snapshot(id, Some(&record::seal(&info)))?;
            for (frozen, object) in disks {
                frozen.commit(change, id, object)?;
            }
            change.advance(Counter::Snapshot, id + 1)?;
            change.advance(Counter::Segment, next)
        })?;
        for (frozen, object) in disks {
            frozen.settle(id, object);
        }
        Ok(info)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.chunks.release(self.committed);
        self.inner.use_().writers -= 1;
    }
}
