//! Looking at everything: every chunk against its hash, every count against what is there.

use std::collections::HashSet;
use std::sync::Arc;

use crate::PAGE;
use crate::disk::DiskInfo;
use crate::error::{Error, Fault, Result};
use crate::hash::{Digest, DigestMap};
use crate::image::{Attached, ImageInfo, LIST_GROUP as RUN};
use crate::index::View;
use crate::segment::{FIRST, Kind, Window};
use crate::snapshot::{Fetch, Info, births, check_working_set};
use crate::store::{Inner, Store};
use crate::tree::{Child, Failed, Node};

/// How far a verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes looked at, as stored, and of images.
    pub done: u64,
    /// All bytes.
    pub total: u64,
}

/// What a verification found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Snapshots that were walked.
    pub snapshots: u64,
    /// Chunks that were read.
    pub chunks: u64,
    /// Images that were read, from the first page to the last.
    pub images: u64,
    /// Images that were not, because nobody has attached them.
    pub detached: Vec<Digest>,
    /// What is wrong: nothing, it is to be hoped.
    pub problems: Vec<Error>,
}

impl Store {
    /// Reads everything that is referenced and checks its hashes, and counts all references anew. Images that are attached
    /// are read too.
    pub fn verify(&self, progress: &mut dyn FnMut(Progress)) -> Result<Verified> {
        let view = self.0.index.view()?;
        let mut verified = Verified::default();
        let mut walk = Walk {
            inner: &self.0,
            total: view.segments()?.iter().map(|(_, _, live)| live).sum(),
            done: 0,
            refs: DigestMap::default(),
            bad: HashSet::new(),
            window: Window::wide(),
        };
        let mut images = Vec::new();
        for (id, bytes) in view.images()? {
            match ImageInfo::unseal(&id, &bytes) {
                Ok(info) => images.push(info),
                Err(error) => verified.problems.push(error),
            }
        }
        walk.total += images.iter().map(|info| info.len).sum::<u64>();
        let mut all: Vec<Info> = Vec::new();
        for (id, bytes) in view.snapshots()? {
            match Info::unseal(id, &bytes) {
                Ok(info) => all.push(info),
                Err(error) => verified.problems.push(error),
            }
        }
        for info in &all {
            verified.snapshots += 1;
            let parent = all.iter().find(|other| Some(other.id) == info.parent);
            walk.snapshot(&view, parent, info, &mut verified, progress)?;
        }
        // With a damaged node, what is below it cannot be counted.
        if verified.problems.is_empty() {
            walk.counts(&view, &mut verified)?;
        }
        for info in &all {
            // Only a hint, but somebody has changed it.
            if let Err(error @ Error::Record { .. }) = check_working_set(&view, info.id) {
                verified.problems.push(error);
            }
        }
        for info in &images {
            walk.image(info, &mut verified, progress)?;
        }
        let disks = DiskInfo::all(&view)?;
        let disks = disks.iter().filter_map(|disk| disk.image);
        let objects = all.iter().flat_map(|info| &info.objects);
        for id in disks.chain(objects.filter_map(|object| object.image)) {
            if !images.iter().any(|info| info.id == id) {
                let image = id.to_string();
                verified.problems.push(Error::NoImage { image });
            }
        }
        Ok(verified)
    }
}

/// Problems of one image that are told.
const WRONG: usize = 16;

struct Walk<'a> {
    inner: &'a Inner,
    total: u64,
    done: u64,
    refs: DigestMap<u64>,
    bad: HashSet<Digest>,
    window: Window,
}

