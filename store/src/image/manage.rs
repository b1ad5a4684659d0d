//! Adopting, attaching and forgetting images.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard};

use super::list::{self, Head};
use super::{Image, ImageInfo, List, Open, name};
use crate::PAGE;
use crate::disk::DiskInfo;
use crate::error::{Error, Result};
use crate::hash::{Digest, DigestMap};
use crate::index::Counter;
use crate::medium::MediumFile;
use crate::record;
use crate::snapshot;
use crate::store::{Inner, Store};

/// The list of an image's digests, for [`Store::adopt_with`]: so that who makes an image can give the list along with
/// it, and nobody needs to read it all. It has about 8 bytes per KiB of image. `progress` gets the bytes that were read,
/// and all.
pub fn image_list(image: &dyn Image, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut put = |offset: u64, group: &[u8; PAGE]| {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        bytes.resize(at, 0);
        bytes.extend_from_slice(group);
        Ok(())
    };
    let head = list::build(image, progress, &mut put)?;
    bytes.resize(usize::try_from(list::size(head.len)).unwrap_or(0), 0);
    let front = head.encode();
    bytes[..front.len()].copy_from_slice(&front);
    Ok(bytes)
}

fn size(image: &dyn Image) -> Result<u64> {
    image.size().map_err(Error::io("read the image's size"))
}

/// Writes a list, all of it durable.
struct Draft<'a> {
    inner: &'a Inner,
    number: u64,
    file: Arc<dyn MediumFile>,
    kept: bool,
}

impl<'a> Draft<'a> {
    fn new(inner: &'a Inner) -> Result<Self> {
        let number = {
            let mut use_ = inner.use_();
            use_.next_image += 1;
            use_.next_image - 1
        };
        let name = name(number);
        let file = (inner.medium.create(&name)).map_err(Error::io(format!("create {name}")))?;
        let kept = false;
        Ok(Self {
            inner,
            number,
            file,
            kept,
        })
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let doing = || Error::io(format!("write {}", name(self.number)));
        self.file.write_at(offset, bytes).map_err(doing())
    }

    fn commit(mut self, head: Head, image: Arc<dyn Image>) -> Result<ImageInfo> {
        let inner = self.inner;
        self.put(0, &head.encode())?;
        let doing = || Error::io(format!("make {} durable", name(self.number)));
        // Holes at the end are part of it.
        (self.file.set_size(list::size(head.len))).map_err(doing())?;
        self.file.sync().map_err(doing())?;
        inner.medium.sync_names().map_err(doing())?;
        inner.raise_format()?;
        let (id, len, number) = (head.id, head.len, self.number);
        let file = number;
        let info = ImageInfo { id, len, file };
        let list = Arc::new(List::new(head, Arc::clone(&self.file)));
        // If this fails, it may be durable all the same.
        self.kept = true;
        let old = inner.index.change("adopt an image", |change| {
            let old = change.image(&id)?;
            change.set_image(&id, Some(&record::seal(&info)))?;
            change.advance(Counter::Image, number + 1)?;
            // Before anybody can collect it.
            inner.images.lock().insert(id, Open::new(list, image));
            Ok(old)
        })?;
        // The new list may be in place of a damaged one.
        if let Some(old) = old.and_then(|old| ImageInfo::unseal(&id, &old).ok()) {
            inner.remove_lists(&inner.images.lock(), &[old]);
        }
        Ok(info)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // What stays is removed when the store is opened next.
            let _ = self.inner.medium.remove(&name(self.number));
        }
    }
}

