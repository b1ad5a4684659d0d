//! Counting references, and moving chunks.

use std::collections::BTreeMap;

use redb::ReadableTable;

use super::{CHANGE, Change, Entry, LOOK};
use crate::error::{Error, Result};
use crate::hash::{Digest, DigestMap};
use crate::segment::Location;

/// Changes of references, by chunk.
#[derive(Debug, Default)]
pub struct Counts(DigestMap<i64>);

impl Counts {
    pub fn add(&mut self, digest: Digest, change: i64) {
        *self.0.entry(digest).or_default() += change;
    }

    /// What remains, in the order of the index.
    pub fn sorted(self) -> Vec<(Digest, i64)> {
        let mut all: Vec<_> = (self.0.into_iter().filter(|(_, change)| *change != 0)).collect();
        all.sort_unstable();
        all
    }
}

impl Change<'_> {
    /// Applies changes of references. A chunk that is not known yet is at the place in `new` (with the bytes of its
    /// record); one without references is forgotten.
    pub fn count(&mut self, counts: Counts, new: &DigestMap<(Location, u32)>) -> Result<()> {
        let mut live: BTreeMap<u32, i64> = BTreeMap::new();
        for (digest, change) in counts.sorted() {
            let known = self.chunk(&digest)?;
            let entry = match (known, new.get(&digest)) {
                (Some(entry), _) => entry,
                (None, Some(&(location, len))) => Entry {
                    location,
                    len,
                    refs: 0,
                },
                (None, None) => return Err(wrong(digest, 0, change)),
            };
            let refs = (entry.refs.checked_add_signed(change))
                .ok_or_else(|| wrong(digest, entry.refs, change))?;
            let bytes = live.entry(entry.location.segment).or_default();
            if refs == 0 {
                (self.chunks.remove(digest.0)).map_err(Error::index(CHANGE))?;
                *bytes -= i64::from(entry.len);
            } else {
                if known.is_none() {
                    *bytes += i64::from(entry.len);
                }
                let entry = Entry { refs, ..entry };
                (self.chunks.insert(digest.0, entry.to_bytes())).map_err(Error::index(CHANGE))?;
            }
        }
        self.add_live(live)
    }

    fn add_live(&mut self, live: BTreeMap<u32, i64>) -> Result<()> {
        for (segment, change) in live {
            let (len, live) = self.segment(segment)?;
            let live = live
                .checked_add_signed(change)
                .ok_or_else(|| Error::Record {
                    what: format!("segment {segment}"),
                    why: format!("{live} bytes are in use there and {change} are to be added"),
                })?;
            (self.segments.insert(segment, (len, live))).map_err(Error::index(CHANGE))?;
        }
        Ok(())
    }

    pub fn chunk(&self, digest: &Digest) -> Result<Option<Entry>> {
        let found = self.chunks.get(digest.0).map_err(Error::index(LOOK))?;
        Ok(found.map(|value| Entry::from_bytes(value.value())))
    }

    /// Says that chunks lie elsewhere now, with records of another length perhaps.
    pub fn relocate(&mut self, moved: &[(Digest, Location, u32)]) -> Result<()> {
        let mut live: BTreeMap<u32, i64> = BTreeMap::new();
        for &(digest, location, len) in moved {
            let Some(entry) = self.chunk(&digest)? else {
                continue;
            };
            *live.entry(entry.location.segment).or_default() -= i64::from(entry.len);
            *live.entry(location.segment).or_default() += i64::from(len);
            let entry = Entry {
                location,
                len,
                ..entry
            };
            (self.chunks.insert(digest.0, entry.to_bytes())).map_err(Error::index(CHANGE))?;
        }
        self.add_live(live)
    }
}

fn wrong(digest: Digest, found: u64, change: i64) -> Error {
    Error::References {
        hash: digest.to_string(),
        found,
        needed: change.unsigned_abs(),
    }
}
