//! The index: where chunks are, how many references they have, which snapshots and disks there are.
//!
//! One transaction of it is the one commit record of everything that changes. All data that a transaction speaks of is
//! durable before it begins.

mod backend;
mod refs;
mod types;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{
    Builder, Database, ReadOnlyDatabase, ReadOnlyTable, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, Table, TableDefinition, TableError, WriteTransaction,
};

use self::backend::Failure;
pub use self::refs::Counts;
use crate::error::{Error, Result};
use crate::hash::Digest;
use crate::medium::MediumFile;
use crate::segment::Location;

/// Digest to [`Entry`].
const CHUNKS: TableDefinition<'_, Digest, Entry> = TableDefinition::new("chunks");
/// Number to committed length and bytes that are referenced.
const SEGMENTS: TableDefinition<'_, u32, (u64, u64)> = TableDefinition::new("segments");
/// Id to sealed record.
const SNAPSHOTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshots");
/// Name to sealed record.
const DISKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("disks");
/// Id to sealed record. Stores of format 1 may be without.
const IMAGES: TableDefinition<'_, Digest, &[u8]> = TableDefinition::new("images");
/// Id of a snapshot to sealed record. Stores may be without.
const WORKING_SETS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("working sets");
/// Counters that never go back.
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");

/// A counter.
#[derive(Clone, Copy, Debug)]
pub enum Counter {
    Segment,
    Snapshot,
    Layer,
    Image,
}

impl Counter {
    fn name(self) -> &'static str {
        match self {
            Self::Segment => "segment",
            Self::Snapshot => "snapshot",
            Self::Layer => "layer",
            Self::Image => "image",
        }
    }
}

/// What the index knows of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub location: Location,
    /// Bytes of the record, its header included.
    pub len: u32,
    pub refs: u64,
}

impl Entry {
    fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.location.to_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..].copy_from_slice(&self.refs.to_le_bytes());
        bytes
    }

    fn of_bytes(bytes: [u8; 20]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, refs @ ..] = bytes;
        Self {
            location: Location::from_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([i, j, k, l]),
            refs: u64::from_le_bytes(refs),
        }
    }
}

enum Db {
    Writable(Database),
    ReadOnly(ReadOnlyDatabase),
}

/// The database.
pub struct Index {
    db: Db,
    /// Whether a commit has failed. Whether it is durable is not known then, and nothing may be written over.
    failed: AtomicBool,
    failure: Failure,
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Index")
    }
}

impl Index {
    /// Opens the database in `file`, or makes one if the file is empty.
    pub fn open(file: Arc<dyn MediumFile>, read_only: bool, cache: usize) -> Result<Self> {
        const DOING: &str = "open the database";
        let mut builder = Builder::new();
        builder.set_cache_size(cache);
        let file = backend::File::new(file);
        let failure = file.failure();
        let db = if read_only {
            let database = builder.open_read_only_with_backend(file);
            Db::ReadOnly(database.map_err(Error::index(DOING))?)
        } else {
            let database = builder.create_with_backend(file);
            Db::Writable(database.map_err(Error::index(DOING))?)
        };
        let index = Self {
            db,
            failed: AtomicBool::new(false),
            failure,
        };
        index.written(DOING).map(|()| index)
    }

    /// Whether all that was written got into the file.
    fn written(&self, doing: &'static str) -> Result<()> {
        let why = self.failure.why().map(redb::Error::Io);
        why.map_or(Ok(()), |why| Err(Error::index(doing)(why)))
    }

    /// Whether a change has a chance.
    pub fn usable(&self) -> Result<()> {
        if self.failed.load(Ordering::SeqCst) {
            return Err(Error::Failed);
        }
        Ok(())
    }

    /// What is committed now.
    pub fn view(&self) -> Result<View> {
        const DOING: &str = "begin to read";
        let txn = match &self.db {
            Db::Writable(database) => database.begin_read(),
            Db::ReadOnly(database) => database.begin_read(),
        }
        .map_err(Error::index(DOING))?;
        Ok(View {
            chunks: txn.open_table(CHUNKS).map_err(Error::index(DOING))?,
            segments: txn.open_table(SEGMENTS).map_err(Error::index(DOING))?,
            snapshots: txn.open_table(SNAPSHOTS).map_err(Error::index(DOING))?,
            disks: txn.open_table(DISKS).map_err(Error::index(DOING))?,
            images: maybe(txn.open_table(IMAGES)).map_err(Error::index(DOING))?,
            working_sets: maybe(txn.open_table(WORKING_SETS)).map_err(Error::index(DOING))?,
            counters: txn.open_table(COUNTERS).map_err(Error::index(DOING))?,
        })
    }

