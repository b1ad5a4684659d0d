//! What opening a store does with what a power cut may have left.

use std::collections::{HashMap, HashSet};

use super::Inner;
use crate::disk::{self, DiskInfo};
use crate::error::{Error, Result};
use crate::image::{self, ImageInfo};
use crate::index::Counter;
use crate::segment;

impl Inner {
    /// Checks that all that was committed is there, and removes the rest.
    pub(super) fn recover(&self, names: &[String]) -> Result<()> {
        let view = self.index.view()?;
        let committed: HashMap<u32, u64> = (view.segments()?.into_iter())
            .map(|(segment, len, _)| (segment, len))
            .collect();
        let mut next = view.counter(Counter::Segment)?;
        for (&segment, &len) in &committed {
            let size = self.segments.check(segment, len)?;
            if size > len && !self.medium.read_only() {
                let name = segment::name(segment);
                let file = self.segments.file(segment);
                (file.and_then(|file| file.set_size(len)))
                    .map_err(Error::io(format!("cut what was not committed off {name}")))?;
            }
            next = next.max(u64::from(segment) + 1);
        }
        if !self.medium.read_only() {
            let unknown = names.iter().filter_map(|name| segment::number(name));
            for segment in unknown.filter(|segment| !committed.contains_key(segment)) {
                self.segments.remove(segment)?;
            }
        }
        let disks = DiskInfo::all(&view)?;
        let layers: HashSet<u64> = disks
            .iter()
            .flat_map(|disk| disk.layers())
            .copied()
            .collect();
        for name in layers.iter().map(|layer| disk::layer_name(*layer)) {
            if !names.contains(&name) {
                return Err(Error::Partial {
                    name,
                    found: 0,
                    needed: 1,
                });
            }
        }
        if !self.medium.read_only() {
            for name in names {
                if disk::layer_number(name).is_some_and(|layer| !layers.contains(&layer)) {
                    (self.medium.remove(name)).map_err(Error::io(format!("remove {name}")))?;
                }
            }
        }
        let lists: HashSet<String> = (ImageInfo::all(&view)?.iter())
            .map(|info| image::name(info.file()))
            .collect();
        if let Some(name) = lists.iter().find(|name| !names.contains(name)) {
            return Err(Error::Partial {
                name: name.clone(),
                found: 0,
                needed: 1,
            });
        }
        if !self.medium.read_only() {
            let unknown = names.iter().filter(|name| image::number(name).is_some());
            for name in unknown.filter(|name| !lists.contains(*name)) {
                (self.medium.remove(name)).map_err(Error::io(format!("remove {name}")))?;
            }
        }
        let mut use_ = self.use_();
        use_.next_image = view.counter(Counter::Image)?;
        use_.next_layer = view.counter(Counter::Layer)?;
        use_.next_segment = u32::try_from(next).map_err(|_| Error::Record {
            what: "the next segment".to_owned(),
            why: format!("{next} is too much"),
        })?;
        use_.next_snapshot = view.counter(Counter::Snapshot)?;
        Ok(())
    }
}
