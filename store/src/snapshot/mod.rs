//! Snapshots: what they are, and what can be done with whole ones.

pub(crate) use self::delete::Deleting;
mod chunks;
mod delete;
mod diff;
mod read;
mod working_set;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::diff::Changed;
pub(crate) use self::read::open;
pub use self::read::{Object, Snapshot};
pub use self::working_set::WORKING_SET;
pub(crate) use self::working_set::check as check_working_set;
pub use self::write::{ObjectId, Writer};
use crate::error::{Error, Fault, Result};
use crate::hash::Digest;
use crate::index::Counts;
use crate::record;
use crate::segment::{Location, Window};
use crate::store::{Inner, Store};
use crate::tree::{self, Child, Failed, Node, Nodes, Root};
use crate::{PAGE, index};

/// What a snapshot is to be.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// Whose it is.
    pub guest: String,
    /// The snapshot that it goes on from.
    pub parent: Option<u64>,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// Anything.
    pub labels: BTreeMap<String, String>,
}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Never used again.
    pub id: u64,
    /// Whose it is.
    pub guest: String,
    /// The snapshot that it went on from, or that one's parent if it was deleted.
    pub parent: Option<u64>,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// Anything.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether the guest was healthy after it.
    #[serde(default)]
    pub good: bool,
    /// Bytes that the store grew by with it.
    #[serde(default)]
    pub added: u64,
    /// By name, in order of the names.
    pub objects: Vec<ObjectInfo>,
}

/// An object of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectInfo {
    /// Name, such as `ram` or `disk:root`.
    pub name: String,
    /// Bytes.
    pub len: u64,
    /// Digest of the tree's root, which speaks for the content together with the length. `None` if all is zero, or
    /// as in the image.
    pub root: Option<Digest>,
    /// The image that it stands on: a page that is not in the tree is the image's, or zero behind that one's end. The
    /// object is not shorter than the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Digest>,
    /// Where the root was last seen.
    segment: u32,
    offset: u32,
}

impl ObjectInfo {
    pub(crate) fn new(name: String, len: u64, root: Option<Root>, image: Option<Digest>) -> Self {
        let location = root.map(|root| root.child.location);
        Self {
            name,
            len,
            root: root.map(|root| root.child.digest),
            image,
            segment: location.map_or(0, |location| location.segment),
            offset: location.map_or(0, |location| location.offset),
        }
    }

    pub(crate) fn tree(&self) -> Option<Root> {
        self.root.map(|digest| Root {
            level: tree::level(self.len),
            child: Child {
                digest,
                location: Location {
                    segment: self.segment,
                    offset: self.offset,
                },
            },
        })
    }
}

impl Info {
    /// The object of a name.
    pub fn object(&self, name: &str) -> Option<&ObjectInfo> {
        self.objects.iter().find(|object| object.name == name)
    }

    pub(crate) fn unseal(id: u64, bytes: &[u8]) -> Result<Self> {
        let what = || format!("snapshot {id}");
        let info: Self = record::unseal(&what, bytes)?;
        if info.id != id || info.objects.iter().any(|object| object.len > tree::MAX_LEN) {
            return Err(Error::Record {
                what: what(),
                why: "it contradicts itself".to_owned(),
            });
        }
        Ok(info)
    }
}

impl Store {
    /// All snapshots, in order of their ids.
    pub fn list(&self) -> Result<Vec<Info>> {
        list(&self.0.index.view()?)
    }

    /// What is known of a snapshot.
    pub fn info(&self, id: u64) -> Result<Info> {
        info(&self.0.index.view()?, id)
    }

    /// Changes labels and the verdict on a snapshot.
    pub fn mark(
        &self,
        id: u64,
        edit: impl FnOnce(&mut BTreeMap<String, String>, &mut bool),
    ) -> Result<()> {
        self.0.index.change("mark a snapshot", |change| {
            let bytes = change.snapshot(id)?.ok_or(Error::NoSnapshot { id })?;
            let mut info = Info::unseal(id, &bytes)?;
            edit(&mut info.labels, &mut info.good);
            change.set_snapshot(id, Some(&record::seal(&info)))
        })
    }
}

pub(crate) fn list(view: &index::View) -> Result<Vec<Info>> {
    let all = view.snapshots()?.into_iter();
    all.map(|(id, bytes)| Info::unseal(id, &bytes)).collect()
}

pub(crate) fn info(view: &index::View, id: u64) -> Result<Info> {
    let bytes = view.snapshot(id)?.ok_or(Error::NoSnapshot { id })?;
    Info::unseal(id, &bytes)
}

pub(crate) fn corrupt(snapshot: u64, object: &str, failed: Failed) -> Error {
    Error::Corrupt {
        snapshot,
        object: object.to_owned(),
        offset: failed.page * PAGE as u64,
        fault: failed.fault,
    }
}

/// Counts the references that `new` has and its parent has not: the rule of the crate's first page. `each` sees them.
pub(crate) fn births(
    nodes: &mut dyn Nodes,
    parent: Option<&Info>,
    new: &Info,
    each: &mut dyn FnMut(&ObjectInfo, tree::Step<'_>, &Child),
) -> Result<()> {
    for object in &new.objects {
        let old = parent.and_then(|parent| parent.object(&object.name));
        let visit = &mut |step: tree::Step<'_>| -> Result<bool, Failed> {
            if let Some(child) = step.new {
                each(object, step, child);
            }
            // Below a node that is gone, nothing is born.
            Ok(!step.gone)
        };
        tree::compare(nodes, old.and_then(ObjectInfo::tree), object.tree(), visit)
            .map_err(|failed| corrupt(new.id, &object.name, failed))?;
    }
    Ok(())
}

/// Adds `sign` to the counts of all that is born.
pub(crate) fn count(
    nodes: &mut dyn Nodes,
    parent: Option<&Info>,
    new: &Info,
    sign: i64,
    counts: &mut Counts,
) -> Result<()> {
    births(nodes, parent, new, &mut |_, _, child| {
        counts.add(child.digest, sign);
    })
}

/// Nodes from the store.
pub(crate) struct Fetch<'a> {
    inner: &'a Inner,
    window: Window,
}

impl<'a> Fetch<'a> {
    pub fn new(inner: &'a Inner) -> Self {
        Self {
            inner,
            window: Window::single(),
        }
    }
}

impl Nodes for Fetch<'_> {
    fn node(&mut self, child: &Child, level: u8) -> Result<Arc<Node>, Fault> {
        self.inner.cached(child, level, &mut self.window)
    }
}
