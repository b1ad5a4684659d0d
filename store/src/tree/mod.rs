//! Merkle trees from pages to chunks.
//!
//! A tree has 32 children per node; a page of zeros, and a node without children, is no entry. Nodes are chunks like
//! pages are: the digest of the root speaks for all of it. Where a child lies is stored beside its digest and not hashed:
//! it is a hint, and after garbage collection has moved a chunk, the index knows better.

mod compare;
mod node;
mod update;

pub use compare::{Failed, Step, compare};
pub use node::{Child, Node};
pub use update::{Edit, Sink, update};

use std::sync::Arc;

use crate::PAGE;
use crate::error::{Fault, Result};

/// Children of a node, as a power of two.
pub const FANOUT_BITS: u32 = 5;
/// Children of a node.
pub const FANOUT: usize = 1 << FANOUT_BITS;
/// Largest object, bytes.
pub const MAX_LEN: u64 = 1 << 48;

/// A tree: its root and how high that is. Level 0 has pages below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    pub level: u8,
    pub child: Child,
}

/// Where nodes come from.
pub trait Nodes {
    /// The node at `child`, verified, which must be of `level`.
    fn node(&mut self, child: &Child, level: u8) -> Result<Arc<Node>, Fault>;
}

/// Pages of an object of `len` bytes.
pub fn pages(len: u64) -> u64 {
    len.div_ceil(PAGE as u64)
}

/// Level of the root of an object of `len` bytes.
pub fn level(len: u64) -> u8 {
    let mut level = 0;
    while pages(len) > span(level) {
        level += 1;
    }
    level
}

/// Pages below a node of `level`.
pub fn span(level: u8) -> u64 {
    1 << (FANOUT_BITS * (u32::from(level) + 1)).min(63)
}

/// One side of a walk over two trees of perhaps different heights.
#[derive(Clone, Copy, Debug)]
enum Side {
    Nothing,
    Here(Child),
    /// The tree is lower: its root is the first descendant at its level.
    Below(Root),
}

impl Side {
    /// The tree as seen from `level`, which is not below its root.
    fn at(level: u8, root: Root) -> Self {
        if root.level == level {
            Self::Here(root.child)
        } else {
            Self::Below(root)
        }
    }

    fn here(&self) -> Option<&Child> {
        match self {
            Self::Here(child) => Some(child),
            _ => None,
        }
    }

    /// The sides of the children of a node of `level`, which is not a leaf.
    fn children(&self, level: u8, nodes: &mut dyn Nodes) -> Result<[Self; FANOUT], Fault> {
        let mut sides = [Self::Nothing; FANOUT];
        match self {
            Self::Nothing => {}
            Self::Here(child) => {
                let node = nodes.node(child, level)?;
                for (slot, child) in node.children() {
                    sides[slot] = Self::Here(*child);
                }
            }
            Self::Below(root) => sides[0] = Self::at(level.saturating_sub(1), *root),
        }
        Ok(sides)
    }
}
