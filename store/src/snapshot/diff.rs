//! Where two snapshots differ.

use std::sync::Arc;

use super::{Fetch, Object, Snapshot, corrupt, open};
use crate::PAGE;
use crate::error::Result;
use crate::store::Store;
use crate::tree::{self, Failed};

/// A range in which two snapshots differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Name of the object.
    pub object: String,
    /// Bytes from its start.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Store {
    /// Where two snapshots differ, object by object. One that only one of them has differs where it is not zero.
    pub fn diff(&self, old: u64, new: u64) -> Result<Vec<Changed>> {
        let (old, new) = (open(&self.0, old)?, open(&self.0, new)?);
        let objects = old.info().objects.iter().chain(&new.info().objects);
        let mut names: Vec<&str> = objects.map(|object| object.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let mut changed: Vec<Changed> = Vec::new();
        for name in names {
            let visit = &mut |page: u64| {
                let offset = page * PAGE as u64;
                match changed.last_mut() {
                    Some(last) if last.object == name && last.offset + last.len == offset => {
                        last.len += PAGE as u64;
                    }
                    _ => changed.push(Changed {
                        object: name.to_owned(),
                        offset,
                        len: PAGE as u64,
                    }),
                }
            };
            self.diff_object(&old, &new, name, visit)?;
        }
        Ok(changed)
    }

    /// Visits the pages in which an object differs, in order.
    fn diff_object(
        &self,
        old: &Arc<Snapshot>,
        new: &Arc<Snapshot>,
        name: &str,
        visit: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let id = new.info().id;
        let side = |snapshot: &Arc<Snapshot>| -> Result<Option<Object>> {
            let known = snapshot.info().object(name);
            known.map(|_| snapshot.object(name)).transpose()
        };
        let (old, new) = (side(old)?, side(new)?);
        let image = |side: &Option<Object>| side.as_ref().and_then(|object| object.info().image);
        // On one image, the trees say it all. On two, so they do behind these.
        let mut limit = 0;
        if image(&old) != image(&new) {
            for image in [image(&old), image(&new)].iter().flatten() {
                limit = limit.max(self.0.image_list(image)?.pages());
            }
        }
        let digest = |side: &Option<Object>, page| match side {
            Some(object) => object.digest(page),
            None => Ok(None),
        };
        for page in 0..limit {
            if digest(&old, page)? != digest(&new, page)? {
                visit(page);
            }
        }
        let tree = |side: &Option<Object>| side.as_ref().and_then(|object| object.info().tree());
        let visit = &mut |step: tree::Step<'_>| -> Result<bool, Failed> {
            if step.level.is_none() && step.page >= limit {
                visit(step.page);
            }
            Ok(true)
        };
        tree::compare(&mut Fetch::new(&self.0), tree(&old), tree(&new), visit)
            .map_err(|failed| corrupt(id, name, failed))
    }
}