    /// Changes, all or none: durable when this returns, and nothing if `change` fails.
    pub fn change<T>(
        &self,
        doing: &'static str,
        change: impl FnOnce(&mut Change<'_>) -> Result<T>,
    ) -> Result<T> {
        let Db::Writable(database) = &self.db else {
            return Err(Error::ReadOnly { doing });
        };
        self.usable()?;
        let fail = |_: &Error| self.failed.store(true, Ordering::SeqCst);
        let txn = database.begin_write().map_err(Error::index(doing));
        let mut txn = txn.inspect_err(fail)?;
        // Two phases and a saved allocator: a store opens at once after a power cut, and no torn header can be taken for
        // a valid one.
        txn.set_quick_repair(true);
        let changed = Change::open(&txn).map_err(Error::index(doing));
        let changed = changed.and_then(|mut tables| change(&mut tables));
        let device = |error: &Error| matches!(error, Error::Index { .. } | Error::Full { .. });
        let value = changed.inspect_err(|error| {
            if device(error) {
                fail(error);
            }
        })?;
        // What did not get into the file is no more to be seen than needed.
        self.written(doing).inspect_err(fail)?;
        let committed = txn.commit().map_err(Error::index(doing));
        (committed.and_then(|()| self.written(doing))).inspect_err(fail)?;
        Ok(value)
    }
}

/// A table that there may not be yet.
fn maybe<T>(table: Result<T, TableError>) -> Result<Option<T>, TableError> {
    match table {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A consistent view of the index.
pub struct View {
    chunks: ReadOnlyTable<Digest, Entry>,
    segments: ReadOnlyTable<u32, (u64, u64)>,
    snapshots: ReadOnlyTable<u64, &'static [u8]>,
    disks: ReadOnlyTable<&'static str, &'static [u8]>,
    images: Option<ReadOnlyTable<Digest, &'static [u8]>>,
    working_sets: Option<ReadOnlyTable<u64, &'static [u8]>>,
    counters: ReadOnlyTable<&'static str, u64>,
}

const LOOK: &str = "look something up";

impl View {
    pub fn chunk(&self, digest: &Digest) -> Result<Option<Entry>> {
        let found = self.chunks.get(digest).map_err(Error::index(LOOK))?;
        Ok(found.map(|value| value.value()))
    }

    /// Every chunk, in order of the digests.
    pub fn chunks(&self) -> Result<impl Iterator<Item = Result<(Digest, Entry)>>> {
        let all = self.chunks.iter().map_err(Error::index(LOOK))?;
        Ok(all.map(|item| {
            let (key, value) = item.map_err(Error::index(LOOK))?;
            Ok((key.value(), value.value()))
        }))
    }

    /// Number, committed length and referenced bytes of every segment.
    pub fn segments(&self) -> Result<Vec<(u32, u64, u64)>> {
        let all = self.segments.iter().map_err(Error::index(LOOK))?;
        all.map(|item| {
            let (key, value) = item.map_err(Error::index(LOOK))?;
            let (len, live) = value.value();
            Ok((key.value(), len, live))
        })
        .collect()
    }

    pub fn snapshot(&self, id: u64) -> Result<Option<Vec<u8>>> {
        let found = self.snapshots.get(id).map_err(Error::index(LOOK))?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    pub fn snapshots(&self) -> Result<Vec<(u64, Vec<u8>)>> {
        let all = self.snapshots.iter().map_err(Error::index(LOOK))?;
        all.map(|item| {
            let (key, value) = item.map_err(Error::index(LOOK))?;
            Ok((key.value(), value.value().to_vec()))
        })
        .collect()
    }

    pub fn disk(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let found = self.disks.get(name).map_err(Error::index(LOOK))?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    pub fn disks(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let all = self.disks.iter().map_err(Error::index(LOOK))?;
        all.map(|item| {
            let (key, value) = item.map_err(Error::index(LOOK))?;
            Ok((key.value().to_owned(), value.value().to_vec()))
        })
        .collect()
    }

    pub fn image(&self, id: &Digest) -> Result<Option<Vec<u8>>> {
        let Some(images) = &self.images else {
            return Ok(None);
        };
        let found = images.get(id).map_err(Error::index(LOOK))?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    pub fn images(&self) -> Result<Vec<(Digest, Vec<u8>)>> {
        let Some(images) = &self.images else {
            return Ok(Vec::new());
        };
        let all = images.iter().map_err(Error::index(LOOK))?;
        all.map(|item| {
            let (key, value) = item.map_err(Error::index(LOOK))?;
            Ok((key.value(), value.value().to_vec()))
        })
        .collect()
    }

    pub fn working_set(&self, id: u64) -> Result<Option<Vec<u8>>> {
        let Some(working_sets) = &self.working_sets else {
            return Ok(None);
        };
        let found = working_sets.get(id).map_err(Error::index(LOOK))?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    pub fn has_working_sets(&self) -> Result<bool> {
        let sets = self.working_sets.as_ref();
        let empty = sets.map_or(Ok(true), |sets| sets.is_empty());
        Ok(!empty.map_err(Error::index(LOOK))?)
    }

    pub fn counter(&self, counter: Counter) -> Result<u64> {
        let found = (self.counters.get(counter.name())).map_err(Error::index(LOOK))?;
        Ok(found.map_or(1, |value| value.value()))
    }
}

/// The tables of one transaction.
pub struct Change<'t> {
    chunks: Table<'t, Digest, Entry>,
    segments: Table<'t, u32, (u64, u64)>,
    snapshots: Table<'t, u64, &'static [u8]>,
    disks: Table<'t, &'static str, &'static [u8]>,
    images: Table<'t, Digest, &'static [u8]>,
    working_sets: Table<'t, u64, &'static [u8]>,
    counters: Table<'t, &'static str, u64>,
}

const CHANGE: &str = "change something";

impl<'t> Change<'t> {
    fn open(txn: &'t WriteTransaction) -> Result<Self, TableError> {
        Ok(Self {
            chunks: txn.open_table(CHUNKS)?,
            segments: txn.open_table(SEGMENTS)?,
            snapshots: txn.open_table(SNAPSHOTS)?,
            disks: txn.open_table(DISKS)?,
            images: txn.open_table(IMAGES)?,
            working_sets: txn.open_table(WORKING_SETS)?,
            counters: txn.open_table(COUNTERS)?,
        })
    }

    pub fn set_snapshot(&mut self, id: u64, record: Option<&[u8]>) -> Result<()> {
        match record {
            Some(record) => self.snapshots.insert(id, record).map(drop),
            None => self.snapshots.remove(id).map(drop),
        }
        .map_err(Error::index(CHANGE))
    }

    pub fn snapshot(&self, id: u64) -> Result<Option<Vec<u8>>> {
        let found = self.snapshots.get(id).map_err(Error::index(LOOK))?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    pub fn set_disk(&mut self, name: &str, record: Option<&[u8]>) -> Result<()> {
        match record {
            Some(record) => self.disks.insert(name, record).map(drop),
            None => self.disks.remove(name).map(drop),
        }
        .map_err(Error::index(CHANGE))
    }

    pub fn disk(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let found = self.disks.get(name).map_err(Error::index(LOOK))?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    pub fn counter(&self, counter: Counter) -> Result<u64> {
        let found = (self.counters.get(counter.name())).map_err(Error::index(LOOK))?;
        Ok(found.map_or(1, |value| value.value()))
    }

    pub fn set_image(&mut self, id: &Digest, record: Option<&[u8]>) -> Result<()> {
        match record {
            Some(record) => self.images.insert(id, record).map(drop),
            None => self.images.remove(id).map(drop),
        }
        .map_err(Error::index(CHANGE))
    }

    pub fn image(&self, id: &Digest) -> Result<Option<Vec<u8>>> {
        let found = self.images.get(id).map_err(Error::index(LOOK))?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    pub fn set_working_set(&mut self, id: u64, record: Option<&[u8]>) -> Result<()> {
        match record {
            Some(record) => self.working_sets.insert(id, record).map(drop),
            None => self.working_sets.remove(id).map(drop),
        }
        .map_err(Error::index(CHANGE))
    }

    pub fn working_set(&self, id: u64) -> Result<Option<Vec<u8>>> {
        let found = self.working_sets.get(id).map_err(Error::index(LOOK))?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    /// Moves a counter on, never back.
    pub fn advance(&mut self, counter: Counter, next: u64) -> Result<()> {
        let next = next.max(self.counter(counter)?);
        (self.counters.insert(counter.name(), next)).map_err(Error::index(CHANGE))?;
        Ok(())
    }

    /// Commits `len` bytes of a segment.
    pub fn set_segment_len(&mut self, segment: u32, len: u64) -> Result<()> {
        let live = self.segment(segment)?.1;
        (self.segments.insert(segment, (len, live))).map_err(Error::index(CHANGE))?;
        Ok(())
    }

    pub fn remove_segment(&mut self, segment: u32) -> Result<()> {
        (self.segments.remove(segment)).map_err(Error::index(CHANGE))?;
        Ok(())
    }

    fn segment(&self, segment: u32) -> Result<(u64, u64)> {
        let found = self.segments.get(segment).map_err(Error::index(LOOK))?;
        Ok(found.map_or((0, 0), |value| value.value()))
    }
}
