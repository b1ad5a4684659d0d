//! A store that is open.

mod superblock;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::superblock::Superblock;
use crate::PAGE;
use crate::codec::Compression;
use crate::disk::{self, DiskInfo};
use crate::error::{Error, Fault, Result};
use crate::hash::DigestMap;
use crate::index::{Counter, Index};
use crate::medium::Medium;
use crate::segment::{self, Appender, Kind, Segments, Window};
use crate::tree::{Child, Node};

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
    pub medium: Arc<dyn Medium>,
    pub superblock: Superblock,
    pub segments: Segments,
    pub index: Index,
    pub options: Options,
    use_: Mutex<Use>,
    /// Nodes that were read last, for all readers: what is near the roots is asked for again and again.
    nodes: Mutex<DigestMap<Arc<Node>>>,
}

/// Nodes that are kept: about 5 MiB.
const NODES: usize = 4096;

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
            superblock,
            segments,
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
            format: inner.superblock.format,
            machine: inner.superblock.machine.clone(),
            snapshots: view.snapshots()?.len() as u64,
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
    /// Segment files that there are, and that no longer than what is committed.
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
        Ok(count)
    }
}

/// Whether a file of this name may be the store's.
fn ours(name: &str) -> bool {
    name == INDEX
        || name == superblock::NAME
        || segment::number(name).is_some()
        || disk::layer_number(name).is_some()
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

    /// Checks that all that was committed is there, and removes the rest.
    fn recover(&self, names: &[String]) -> Result<()> {
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
        let mut use_ = self.use_();
        use_.next_layer = view.counter(Counter::Layer)?;
        use_.next_segment = u32::try_from(next).map_err(|_| Error::Record {
            what: "the next segment".to_owned(),
            why: format!("{next} is too much"),
        })?;
        use_.next_snapshot = view.counter(Counter::Snapshot)?;
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

    /// The node at `child`, verified.
    pub fn node(&self, child: &Child, level: u8, window: &mut Window) -> Result<Node, Fault> {
        self.fetch(child, |location| {
            let read = self
                .segments
                .read(location, &child.digest, Kind::Node, window);
            let (_, payload) = read?;
            Node::decode(payload, &child.digest, level)
        })
    }

    /// The node at `child`, verified now or earlier.
    pub fn cached(
        &self,
        child: &Child,
        level: u8,
        window: &mut Window,
    ) -> Result<Arc<Node>, Fault> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = nodes.get(&child.digest)
            && node.level() == level
        {
            return Ok(Arc::clone(node));
        }
        drop(nodes);
        let node = Arc::new(self.node(child, level, window)?);
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() >= NODES {
            nodes.clear();
        }
        nodes.insert(child.digest, Arc::clone(&node));
        Ok(node)
    }

    /// The page at `child`, verified.
    pub fn page(
        &self,
        child: &Child,
        window: &mut Window,
        page: &mut [u8; PAGE],
    ) -> Result<(), Fault> {
        self.fetch(child, |location| {
            self.segments.page(location, &child.digest, window, page)
        })
    }

    /// Tries the place that the tree names, and then the one that the index names.
    fn fetch<T>(
        &self,
        child: &Child,
        mut read: impl FnMut(segment::Location) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut tried = child.location;
        let mut result = read(tried);
        // Garbage may be collected while this looks: each time, the index knows the newer place.
        for _ in 0..4 {
            if result.is_ok() {
                break;
            }
            let entry = (self.index.view()).and_then(|view| view.chunk(&child.digest));
            let entry = entry.map_err(|error| Fault::Io(error.to_string()))?;
            match entry {
                Some(entry) if entry.location != tried => {
                    tried = entry.location;
                    result = read(tried);
                }
                Some(_) => break,
                None => {
                    return Err(Fault::Missing {
                        hash: child.digest.to_string(),
                    });
                }
            }
        }
        result
    }
}
