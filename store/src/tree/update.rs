//! A new tree from an old one: only the nodes above changed pages are made anew.

use super::{Child, FANOUT, Node, Nodes, Root, Side, level, pages, span};
use crate::error::Result;

/// A page that changes: to a chunk, or to zeros.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    pub page: u64,
    pub child: Option<Child>,
}

/// Where new nodes go.
pub trait Sink: Nodes {
    fn put(&mut self, node: Node) -> Result<Child>;

    /// A node that could not be read is a fault of the old tree at this page.
    fn failed(&self, page: u64, fault: crate::error::Fault) -> crate::error::Error;
}

/// The tree of an object of `len` bytes, which is `old` with `edits` done, in order of their pages and one per page.
pub fn update(
    sink: &mut dyn Sink,
    mut old: Option<Root>,
    edits: &[Edit],
    len: u64,
) -> Result<Option<Root>> {
    let level = level(len);
    // An object that shrank: its pages are all below the first descendant.
    while let Some(root) = old.filter(|root| root.level > level) {
        let node = (sink.node(&root.child, root.level)).map_err(|fault| sink.failed(0, fault))?;
        old = node.child(0).map(|child| Root {
            level: root.level - 1,
            child: *child,
        });
    }
    let side = old.map_or(Side::Nothing, |root| Side::at(level, root));
    let child = merge(sink, level, 0, side, edits, pages(len))?;
    Ok(child.map(|child| Root { level, child }))
}

fn merge(
    sink: &mut dyn Sink,
    level: u8,
    first: u64,
    old: Side,
    mut edits: &[Edit],
    limit: u64,
) -> Result<Option<Child>> {
    let whole = first.saturating_add(span(level)) <= limit;
    match old {
        _ if first >= limit => return Ok(None),
        Side::Nothing if edits.is_empty() => return Ok(None),
        Side::Here(child) if edits.is_empty() && whole => return Ok(Some(child)),
        _ => {}
    }
    let olds = (old.children(level, sink)).map_err(|fault| sink.failed(first, fault))?;
    let width = if level == 0 { 1 } else { span(level - 1) };
    let mut children = [None; FANOUT];
    for (slot, (child, old)) in children.iter_mut().zip(olds).enumerate() {
        let start = first + slot as u64 * width;
        let end = start.saturating_add(width);
        let (mine, rest) = edits.split_at(edits.partition_point(|edit| edit.page < end));
        edits = rest;
        *child = if level > 0 {
            merge(sink, level - 1, start, old, mine, limit)?
        } else if start >= limit {
            None
        } else if let Some(edit) = mine.last() {
            edit.child
        } else {
            old.here().copied()
        };
    }
    let same = |(child, old): (&Option<Child>, &Side)| {
        child.map(|child| child.digest) == old.here().map(|old| old.digest)
    };
    if let Side::Here(child) = old
        && children.iter().zip(&olds).all(same)
    {
        return Ok(Some(child));
    }
    match Node::new(level, &children) {
        Some(node) => sink.put(node).map(Some),
        None => Ok(None),
    }
}
