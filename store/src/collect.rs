//! Collecting garbage: segments with too little in use are copied, without it, and removed.
//!
//! A chunk without references is out of the index when its last snapshot is. So all that a power cut can leave is a copy
//! of which nobody knows, and that goes when the store is opened.

use crate::codec::{Codec, Encoder};
use crate::error::{Fault, Result};
use crate::hash::Digest;
use crate::index::{Counter, Entry};
use crate::segment::{Appender, FIRST, Kind, Location, RECORD, Window};
use crate::snapshot::Deleting;
use crate::store::{Inner, Store};
use crate::tree::Node;
use crate::{Compression, PAGE};

/// How much is done for how little.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thoroughness {
    /// Segments of which a quarter is garbage, and many small ones.
    #[default]
    Worthwhile,
    /// Every segment with any garbage.
    All,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Segments that were removed.
    pub segments: u64,
    /// Images that were forgotten: nothing stood on them, and nobody had attached them.
    pub images: u64,
    /// Bytes that were copied.
    pub copied: u64,
    /// Bytes that are free now.
    pub freed: u64,
    /// Chunks that could not be copied, because they are damaged. Their segments stay.
    pub damaged: u64,
}

/// Garbage in a segment that is not worth copying it.
const LITTLE: u64 = 256 << 10;
/// A small segment.
const SMALL: u64 = 1 << 20;
/// Small segments that are many.
const MANY: usize = 16;

impl Store {
    /// Collects garbage. `progress` gets the bytes that are looked at, and all.
    pub fn collect(
        &self,
        thoroughness: Thoroughness,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Collected> {
        let inner = &self.0;
        inner.writable("collecting garbage")?;
        inner.index.usable()?;
        let _deleting = Deleting::begin(inner, None)?;
        let victims = inner.victims(thoroughness)?;
        let mut collected = Collected::default();
        if !victims.is_empty() {
            collected = inner.copy(&victims, progress)?;
        }
        let (images, bytes) = inner.forget_images()?;
        collected.images = images;
        collected.freed += bytes;
        Ok(collected)
    }
}

/// Chunks that were copied, and where to.
#[derive(Default)]
struct Copies {
    moved: Vec<(Digest, Location, u32)>,
    done: Vec<(u32, u32)>,
    appender: Option<Appender>,
}

impl Inner {
    /// Numbers of the segments that go, with their lengths.
    fn victims(&self, thoroughness: Thoroughness) -> Result<Victims> {
        let all = self.index.view()?.segments()?;
        let small = all.iter().filter(|(_, len, _)| *len < SMALL).count();
        let victims = all.into_iter().filter(|(_, len, live)| {
            let garbage = len.saturating_sub(*live + u64::from(FIRST));
            match thoroughness {
                Thoroughness::All => garbage > 0 || *live == 0,
                Thoroughness::Worthwhile => {
                    *live == 0
                        || (garbage > LITTLE && garbage > len / 4)
                        || (*len < SMALL && small > MANY)
                }
            }
        });
        Ok(victims.map(|(segment, len, _)| (segment, len)).collect())
    }

