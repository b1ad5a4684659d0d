//! New chunks of a snapshot that is being written: pages and nodes, each once.

use std::sync::Arc;

use super::Fetch;
use super::write::Draft;
use crate::PAGE;
use crate::codec::{Codec, Encoder};
use crate::error::{Error, Fault, Result};
use crate::hash::{self, Digest, DigestMap};
use crate::index::View;
use crate::segment::{Appender, Kind, Location, RECORD};
use crate::store::Inner;
use crate::tree::{Child, Edit, Node, Nodes, Sink};

/// Where new chunks go, and which there are.
pub struct Chunks {
    inner: Arc<Inner>,
    view: View,
    new: DigestMap<(Location, u32)>,
    nodes: DigestMap<Arc<Node>>,
    appender: Option<Appender>,
    /// Segments that are complete, with their lengths.
    done: Vec<(u32, u32)>,
    /// Segments that did not exist before.
    created: Vec<u32>,
}

impl Chunks {
    pub fn new(inner: Arc<Inner>, view: View) -> Self {
        Self {
            inner,
            view,
            new: DigestMap::default(),
            nodes: DigestMap::default(),
            appender: None,
            done: Vec::new(),
            created: Vec::new(),
        }
    }

    /// Chunks that are new, with the bytes of their records.
    pub fn new_ones(&self) -> &DigestMap<(Location, u32)> {
        &self.new
    }

    /// Segments that are complete, with their lengths.
    pub fn done(&self) -> &[(u32, u32)] {
        &self.done
    }

    /// Lets go of the segments, and removes those that this has made unless they are committed.
    pub fn release(&mut self, committed: bool) {
        let mut use_ = self.inner.use_();
        let appending = self.appender.iter().map(Appender::segment);
        for segment in appending.chain(self.done.iter().map(|(segment, _)| *segment)) {
            use_.appending.remove(&segment);
        }
        drop(use_);
        if !committed {
            for segment in &self.created {
                // What stays is removed when the store is opened next.
                let _ = self.inner.segments.remove(*segment);
            }
        }
    }

    /// The place of a chunk that is known already.
    fn known(&self, digest: &Digest) -> Result<Option<Location>> {
        if let Some((location, _)) = self.new.get(digest) {
            return Ok(Some(*location));
        }
        Ok(self.view.chunk(digest)?.map(|entry| entry.location))
    }

    pub fn pages(
        &mut self,
        encoder: &mut Encoder,
        draft: &mut Draft,
        group: &[(u64, &[u8; PAGE])],
    ) -> Result<()> {
        let mut pages = [&[0; PAGE]; hash::LANES];
        for (slot, (_, page)) in pages.iter_mut().zip(group) {
            *slot = page;
        }
        for (digest, &(page, bytes)) in hash::pages(&pages[..group.len()]).into_iter().zip(group) {
            if draft.below(page)? == Some(digest) {
                draft.edits.push(Edit { page, child: None });
                continue;
            }
            let location = match self.known(&digest)? {
                Some(location) => location,
                None => {
                    let (codec, payload) = encoder.encode(bytes);
                    let location = self
                        .appender()?
                        .append(&digest, Kind::Page, codec, payload)?;
                    self.remember(digest, location, payload.len());
                    location
                }
            };
            let child = Some(Child { digest, location });
            draft.edits.push(Edit { page, child });
        }
        Ok(())
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "a payload has at most a page"
    )]
    fn remember(&mut self, digest: Digest, location: Location, payload: usize) {
        self.new
            .insert(digest, (location, (RECORD + payload) as u32));
    }

    fn appender(&mut self) -> Result<&mut Appender> {
        let limit = self.inner.options.segment;
        if let Some(appender) = self.appender.take_if(|appender| appender.full(limit)) {
            self.close(appender)?;
        }
        if self.appender.is_none() {
            let (appender, new) = self.inner.appender(!self.done.is_empty())?;
            if new {
                self.created.push(appender.segment());
            }
            self.appender = Some(appender);
        }
        self.appender.as_mut().ok_or_else(|| Error::Unusable {
            what: "The segment".to_owned(),
            why: "there is none",
        })
    }

    fn close(&mut self, mut appender: Appender) -> Result<()> {
        let len = appender.finish();
        self.done
            .push((appender.segment(), *len.as_ref().unwrap_or(&0)));
        len.map(drop)
    }

    /// Makes all chunks durable.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(appender) = self.appender.take() {
            self.close(appender)?;
        }
        if !self.created.is_empty() {
            self.inner.segments.sync_names()?;
        }
        Ok(())
    }
}

impl Nodes for Chunks {
    fn node(&mut self, child: &Child, level: u8) -> Result<Arc<Node>, Fault> {
        if let Some(node) = self.nodes.get(&child.digest) {
            return Ok(Arc::clone(node));
        }
        Fetch::new(&self.inner).node(child, level)
    }
}

impl Sink for Chunks {
    fn put(&mut self, node: Node) -> Result<Child> {
        let (payload, digest) = node.encode();
        let location = match self.known(&digest)? {
            Some(location) => location,
            None => {
                let codec = Codec::Raw;
                let location = (self.appender()?).append(&digest, Kind::Node, codec, &payload)?;
                self.remember(digest, location, payload.len());
                location
            }
        };
        self.nodes.insert(digest, Arc::new(node));
        Ok(Child { digest, location })
    }

    fn failed(&self, page: u64, fault: Fault) -> Error {
        Error::Corrupt {
            snapshot: 0,
            object: String::new(),
            offset: page * PAGE as u64,
            fault,
        }
    }
}
