//! Deleting a snapshot: what only it has loses its references; its children get its parent.

use std::sync::Arc;

use super::{Fetch, Info, count, list};
use crate::disk::DiskInfo;
use crate::error::{Error, Result};
use crate::index::Counts;
use crate::record;
use crate::store::{Inner, Store};

/// Keeps writers away while chunks may go.
pub(crate) struct Deleting(Arc<Inner>);

impl Deleting {
    pub fn begin(inner: &Arc<Inner>, snapshot: Option<u64>) -> Result<Self> {
        let mut use_ = inner.use_();
        let user = if use_.writers > 0 {
            "a snapshot that is being written"
        } else if use_.deleting {
            "another deletion"
        } else {
            use_.deleting = true;
            use_.going = snapshot;
            return Ok(Self(Arc::clone(inner)));
        };
        Err(Error::Busy {
            what: "The store".to_owned(),
            user: user.to_owned(),
        })
    }
}

impl Drop for Deleting {
    fn drop(&mut self) {
        let mut use_ = self.0.use_();
        use_.deleting = false;
        use_.going = None;
    }
}

impl Store {
    /// Deletes a snapshot. Its bytes are free after garbage has been collected.
    pub fn delete(&self, id: u64) -> Result<()> {
        let inner = &self.0;
        inner.writable("deleting a snapshot")?;
        inner.index.usable()?;
        let _deleting = Deleting::begin(inner, Some(id))?;
        if inner.use_().open.contains_key(&id) {
            return Err(Error::Busy {
                what: format!("Snapshot {id}"),
                user: "a reader".to_owned(),
            });
        }
        let view = inner.index.view()?;
        let mut disks = DiskInfo::all(&view)?.into_iter();
        if let Some(disk) = disks.find(|disk| disk.base.as_ref().is_some_and(|base| base.0 == id)) {
            return Err(Error::Busy {
                what: format!("Snapshot {id}"),
                user: format!("disk {:?}, which stands on it", disk.name),
            });
        }
        let all = list(&view)?;
        drop(view);
        let find = |id| all.iter().find(|info: &&Info| info.id == id);
        let gone = find(id).ok_or(Error::NoSnapshot { id })?;
        let parent = gone.parent.and_then(find);
        let children = all.iter().filter(|info| info.parent == Some(id));

        let mut counts = Counts::default();
        let nodes = &mut Fetch::new(inner);
        count(nodes, parent, gone, -1, &mut counts)?;
        let mut orphans = Vec::new();
        for child in children {
            count(nodes, Some(gone), child, -1, &mut counts)?;
            count(nodes, parent, child, 1, &mut counts)?;
            orphans.push(Info {
                parent: parent.map(|parent| parent.id),
                ..child.clone()
            });
        }
        inner.index.change("delete a snapshot", |change| {
            change.count(counts, &Default::default())?;
            change.set_snapshot(id, None)?;
            for orphan in &orphans {
                change.set_snapshot(orphan.id, Some(&record::seal(orphan)))?;
            }
            let Some(pages) = change.working_set(id)? else {
                return Ok(());
            };
            for orphan in &orphans {
                if change.working_set(orphan.id)?.is_none() {
                    change.set_working_set(orphan.id, Some(&pages))?;
                }
            }
            change.set_working_set(id, None)
        })
    }
}