    fn copy(&self, victims: &Victims, progress: &mut dyn FnMut(u64, u64)) -> Result<Collected> {
        let mut collected = Collected::default();
        let view = self.index.view()?;
        let mut chunks: Vec<(Digest, Entry)> = Vec::new();
        for chunk in view.chunks()? {
            let chunk = chunk?;
            if victims.contains_key(&chunk.1.location.segment) {
                chunks.push(chunk);
            }
        }
        drop(view);
        chunks.sort_unstable_by_key(|(_, entry)| entry.location);
        let total = chunks.iter().map(|(_, entry)| u64::from(entry.len)).sum();
        let mut copies = Copies::default();
        let mut kept: Vec<u32> = Vec::new();
        let mut window = Window::wide();
        let mut encoder = Encoder::new(Compression::Fast);
        let mut done = 0;
        let copied = (|| -> Result<()> {
            for (digest, entry) in &chunks {
                match self.copy_one(&mut copies, &mut window, &mut encoder, digest, entry)? {
                    Ok(bytes) => collected.copied += u64::from(bytes),
                    Err(_) => {
                        collected.damaged += 1;
                        kept.push(entry.location.segment);
                    }
                }
                done += u64::from(entry.len);
                progress(done, total);
            }
            if let Some(appender) = copies.appender.take() {
                copies.close(appender)?;
            }
            if !copies.done.is_empty() {
                self.segments.sync_names()?;
            }
            let next = u64::from(self.use_().next_segment);
            self.index.change("move chunks", |change| {
                for &(segment, len) in &copies.done {
                    change.set_segment_len(segment, u64::from(len))?;
                }
                change.relocate(&copies.moved)?;
                for segment in victims.keys().filter(|segment| !kept.contains(segment)) {
                    change.remove_segment(*segment)?;
                }
                change.advance(Counter::Segment, next)
            })
        })();
        let appending = copies.appender.iter().map(Appender::segment);
        let mut use_ = self.use_();
        for segment in appending.chain(copies.done.iter().map(|(segment, _)| *segment)) {
            use_.appending.remove(&segment);
        }
        drop(use_);
        copied?;
        let new: u64 = copies.done.iter().map(|(_, len)| u64::from(*len)).sum();
        let mut old = 0;
        for (segment, len) in victims
            .iter()
            .filter(|(segment, _)| !kept.contains(segment))
        {
            self.segments.remove(*segment)?;
            collected.segments += 1;
            old += len;
        }
        self.segments.sync_names()?;
        collected.freed = old.saturating_sub(new);
        Ok(collected)
    }

    /// Copies a chunk, if it is what it should be. The outer error is the new place's.
    fn copy_one(
        &self,
        copies: &mut Copies,
        window: &mut Window,
        encoder: &mut Encoder,
        digest: &Digest,
        entry: &Entry,
    ) -> Result<Result<u32, Fault>> {
        let mut page = [0; PAGE];
        let location = entry.location;
        let (kind, codec, payload) = match self.segments.page(location, digest, window, &mut page) {
            Ok(()) => {
                let (codec, payload) = encoder.encode(&page);
                (Kind::Page, codec, payload)
            }
            Err(Fault::Record { .. }) => {
                match self.segments.read(location, digest, Kind::Node, window) {
                    Ok((codec, payload)) if Node::genuine(payload, digest) => {
                        (Kind::Node, codec, payload)
                    }
                    Ok(_) => return Ok(Err(Fault::Node("its hash differs"))),
                    Err(fault) => return Ok(Err(fault)),
                }
            }
            Err(fault) => return Ok(Err(fault)),
        };
        let location = copies.append(self, digest, kind, codec, payload)?;
        let len = u32::try_from(RECORD + payload.len()).unwrap_or(u32::MAX);
        copies.moved.push((*digest, location, len));
        Ok(Ok(len))
    }
}

/// Segments by number, with their lengths.
type Victims = std::collections::BTreeMap<u32, u64>;

impl Copies {
    fn append(
        &mut self,
        inner: &Inner,
        digest: &Digest,
        kind: Kind,
        codec: Codec,
        payload: &[u8],
    ) -> Result<Location> {
        let limit = inner.options.segment;
        if let Some(appender) = self.appender.take_if(|appender| appender.full(limit)) {
            self.close(appender)?;
        }
        let appender = match &mut self.appender {
            Some(appender) => appender,
            none => none.insert(inner.appender(true)?.0),
        };
        appender.append(digest, kind, codec, payload)
    }

    fn close(&mut self, mut appender: Appender) -> Result<()> {
        let len = appender.finish();
        self.done
            .push((appender.segment(), *len.as_ref().unwrap_or(&0)));
        len.map(drop)
    }
}
