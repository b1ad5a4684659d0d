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
            // Most chunks of a snapshot are new: one walk down the tree is enough for them.
            if let (Ok(refs @ 1..), Some(&(location, len))) =
                (u64::try_from(change), new.get(&digest))
            {
                let entry = Entry {
                    location,
                    len,
                    refs,
                };
                let known = self.chunks.insert(digest, entry);
                let known = known.map_err(Error::index(CHANGE))?;
                let known = known.map(|value| value.value());
                let Some(known) = known else {
                    *live.entry(location.segment).or_default() += i64::from(len);
                    continue;
                };
                // Somebody else's is there already: ours is garbage.
                self.put(&digest, known)?;
            }
            let known = self
                .chunk(&digest)?
                .ok_or_else(|| wrong(digest, 0, change))?;
            let refs = (known.refs.checked_add_signed(change))
                .ok_or_else(|| wrong(digest, known.refs, change))?;
            if refs == 0 {
                (self.chunks.remove(digest)).map_err(Error::index(CHANGE))?;
                *live.entry(known.location.segment).or_default() -= i64::from(known.len);
            } else {
                self.put(&digest, Entry { refs, ..known })?;
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

    fn put(&mut self, digest: &Digest, entry: Entry) -> Result<()> {
        (self.chunks.insert(digest, entry)).map_err(Error::index(CHANGE))?;
        Ok(())
    }

    pub fn chunk(&self, digest: &Digest) -> Result<Option<Entry>> {
        let found = self.chunks.get(digest).map_err(Error::index(LOOK))?;
        Ok(found.map(|value| value.value()))
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
            self.put(&digest, entry)?;
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
