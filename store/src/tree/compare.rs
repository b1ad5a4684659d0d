//! Two trees, walked together where they differ.

use super::{Child, Nodes, Root, Side, span};
use crate::error::Fault;

/// A place at which two trees differ.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Level of the node; `None` for a page.
    pub level: Option<u8>,
    /// The page, or the first page below the node.
    pub page: u64,
    pub old: Option<&'a Child>,
    pub new: Option<&'a Child>,
    /// Whether the new tree has nothing here.
    pub gone: bool,
}

/// Visits each node and page at which two trees differ. Below a node, only if `visit` says so. What both trees share
/// costs nothing.
pub fn compare<E: From<Failed>>(
    nodes: &mut dyn Nodes,
    old: Option<Root>,
    new: Option<Root>,
    visit: &mut dyn FnMut(Step<'_>) -> Result<bool, E>,
) -> Result<(), E> {
    let level = (old.iter().chain(&new)).map(|root| root.level).max();
    let Some(level) = level else { return Ok(()) };
    let side = |root: Option<Root>| root.map_or(Side::Nothing, |root| Side::at(level, root));
    walk(nodes, level, 0, side(old), side(new), visit)
}

/// A node that could not be read.
#[derive(Debug)]
pub struct Failed {
    /// First page below it.
    pub page: u64,
    pub fault: Fault,
}

fn walk<E: From<Failed>>(
    nodes: &mut dyn Nodes,
    level: u8,
    page: u64,
    old: Side,
    new: Side,
    visit: &mut dyn FnMut(Step<'_>) -> Result<bool, E>,
) -> Result<(), E> {
    let differ = match (&old, &new) {
        (Side::Nothing, Side::Nothing) => false,
        (Side::Here(old), Side::Here(new)) => old.digest != new.digest,
        (Side::Below(old), Side::Below(new)) => {
            (old.level, old.child.digest) != (new.level, new.child.digest)
        }
        _ => true,
    };
    if !differ {
        return Ok(());
    }
    let step = Step {
        level: Some(level),
        page,
        old: old.here(),
        new: new.here(),
        gone: matches!(new, Side::Nothing),
    };
    if (step.old.is_some() || step.new.is_some()) && !visit(step)? {
        return Ok(());
    }
    let failed = |fault| Failed { page, fault };
    let olds = old.children(level, nodes).map_err(failed)?;
    let news = new.children(level, nodes).map_err(failed)?;
    for (slot, (old, new)) in (0_u64..).zip(olds.into_iter().zip(news)) {
        if level > 0 {
            walk(
                nodes,
                level - 1,
                page + slot * span(level - 1),
                old,
                new,
                visit,
            )?;
            continue;
        }
        let (old, new) = (old.here(), new.here());
        if old.map(|child| child.digest) != new.map(|child| child.digest) {
            visit(Step {
                level: None,
                page: page + slot,
                old,
                new,
                gone: new.is_none(),
            })?;
        }
    }
    Ok(())
}
