//! Reading chunks, wherever they are by now.

use std::sync::{Arc, PoisonError};

use super::Inner;
use crate::PAGE;
use crate::error::Fault;
use crate::segment::{Kind, Location, Window};
use crate::tree::{Child, Node};

/// Nodes that are kept: about 5 MiB.
const NODES: usize = 4096;

impl Inner {
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
        mut read: impl FnMut(Location) -> Result<T, Fault>,
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