impl Walk<'_> {
    fn snapshot(
        &mut self,
        view: &View,
        parent: Option<&Info>,
        info: &Info,
        verified: &mut Verified,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        // Page, chunk, object: of those that were not met before.
        let mut fresh: Vec<(u64, Child, usize, bool)> = Vec::new();
        let walked = births(
            &mut Fetch::new(self.inner),
            parent,
            info,
            &mut |object, step, child| {
                let refs = self.refs.entry(child.digest).or_default();
                *refs += 1;
                if *refs == 1 || self.bad.contains(&child.digest) {
                    let object = info
                        .objects
                        .iter()
                        .position(|other| other.name == object.name);
                    fresh.push((step.page, *child, object.unwrap_or(0), step.level.is_some()));
                }
            },
        );
        if let Err(error) = walked {
            verified.problems.push(error);
        }
        // In the order of the disk.
        fresh.sort_unstable_by_key(|(_, child, ..)| child.location);
        let mut page = [0; PAGE];
        for (at, child, object, node) in fresh {
            // The index is what must be right: hints are only hints.
            let entry = view.chunk(&child.digest)?;
            let fault = match entry {
                None => Some(Fault::Missing {
                    hash: child.digest.to_string(),
                }),
                Some(entry) => {
                    self.done += u64::from(entry.len);
                    verified.chunks += 1;
                    let location = entry.location;
                    let segments = &self.inner.segments;
                    let window = &mut self.window;
                    if node {
                        match segments.read(location, &child.digest, Kind::Node, window) {
                            Ok((_, payload)) if Node::genuine(payload, &child.digest) => None,
                            Ok(_) => Some(Fault::Node("its hash differs")),
                            Err(fault) => Some(fault),
                        }
                    } else {
                        segments
                            .page(location, &child.digest, window, &mut page)
                            .err()
                    }
                }
            };
            if let Some(fault) = fault {
                self.bad.insert(child.digest);
                let failed = Failed { page: at, fault };
                let object = &info.objects[object].name;
                (verified.problems).push(crate::snapshot::corrupt(info.id, object, failed));
            }
            progress(Progress {
                done: self.done.min(self.total),
                total: self.total,
            });
        }
        Ok(())
    }

    /// Reads an image, or at least the list of its digests.
    fn image(
        &mut self,
        info: &ImageInfo,
        verified: &mut Verified,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let mut wrong = 0;
        let mut note = |verified: &mut Verified, error| {
            verified.problems.push(error);
            wrong += 1;
            // A file that is another one is wrong everywhere.
            wrong < WRONG
        };
        // As it is on the disk, and not as it was read once.
        let list = match self.inner.open_list(info) {
            Ok(list) => Arc::new(list),
            Err(error) => {
                // Or it was forgotten since this began, or adopted anew.
                let now = self.inner.index.view()?.image(&info.id)?;
                let now = now.and_then(|record| ImageInfo::unseal(&info.id, &record).ok());
                if now.as_ref() == Some(info) {
                    note(verified, error);
                }
                return Ok(());
            }
        };
        let image = match self.inner.image(&info.id) {
            Ok(attached) => {
                verified.images += 1;
                let (list, image) = (Arc::clone(&list), Arc::clone(&attached.image));
                Some(Attached { list, image })
            }
            Err(_) => {
                verified.detached.push(info.id);
                None
            }
        };
        let start = self.done;
        let mut buffer = vec![[0; PAGE]; RUN];
        for first in (0..list.pages()).step_by(RUN) {
            let count = usize::try_from(list.pages() - first)
                .unwrap_or(RUN)
                .min(RUN);
            let (whole, pages) = (first + RUN as u64, &mut buffer[..count]);
            let read = match &image {
                Some(image) => image.pages(first, pages),
                None => list.digest(first).map(drop),
            };
            if let Err(error) = read
                && !note(verified, error)
            {
                break;
            }
            self.done = start + (whole * PAGE as u64).min(info.len);
            let (done, total) = (self.done.min(self.total), self.total);
            progress(Progress { done, total });
        }
        self.done = start + info.len;
        Ok(())
    }

    fn counts(&self, view: &View, verified: &mut Verified) -> Result<()> {
        let mut live: std::collections::BTreeMap<u32, u64> = std::collections::BTreeMap::new();
        let mut known = 0;
        for chunk in view.chunks()? {
            let (digest, entry) = chunk?;
            known += 1;
            *live.entry(entry.location.segment).or_default() += u64::from(entry.len);
            let needed = self.refs.get(&digest).copied().unwrap_or(0);
            if needed != entry.refs {
                verified.problems.push(Error::References {
                    hash: digest.to_string(),
                    found: entry.refs,
                    needed,
                });
            }
        }
        if known < self.refs.len() {
            verified.problems.push(Error::Record {
                what: "the index".to_owned(),
                why: format!("it has {known} chunks of {}", self.refs.len()),
            });
        }
        for (segment, len, counted) in view.segments()? {
            let live = live.remove(&segment).unwrap_or(0);
            if counted != live || (live > 0 && len < live + u64::from(FIRST)) {
                verified.problems.push(Error::Record {
                    what: format!("segment {segment}"),
                    why: format!("it counts {counted} bytes in use of {len}, and {live} are"),
                });
            }
        }
        for (segment, live) in live {
            verified.problems.push(Error::Record {
                what: format!("segment {segment}"),
                why: format!("it is not known, and {live} bytes of it are in use"),
            });
        }
        Ok(())
    }
}
