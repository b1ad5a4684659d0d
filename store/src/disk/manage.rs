//! Making, opening, freezing and removing disks: what of it is durable, and when.

use std::sync::{Arc, RwLock};

use super::{Base, Disk, DiskInfo, Frozen, Ground, Layer, Shared, Stack, layer};
use crate::error::{Error, Result};
use crate::hash::Digest;
use crate::index::{Change, Counter};
use crate::record;
use crate::store::{Inner, Store};
use crate::{PAGE, snapshot};

/// Largest disk: its maps are held in memory, two bits for each 4 KiB.
const MAX: u64 = 4 << 40;

impl Inner {
    fn new_layer(&self, len: u64) -> Result<Layer> {
        let id = {
            let mut use_ = self.use_();
            use_.next_layer += 1;
            use_.next_layer - 1
        };
        Layer::create(
            &*self.medium,
            id,
            self.superblock.id,
            len.div_ceil(PAGE as u64),
        )
    }

    fn set_disk(&self, change: &mut Change<'_>, info: &DiskInfo) -> Result<()> {
        change.advance(Counter::Layer, self.use_().next_layer)?;
        change.set_disk(&info.name, Some(&record::seal(info)))
    }

    fn remove_layers(&self, layers: &[u64]) {
        for id in layers {
            // What stays is removed when the store is opened next.
            let _ = self.medium.remove(&layer::name(*id));
        }
        let _ = self.medium.sync_names();
    }
}

/// Opens what a disk is to stand on. A snapshot is kept by this; an image must be attached, and not be cut off.
fn ground(store: &Store, info: &DiskInfo) -> Result<Ground> {
    let inner = &store.0;
    let image = |id: &Digest| -> Result<u64> {
        let len = inner.image(id)?.list.len();
        if info.len < len {
            return Err(Error::Unusable {
                what: format!("Disk {:?} of {} bytes", info.name, info.len),
                why: "the image that it is to stand on is larger",
            });
        }
        Ok(len)
    };
    match (&info.base, &info.image) {
        (Some((id, object)), _) => {
            let object = store.snapshot(*id)?.object(object)?;
            object.info().image.as_ref().map(image).transpose()?;
            Ok(Ground::Object(object))
        }
        (None, Some(id)) => Ok(Ground::Image(Arc::clone(inner), *id, image(id)?)),
        (None, None) => Ok(Ground::Zeros),
    }
}

impl Store {
    /// All disks, in order of their names.
    pub fn disks(&self) -> Result<Vec<DiskInfo>> {
        DiskInfo::all(&self.0.index.view()?)
    }

    /// Makes a disk of `len` bytes that shows an object of a snapshot, an image that is attached, or zeros. One of this
    /// name goes back to that: all that was written to it since is gone.
    pub fn create_disk(&self, name: &str, len: u64, base: impl Into<Base>) -> Result<Disk> {
        self.create_disk_on(name, len, base.into())
    }

    fn create_disk_on(&self, name: &str, len: u64, base: Base) -> Result<Disk> {
        let inner = &self.0;
        inner.writable("a disk")?;
        inner.index.usable()?;
        if name.is_empty() || name.len() > 255 || len > MAX {
            return Err(Error::Unusable {
                what: format!(
                    "Disk {:?} of {len} bytes",
                    &name[..name.floor_char_boundary(255)]
                ),
                why: "a name has 1 to 255 bytes, and a disk up to 4 TiB",
            });
        }
        self.take(name)?;
        let (base, image) = match base {
            Base::Zeros => (None, None),
            Base::Object(id, object) => (Some((id, object)), None),
            Base::Image(id) => (None, Some(id)),
        };
        let mut info = DiskInfo {
            name: name.to_owned(),
            len,
            base,
            image,
            layers: Vec::new(),
        };
        let made = (|| {
            let ground = ground(self, &info)?;
            let layer = inner.new_layer(len)?;
            info.layers.push(layer.id);
            let old = inner.index.change("make a disk", |change| {
                Inner::image_known(change, info.image.as_ref())?;
                let old = change.disk(name)?;
                inner.set_disk(change, &info)?;
                Ok(old)
            })?;
            if let Some(old) = old.and_then(|old| DiskInfo::unseal(name, &old).ok()) {
                inner.remove_layers(&old.layers);
            }
            Ok(self.disk(&info, ground, vec![Arc::new(layer)]))
        })();
        made.inspect_err(|_| {
            inner.use_().disks.remove(name);
        })
    }

