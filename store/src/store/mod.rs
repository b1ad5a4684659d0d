//! A store that is open.

mod fetch;
mod recover;
mod superblock;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::superblock::Superblock;
use crate::FORMAT;
use crate::codec::Compression;
use crate::disk;
use crate::error::{Error, Result};
use crate::hash::DigestMap;
use crate::image::{self, Images};
use crate::index::{Counter, Index};
use crate::medium::Medium;
use crate::segment::{self, Appender, Segments};
use crate::tree::Node;

const INDEX: &str = "index";

/// How a store is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of this machine. A store of another one is refused.
    pub machine: String,
    /// Take over a store of another machine.
    pub adopt: bool,
    /// What is done with pages as they are written.
    pub compression: Compression,
    /// Bytes of memory for the index.
    pub cache: usize,
    /// Bytes after which the next chunk goes to a new segment.
    pub segment: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            machine: String::new(),
            adopt: false,
            compression: Compression::default(),
            cache: 16 << 20,
            segment: segment::FULL,
        }
    }
}

/// A store. Clones are the same one.
#[derive(Clone)]
pub struct Store(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    // Fields end in their order. The database writes as it ends, and the medium keeps others out until then.
    pub index: Index,
    pub superblock: Superblock,
    pub segments: Segments,
    pub medium: Arc<dyn Medium>,
    pub options: Options,
    use_: Mutex<Use>,
    pub images: Images,
    /// Format of the store, which rises when something is stored that an older program would not understand.
    format: AtomicU32,
    /// Nodes that were read last, for all readers: what is near the roots is asked for again and again.
    nodes: Mutex<DigestMap<Arc<Node>>>,
}

/// What is in use.
#[derive(Debug, Default)]
pub(crate) struct Use {
    /// Writers that have not committed. Their chunks may be in the index without a reference of theirs, so nothing is
    /// deleted meanwhile.
    pub writers: usize,
    /// Whether something is being deleted or collected.
    pub deleting: bool,
    /// The snapshot that is being deleted.
    pub going: Option<u64>,
    /// Snapshots that are open, and how often.
    pub open: HashMap<u64, usize>,
    /// Segments that somebody appends to.
    pub appending: HashSet<u32>,
    /// Number of the next segment.
    pub next_segment: u32,
    /// Id of the next snapshot.
    pub next_snapshot: u64,
    /// Disks that are open.
    pub disks: HashSet<String>,
    /// Id of the next layer.
    pub next_layer: u64,
    /// Number of the next list of an image's digests.
    pub next_image: u64,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Format of the store.
    pub format: u32,
    /// Machine that it belongs to.
    pub machine: String,
    /// Snapshots.
    pub snapshots: u64,
    /// Images that were adopted.
    pub images: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes in segments.
    pub stored: u64,
    /// Bytes of them that are referenced.
    pub referenced: u64,
    /// Bytes of the index.
    pub index: u64,
    /// Files that are not the store's. They are left alone.
    pub foreign: Vec<String>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.0.medium).finish()
    }
}

impl Store {
    /// Makes a store on a medium without one.
    pub fn create(medium: Arc<dyn Medium>, options: Options) -> Result<Self> {
        let names = medium.list().map_err(Error::io("list the store's files"))?;
        if Superblock::found(&*medium, &names)? {
            return Err(Error::Exists);
        }
        // What an interrupted creation left: the index, at most. Segments come only after the superblock.
        if let Some(name) = names.iter().find(|name| segment::number(name).is_some()) {
            return Err(Error::NotAStore {
                why: format!("{name} is there, but nothing that names the store"),
            });
        }
        for name in [INDEX, superblock::NAME] {
            if names.iter().any(|other| other == name) {
                medium
                    .remove(name)
                    .map_err(Error::io(format!("remove {name}")))?;
            }
        }
        let file = medium
            .create(INDEX)
            .map_err(Error::io("create the index"))?;
        let index = Index::open(file, false, options.cache)?;
        index.change("make the tables", |change| {
            change.advance(Counter::Snapshot, 1)
        })?;
        drop(index);
        let done = medium.sync_names();
        done.map_err(Error::io("make the index's name durable"))?;
        Superblock::create(&*medium, &options.machine)?;
        Self::open(medium, options)
    }