impl Store {
    /// Makes an image known, so that disks can stand on it: reads it once and keeps the digest of each of its pages, but
    /// nothing of the image, which has to stay as it is. The same image is the same id, whenever it is adopted. It is
    /// attached until the store is closed. `progress` gets the bytes that were read, and all.
    pub fn adopt(
        &self,
        image: Arc<dyn Image>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<ImageInfo> {
        let inner = &self.0;
        inner.writable("adopting an image")?;
        inner.index.usable()?;
        let draft = Draft::new(inner)?;
        let head = list::build(&*image, progress, &mut |at, group| draft.put(at, group))?;
        draft.commit(head, image)
    }

    /// Adopts an image by its list ([`image_list`]), without reading it: if the list is not this image's, reading from it
    /// fails. A list that is damaged is refused.
    pub fn adopt_with(&self, image: Arc<dyn Image>, list: &[u8]) -> Result<ImageInfo> {
        let inner = &self.0;
        let (head, groups) = Head::parse(list).map_err(|why| Error::Unusable {
            what: "The list of the image's digests".to_owned(),
            why,
        })?;
        let found = size(&*image)?;
        if found != head.len {
            return Err(Error::OtherImage {
                image: head.id.to_string(),
                found,
                needed: head.len,
            });
        }
        match self.attach(&head.id, Arc::clone(&image)) {
            Ok(info) => return Ok(info),
            // Its list may be damaged, and this is a good one.
            Err(Error::NoImage { .. } | Error::Partial { .. } | Error::Foreign { .. }) => {}
            Err(error) => return Err(error),
        }
        inner.writable("adopting an image")?;
        inner.index.usable()?;
        let draft = Draft::new(inner)?;
        for (at, group) in groups {
            draft.put(at, group)?;
        }
        draft.commit(head, image)
    }

    /// Says where an adopted image is, each time the store is opened. One of another length is refused; its pages are
    /// checked when they are read. Where it was before no longer counts.
    pub fn attach(&self, id: &Digest, image: Arc<dyn Image>) -> Result<ImageInfo> {
        let inner = &self.0;
        let list = inner.image_list(id)?;
        let found = size(&*image)?;
        if found != list.len() {
            return Err(Error::OtherImage {
                image: id.to_string(),
                found,
                needed: list.len(),
            });
        }
        let mut open = inner.images.lock();
        // It may have been forgotten meanwhile: from here on it is not.
        let record = inner.index.view()?.image(id)?;
        let info = ImageInfo::unseal(id, &record.ok_or_else(|| super::unknown(id))?)?;
        open.insert(*id, Open::new(list, image));
        Ok(info)
    }

    /// Lets go of an image's file. What stands on it cannot be read until it is attached again; an image on which
    /// nothing stands is forgotten with the next [`Store::collect`].
    pub fn detach(&self, id: &Digest) {
        if let Some(open) = self.0.images.lock().get_mut(id) {
            open.image = None;
        }
    }

    /// All adopted images, in order of their ids, and whether each is attached.
    pub fn images(&self) -> Result<Vec<(ImageInfo, bool)>> {
        let all = ImageInfo::all(&self.0.index.view()?)?;
        let open = self.0.images.lock();
        let attached = |id: &Digest| open.get(id).is_some_and(|open| open.image.is_some());
        let all = all.into_iter();
        Ok(all.map(|info| (info.clone(), attached(&info.id))).collect())
    }
}

impl Inner {
    /// After their records are gone, or name others.
    fn remove_lists(&self, _open: &MutexGuard<'_, DigestMap<Open>>, infos: &[ImageInfo]) {
        for info in infos {
            // What stays is removed when the store is opened next.
            let _ = self.medium.remove(&name(info.file));
        }
        let _ = self.medium.sync_names();
    }

    /// Images that no disk and no snapshot stands on, and that nobody has attached.
    fn unused_images(&self, open: &DigestMap<Open>) -> Result<Vec<ImageInfo>> {
        let view = &self.index.view()?;
        let all = ImageInfo::all(view)?;
        if all.is_empty() {
            return Ok(all);
        }
        let disks = DiskInfo::all(view)?;
        let snapshots = snapshot::list(view)?;
        let objects = snapshots.iter().flat_map(|info| &info.objects);
        let objects = objects.filter_map(|object| object.image);
        let used: HashSet<Digest> = objects
            .chain(disks.iter().filter_map(|disk| disk.image))
            .collect();
        let idle = |info: &ImageInfo| {
            let attached = open.get(&info.id).is_some_and(|open| open.image.is_some());
            !attached && !used.contains(&info.id)
        };
        Ok(all.into_iter().filter(idle).collect())
    }

    /// Forgets images that are not used: how many, and the bytes of their lists. While nobody writes a snapshot.
    pub fn forget_images(&self) -> Result<(u64, u64)> {
        if self.unused_images(&self.images.lock())?.is_empty() {
            return Ok((0, 0));
        }
        let (gone, open) = self.index.change("forget images", |change| {
            // Until it is committed: who attaches one meanwhile must find that it is gone.
            let mut open = self.images.lock();
            // What is committed is what this transaction sees: there is no other.
            let unused = self.unused_images(&open)?;
            for info in &unused {
                change.set_image(&info.id, None)?;
                open.remove(&info.id);
            }
            Ok((unused, open))
        })?;
        self.remove_lists(&open, &gone);
        drop(open);
        let bytes = gone.iter().map(|info| list::size(info.len)).sum();
        Ok((gone.len() as u64, bytes))
    }
}
