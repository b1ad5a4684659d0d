//! Which pages a guest waited for when it went on from a snapshot: they are fetched ahead when that is done again.
//!
//! A hint and nothing else: what is fetched ahead is checked by its hash like everything, and a page that is not among
//! them is fetched when it is asked for.

use serde::{Deserialize, Serialize};

use super::{Snapshot, info};
use crate::error::Result;
use crate::index::View;
use crate::record;

/// Most pages of a working set: 32 MiB.
pub const WORKING_SET: usize = 8192;
/// Version of the record.
const VERSION: u32 = 1;

/// The record: pages in their order, as runs of a first one and how many.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    #[serde(default)]
    runs: Vec<(u64, u32)>,
}

impl Record {
    fn new(pages: &[u64]) -> Self {
        let mut runs: Vec<(u64, u32)> = Vec::new();
        for &page in &pages[..pages.len().min(WORKING_SET)] {
            match runs.last_mut() {
                Some((first, count)) if first.checked_add(u64::from(*count)) == Some(page) => {
                    *count += 1;
                }
                _ => runs.push((page, 1)),
            }
        }
        let version = VERSION;
        Self { version, runs }
    }

    /// The pages, however many the record says there are.
    fn pages(&self) -> Vec<u64> {
        let runs = self.runs.iter();
        runs.flat_map(|&(first, count)| first..first.saturating_add(u64::from(count)))
            .take(WORKING_SET)
            .collect()
    }
}

/// What is kept for snapshot `id` itself.
fn kept(view: &View, id: u64) -> Result<Option<Record>> {
    let what = || format!("the working set of snapshot {id}");
    let bytes = view.working_set(id)?;
    bytes.map(|bytes| record::unseal(&what, &bytes)).transpose()
}

/// Whether what is kept for snapshot `id` is as it was written.
pub(crate) fn check(view: &View, id: u64) -> Result<()> {
    kept(view, id).map(drop)
}

impl Snapshot {
    /// The pages that were kept for this snapshot, or for the nearest one before it that has any.
    ///
    /// # Errors
    /// The record is damaged: there is no working set then.
    pub fn working_set(&self) -> Result<Option<Vec<u64>>> {
        let view = self.inner.index.view()?;
        if !view.has_working_sets()? {
            return Ok(None);
        }
        let mut id = self.info.id;
        loop {
            if let Some(record) = kept(&view, id)? {
                // That of a newer program is none.
                return Ok((record.version == VERSION).then(|| record.pages()));
            }
            // A parent is older.
            match info(&view, id)?.parent {
                Some(parent) if parent < id => id = parent,
                _ => return Ok(None),
            }
        }
    }

    /// Keeps the first [`WORKING_SET`] of `pages`, in this order, instead of what was kept for this snapshot.
    ///
    /// # Errors
    /// The store cannot be changed.
    pub fn set_working_set(&self, pages: &[u64]) -> Result<()> {
        let bytes = record::seal(&Record::new(pages));
        let id = self.info.id;
        let index = &self.inner.index;
        index.change("keep a working set", |change| {
            change.set_working_set(id, Some(&bytes))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::medium::sim::Simulated;
    use crate::{Options, Spec, Store};

    fn store() -> Store {
        Store::create(Arc::new(Simulated::default()), Options::default()).unwrap()
    }

    fn take(store: &Store, parent: Option<u64>) -> Arc<Snapshot> {
        let spec = Spec {
            parent,
            ..Spec::default()
        };
        let id = store.begin(spec).unwrap().commit().unwrap().id;
        store.snapshot(id).unwrap()
    }

    #[test]
    fn pages_are_kept_in_their_order_for_a_snapshot_and_those_after_it() {
        let store = store();
        let first = take(&store, None);
        let second = take(&store, Some(1));
        let third = take(&store, Some(2));
        let other = take(&store, None);
        assert_eq!(third.working_set().unwrap(), None);
        first.set_working_set(&[7, 8, 9, 3, 2, 100, 7]).unwrap();
        for snapshot in [&first, &second, &third] {
            let expected = Some(vec![7, 8, 9, 3, 2, 100, 7]);
            assert_eq!(snapshot.working_set().unwrap(), expected);
        }
        assert_eq!(other.working_set().unwrap(), None);
        third.set_working_set(&[u64::MAX, u64::MAX - 1]).unwrap();
        let expected = Some(vec![u64::MAX - 1]);
        // The last number is nobody's page.
        assert_eq!(third.working_set().unwrap(), expected);
        third.set_working_set(&[5]).unwrap();
        assert_eq!(third.working_set().unwrap(), Some(vec![5]));
        assert_eq!(second.working_set().unwrap().unwrap()[0], 7);
    }

    #[test]
    fn who_is_deleted_leaves_its_working_set_to_its_children() {
        let store = store();
        take(&store, None).set_working_set(&[1]).unwrap();
        let second = take(&store, Some(1));
        take(&store, Some(1)).set_working_set(&[3]).unwrap();
        store.delete(1).unwrap();
        assert_eq!(second.working_set().unwrap(), Some(vec![1]));
        let third = store.snapshot(3).unwrap();
        assert_eq!(third.working_set().unwrap(), Some(vec![3]));
        drop((second, third));
        store.delete(2).unwrap();
        store.delete(3).unwrap();
        // Nothing is left of what nobody can go on from.
        assert!(!store.0.index.view().unwrap().has_working_sets().unwrap());
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for() {
        let store = store();
        let snapshot = take(&store, None);
        let every_second: Vec<_> = (0..3 * WORKING_SET as u64).map(|page| page * 2).collect();
        snapshot.set_working_set(&every_second).unwrap();
        let kept = snapshot.working_set().unwrap().unwrap();
        assert_eq!(kept, every_second[..WORKING_SET]);
    }

    #[test]
    fn a_damaged_record_is_said_to_be_and_one_that_lies_is_cut_off() {
        let store = store();
        let snapshot = take(&store, None);
        let write = |bytes: &[u8]| {
            let index = &store.0.index;
            let write = index.change("lie", |change| change.set_working_set(1, Some(bytes)));
            write.unwrap();
        };
        snapshot.set_working_set(&[4, 5, 6]).unwrap();
        let good = store.0.index.view().unwrap().working_set(1);
        let good = good.unwrap().unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            write(&bad);
            let error = snapshot.working_set().unwrap_err().to_string();
            assert!(error.contains("working set of snapshot 1"), "{error}");
        }
        write(&good[..good.len() / 2]);
        assert!(snapshot.working_set().is_err());
        write(&[]);
        assert!(snapshot.working_set().is_err());
        let verified = store.verify(&mut |_| {}).unwrap();
        assert_eq!(verified.problems.len(), 1, "{:?}", verified.problems);

        let runs = vec![(0, u32::MAX), (u64::MAX, u32::MAX)];
        write(&record::seal(&Record { version: 1, runs }));
        let pages = snapshot.working_set().unwrap().unwrap();
        assert_eq!(pages.len(), WORKING_SET);
        let runs = vec![(1, 1)];
        write(&record::seal(&Record { version: 2, runs }));
        assert_eq!(snapshot.working_set().unwrap(), None);
        write(&record::seal(&"no record"));
        assert!(snapshot.working_set().is_err());
    }

    proptest! {
        #[test]
        fn any_pages_come_back(pages in prop::collection::vec(0..64_u64, 0..200)) {
            prop_assert_eq!(Record::new(&pages).pages(), pages);
        }
    }
}