    /// Opens a store, and removes what a power cut has left of an unfinished change.
    pub fn open(medium: Arc<dyn Medium>, options: Options) -> Result<Self> {
        let names = medium.list().map_err(Error::io("list the store's files"))?;
        let mut superblock = Superblock::read(&*medium, &names)?;
        if superblock.machine != options.machine {
            if !options.adopt {
                return Err(Error::OtherMachine {
                    found: superblock.machine,
                    here: options.machine,
                });
            }
            superblock.adopt(&*medium, &options.machine)?;
        }
        let read_only = medium.read_only();
        let file = medium.open(INDEX).map_err(|error| match error {
            error if error.kind() == std::io::ErrorKind::NotFound => Error::Partial {
                name: INDEX.to_owned(),
                found: 0,
                needed: 1,
            },
            error => Error::io("open the index")(error),
        })?;
        let size = file.size().map_err(Error::io("read the index's size"))?;
        if size == 0 {
            // The database would take it for a new one.
            return Err(Error::Partial {
                name: INDEX.to_owned(),
                found: 0,
                needed: 1,
            });
        }
        let index = Index::open(file, read_only, options.cache)?;
        let segments = Segments::new(Arc::clone(&medium), superblock.id);
        let inner = Inner {
            medium,
            format: AtomicU32::new(superblock.format),
            superblock,
            segments,
            images: Images::default(),
            index,
            options,
            use_: Mutex::default(),
            nodes: Mutex::default(),
        };
        inner.recover(&names)?;
        Ok(Self(Arc::new(inner)))
    }

    /// What there is, and how much.
    pub fn status(&self) -> Result<Status> {
        let inner = &self.0;
        let view = inner.index.view()?;
        let names = inner
            .medium
            .list()
            .map_err(Error::io("list the store's files"))?;
        let index = inner.medium.open(INDEX).and_then(|file| file.size());
        let mut status = Status {
            format: inner.format.load(Ordering::SeqCst),
            machine: inner.superblock.machine.clone(),
            snapshots: view.snapshots()?.len() as u64,
            images: view.images()?.len() as u64,
            index: index.map_err(Error::io("read the index's size"))?,
            ..Status::default()
        };
        for (_, len, live) in view.segments()? {
            status.segments += 1;
            status.stored += len;
            status.referenced += live;
        }
        status.foreign = names.into_iter().filter(|name| !ours(name)).collect();
        Ok(status)
    }
}

#[cfg(any(test, feature = "test-utils"))]
impl Store {
    /// Segment files that there are, and that no longer than what is committed; and no list of an image too many.
    pub fn files(&self) -> Result<u64> {
        let inner = &self.0;
        let names = inner
            .medium
            .list()
            .map_err(Error::io("list the store's files"))?;
        let there = names.iter().filter_map(|name| segment::number(name));
        let known = inner.index.view()?.segments()?;
        let mut count = 0;
        for number in there {
            let committed = known.iter().find(|(segment, ..)| *segment == number);
            let size = inner.segments.check(number, 0)?;
            count += u64::from(committed.is_some_and(|(_, len, _)| *len == size));
            count += u64::from(committed.is_none()) * (1 << 32);
        }
        let lists = names.iter().filter(|name| image::number(name).is_some());
        let images = inner.index.view()?.images()?.len();
        count += (lists.count().abs_diff(images) as u64) << 32;
        Ok(count)
    }
}

/// Whether a file of this name may be the store's.
fn ours(name: &str) -> bool {
    name == INDEX
        || name == superblock::NAME
        || segment::number(name).is_some()
        || disk::layer_number(name).is_some()
        || image::number(name).is_some()
}

impl Inner {
    pub fn use_(&self) -> MutexGuard<'_, Use> {
        self.use_.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn writable(&self, doing: &'static str) -> Result<()> {
        if self.medium.read_only() {
            return Err(Error::ReadOnly { doing });
        }
        Ok(())
    }

    /// Makes the store one that older programs refuse: they would show disks without their images.
    pub fn raise_format(&self) -> Result<()> {
        if self.format.load(Ordering::SeqCst) < FORMAT {
            self.superblock.raise(&*self.medium)?;
            self.format.store(FORMAT, Ordering::SeqCst);
        }
        Ok(())
    }

    /// A place to append to: the end of a segment that has room, or a new one. Whether it is new.
    pub fn appender(&self, fresh: bool) -> Result<(Appender, bool)> {
        let candidates = if fresh {
            Vec::new()
        } else {
            self.index.view()?.segments()?
        };
        let mut use_ = self.use_();
        for (segment, len, _) in candidates.into_iter().rev() {
            let room = u64::from(self.options.segment) > len + u64::from(segment::FIRST);
            if room && !use_.appending.contains(&segment) {
                let name = segment::name(segment);
                let file =
                    (self.segments.file(segment)).map_err(Error::io(format!("open {name}")))?;
                use_.appending.insert(segment);
                let len = u32::try_from(len).unwrap_or(u32::MAX);
                return Ok((Appender::after(segment, file, len), false));
            }
        }
        let segment = use_.next_segment;
        use_.next_segment += 1;
        use_.appending.insert(segment);
        drop(use_);
        let file = self.segments.create(segment)?;
        Ok((Appender::after(segment, file, 0), true))
    }
}
