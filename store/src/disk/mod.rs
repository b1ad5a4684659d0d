//! Disks as layers: what a snapshot has, and what was written since.

mod base;
mod layer;
mod manage;
mod stack;

use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

pub use self::base::Base;
use self::base::Ground;
pub(crate) use self::layer::{Layer, Place, name as layer_name, number as layer_number};
use self::stack::Stack;
use crate::PAGE;
use crate::error::{Error, Result};
use crate::hash::Digest;
use crate::index::View;
use crate::record;
use crate::store::Inner;
use crate::tree::Root;

/// Something that has blocks.
pub trait BlockDevice: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;

    /// Reads any bytes.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()>;

    /// Writes any bytes. They are durable after [`BlockDevice::flush`].
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Makes all that was written before durable.
    fn flush(&self) -> Result<()>;

    /// Makes bytes zero: whole blocks without writing them.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;
}

/// What the index has of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub len: u64,
    /// Snapshot and object that it stands on.
    pub base: Option<(u64, String)>,
    /// Or the image. Neither is zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Digest>,
    /// The oldest first.
    layers: Vec<u64>,
}

impl DiskInfo {
    pub(crate) fn unseal(name: &str, bytes: &[u8]) -> Result<Self> {
        record::unseal(&|| format!("disk {name:?}"), bytes)
    }

    pub(crate) fn all(view: &View) -> Result<Vec<Self>> {
        let all = view.disks()?.into_iter();
        all.map(|(name, bytes)| Self::unseal(&name, &bytes))
            .collect()
    }

    pub(crate) fn layers(&self) -> &[u64] {
        &self.layers
    }

    fn blocks(&self) -> u64 {
        self.len.div_ceil(PAGE as u64)
    }
}

/// A disk that is open. Threads may share it.
pub struct Disk {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Arc<Inner>,
    name: String,
    len: u64,
    stack: RwLock<Stack>,
}

/// The state of a disk at one instant, for a snapshot.
pub struct Frozen {
    shared: Arc<Shared>,
    layers: Vec<Arc<Layer>>,
    root: (Option<Root>, Option<Digest>),
}

impl Disk {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Makes the layer that the next [`Disk::freeze`] goes on in. For before the guest is stopped.
    pub fn prepare(&self) -> Result<()> {
        self.shared.prepare()
    }

    /// Freezes what the disk is now and goes on in a new layer. After [`Disk::prepare`] this touches no disk.
    pub fn freeze(&self) -> Result<Frozen> {
        let shared = &self.shared;
        shared.prepare()?;
        let mut stack = shared.write();
        if let Some(spare) = stack.spare.take() {
            let active = std::mem::replace(&mut stack.active, spare);
            stack.frozen.push(active);
        }
        Ok(Frozen {
            shared: Arc::clone(shared),
            layers: stack.frozen.clone(),
            root: stack.base.root(),
        })
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > self.shared.len) {
            return Err(Error::Range {
                what: format!("disk {:?}", self.shared.name),
                offset,
                len,
                size: self.shared.len,
            });
        }
        Ok(())
    }
}

impl BlockDevice for Disk {
    fn size(&self) -> u64 {
        self.shared.len
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.check(offset, bytes.len() as u64)?;
        self.shared.read().read(offset, bytes)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len() as u64)?;
        let stack = self.shared.read();
        let skip = usize::try_from(offset % PAGE as u64).unwrap_or(0);
        let head = if skip == 0 {
            0
        } else {
            (PAGE - skip).min(bytes.len())
        };
        let (head, rest) = bytes.split_at(head);
        let (whole, tail) = rest.as_chunks::<PAGE>();
        let mut block = offset / PAGE as u64;
        if !head.is_empty() {
            let below = &mut |page: &mut [u8; PAGE]| stack.below(block, page);
            stack.active.write_part(block, skip, head, below)?;
            block += 1;
        }
        if !whole.is_empty() {
            stack.active.write_whole(block, whole)?;
            block += whole.len() as u64;
        }
        if !tail.is_empty() {
            let below = &mut |page: &mut [u8; PAGE]| stack.below(block, page);
            stack.active.write_part(block, 0, tail, below)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let stack = self.shared.read();
        // A frozen one may have what was not flushed before it was frozen.
        stack.frozen.iter().try_for_each(|layer| layer.flush())?;
        stack.active.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len)?;
        let page = PAGE as u64;
        let end = offset + len;
        let first = offset.next_multiple_of(page).min(end);
        let last = (end - end % page).max(first);
        let zeros = [0; PAGE];
        let part = |len: u64| &zeros[..usize::try_from(len).unwrap_or(PAGE).min(PAGE)];
        self.write_at(offset, part(first - offset))?;
        self.shared.read().active.zero(first / page..last / page);
        self.write_at(last, part(end - last))
    }
}

impl Shared {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Stack> {
        self.stack.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Stack> {
        self.stack.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.inner.use_().disks.remove(&self.name);
    }
}

impl Frozen {
    pub(crate) fn len(&self) -> u64 {
        self.shared.len
    }

    /// The tree that it stands on, and the image below that.
    pub(crate) fn root(&self) -> (Option<Root>, Option<Digest>) {
        self.root
    }

    /// Blocks that differ from the base.
    pub(crate) fn changed(&self) -> Vec<u64> {
        let layers = self.layers.iter();
        let mut changed: Vec<u64> = layers.flat_map(|layer| layer.changed()).collect();
        changed.sort_unstable();
        changed.dedup();
        changed
    }

    /// A block as it was.
    pub(crate) fn block(&self, block: u64, page: &mut [u8; PAGE]) -> Result<()> {
        for layer in self.layers.iter().rev() {
            match layer.place(block) {
                Place::Here => return layer.read(block, 0, page),
                Place::Zero => break,
                Place::Below => {}
            }
        }
        page.fill(0);
        Ok(())
    }
}