    /// Opens a disk as it was left.
    pub fn open_disk(&self, name: &str) -> Result<Disk> {
        let inner = &self.0;
        inner.writable("a disk")?;
        self.take(name)?;
        let opened = (|| {
            let bytes = inner.index.view()?.disk(name)?;
            let bytes = bytes.ok_or_else(|| Error::NoDisk {
                name: name.to_owned(),
            })?;
            let info = DiskInfo::unseal(name, &bytes)?;
            let ground = ground(self, &info)?;
            let (medium, id) = (&*inner.medium, inner.superblock.id);
            let layers = info.layers.iter();
            let layers = layers.map(|layer| Layer::open(medium, *layer, id, info.blocks()));
            let layers = layers
                .map(|layer| layer.map(Arc::new))
                .collect::<Result<Vec<_>>>()?;
            if layers.is_empty() {
                return Err(Error::Record {
                    what: format!("disk {name:?}"),
                    why: "it has no layer".to_owned(),
                });
            }
            Ok(self.disk(&info, ground, layers))
        })();
        opened.inspect_err(|_| {
            inner.use_().disks.remove(name);
        })
    }

    /// Removes a disk and all that was written to it since its base.
    pub fn remove_disk(&self, name: &str) -> Result<()> {
        let inner = &self.0;
        inner.writable("removing a disk")?;
        inner.index.usable()?;
        self.take(name)?;
        let removed = inner.index.change("remove a disk", |change| {
            let bytes = change.disk(name)?.ok_or_else(|| Error::NoDisk {
                name: name.to_owned(),
            })?;
            change.set_disk(name, None)?;
            DiskInfo::unseal(name, &bytes)
        });
        inner.use_().disks.remove(name);
        inner.remove_layers(&removed?.layers);
        Ok(())
    }

    fn take(&self, name: &str) -> Result<()> {
        if self.0.use_().disks.insert(name.to_owned()) {
            return Ok(());
        }
        Err(Error::Busy {
            what: format!("Disk {name:?}"),
            user: "a guest".to_owned(),
        })
    }

    fn disk(&self, info: &DiskInfo, base: Ground, mut layers: Vec<Arc<Layer>>) -> Disk {
        let active = layers.remove(layers.len() - 1);
        let stack = RwLock::new(Stack {
            base,
            frozen: layers,
            active,
            spare: None,
        });
        Disk {
            shared: Arc::new(Shared {
                inner: Arc::clone(&self.0),
                name: info.name.clone(),
                len: info.len,
                stack,
            }),
        }
    }
}

impl Shared {
    /// Makes a spare layer, on top of the others already: an empty one changes nothing, whoever opens the disk next.
    pub fn prepare(&self) -> Result<()> {
        if self.read().spare.is_some() {
            return Ok(());
        }
        let layer = self.inner.new_layer(self.len)?;
        self.inner.index.change("prepare a layer", |change| {
            let mut info = self.info(change)?;
            info.layers.push(layer.id);
            self.inner.set_disk(change, &info)
        })?;
        self.write().spare = Some(Arc::new(layer));
        Ok(())
    }

    fn info(&self, change: &Change<'_>) -> Result<DiskInfo> {
        let bytes = change.disk(&self.name)?.ok_or_else(|| Error::NoDisk {
            name: self.name.clone(),
        })?;
        DiskInfo::unseal(&self.name, &bytes)
    }
}

impl Frozen {
    /// In the transaction that commits the snapshot: from then on the disk stands on it. Not if a later one has come
    /// first.
    pub(crate) fn commit(&self, change: &mut Change<'_>, id: u64, object: &str) -> Result<()> {
        let mut info = self.shared.info(change)?;
        if !self
            .layers
            .last()
            .is_some_and(|last| info.layers.contains(&last.id))
        {
            return Ok(());
        }
        info.layers
            .retain(|layer| self.layers.iter().all(|frozen| frozen.id != *layer));
        info.base = Some((id, object.to_owned()));
        info.image = None;
        self.shared.inner.set_disk(change, &info)
    }

    /// After that transaction: the layers that are in the snapshot go. If the snapshot cannot be opened, the disk goes on
    /// as it is, which shows the same.
    pub(crate) fn settle(&self, id: u64, object: &str) {
        let base = snapshot::open(&self.shared.inner, id);
        let Ok(base) = base.and_then(|snapshot| snapshot.object(object)) else {
            return;
        };
        let mut stack = self.shared.write();
        let last = self.layers.last().map(|layer| layer.id);
        if !stack.frozen.iter().any(|layer| Some(layer.id) == last) {
            return;
        }
        let old = std::mem::replace(&mut stack.base, Ground::Object(base));
        let ours = |layer: &Arc<Layer>| self.layers.iter().any(|frozen| frozen.id == layer.id);
        stack.frozen.retain(|layer| !ours(layer));
        drop(stack);
        drop(old);
        let ids: Vec<u64> = self.layers.iter().map(|layer| layer.id).collect();
        self.shared.inner.remove_layers(&ids);
    }
}
