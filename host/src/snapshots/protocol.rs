//! What supervisor and service say to each other: JSON, one object a line each way. An answer has the number of what it
//! answers; there may be several reports of progress before it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::thinning::Thinning;

/// Number of what the service says of itself when it has opened its store, or cannot.
pub const GREETING: u64 = 0;

/// The supervisor asks.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Number of the request.
    pub id: u64,
    /// What is to be done.
    #[serde(flatten)]
    pub what: What,
}

/// What the supervisor may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum What {
    /// Get the disks of a guest ready that is about to start. Answered by [`Opened`].
    Open {
        /// Whose.
        guest: String,
        /// Its writable disks.
        disks: Vec<DiskSource>,
        /// What it begins with.
        begin: Begin,
        /// A folder of the guest's for sockets.
        folder: PathBuf,
    },
    /// Guests were healthy for long enough after these snapshots.
    Good {
        /// Their ids. One that is gone is passed over.
        snapshots: Vec<u64>,
    },
    /// A guest ended in order: what it has left is newer than its snapshots, and not to be gone back behind.
    Left {
        /// Which.
        guest: String,
    },
    /// Find the snapshot that a guest can go on from. Answered by [`Found`].
    Find {
        /// Whose.
        guest: String,
        /// Its id; the newest without it.
        snapshot: Option<u64>,
    },
    /// The VMM of the guest is gone.
    Close {
        /// Whose.
        guest: String,
    },
    /// Take a snapshot of a guest that runs.
    Take {
        /// Of which.
        guest: String,
        /// What is said of it.
        labels: BTreeMap<String, String>,
        /// Which of the checkpoints before it are kept.
        thinning: Option<Thinning>,
    },
    /// A command that only concerns what is stored.
    Stored {
        /// Which.
        command: StoreCommand,
    },
}

/// What a guest begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Begin {
    /// Its disks as it left them.
    Left,
    /// A snapshot.
    From(Origin),
    /// Its newest good snapshot, unless it ended in order since; its disks as it left them without one.
    Resume,
    /// It has fallen: so many good snapshots back from the newest, or if none is known to be good, of those that were
    /// taken while it was ready; its disks as it left them if there are not so many.
    Back {
        /// 0 is the newest good snapshot.
        steps: u32,
        /// Why it fell.
        reason: String,
    },
    /// It has fallen, and nothing else helps: its images, as if it had never run.
    Factory {
        /// Why it fell.
        reason: String,
    },
}

/// What a guest goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The snapshot's id.
    pub snapshot: u64,
    /// The guest is a fork of this one, whose snapshot it is: it has its memory in common with other forks.
    pub fork_of: Option<String>,
}

/// A disk that stands on an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSource {
    /// What the VMM calls it.
    pub drive_id: String,
    /// The image, which is not written to.
    pub image: PathBuf,
}

/// A snapshot that a guest can go on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its id.
    pub snapshot: u64,
    /// What the user should know: a damaged snapshot was passed over, for one.
    pub remarks: Vec<String>,
}

/// A guest's disks are ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Sockets on which the disks are served by NBD, in the order that they were asked for.
    pub sockets: Vec<PathBuf>,
    /// How the guest goes on from a snapshot.
    pub load: Option<Load>,
    /// The snapshot without memory whose disks it boots from.
    pub disks_of: Option<u64>,
    /// What it has lost by that.
    pub lost: Option<Lost>,
    /// What the user should know: a damaged snapshot was passed over, for one.
    pub remarks: Vec<String>,
}

/// What a guest loses that goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Milliseconds since the snapshot that it goes back to.
    pub ms: Option<u64>,
    /// Bytes of its disks that it had written since.
    pub bytes: u64,
    /// The snapshot of its disks as they were.
    pub evidence: Option<u64>,
}

/// A snapshot, ready to be loaded by a VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Its id.
    pub snapshot: u64,
    /// File of the guest's state.
    pub state: PathBuf,
    /// Socket of who serves its memory, or the file that it is.
    pub memory: PathBuf,
    /// It is a file, which forks have in common.
    pub shared: bool,
    /// The guest had said that it was ready.
    pub ready: bool,
    /// There was an agent in it.
    pub agent: bool,
    /// It has a socket device.
    pub sockets: bool,
}

/// Commands that only concern what is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "store", rename_all = "kebab-case", deny_unknown_fields)]
pub enum StoreCommand {
    /// All snapshots, or those of one guest.
    List {
        /// Whose.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guest: Option<String>,
    },
    /// Delete a snapshot.
    Delete {
        /// Its id.
        snapshot: u64,
    },
    /// Where two snapshots differ.
    Diff {
        /// The older one.
        old: u64,
        /// The newer one.
        new: u64,
    },
    /// Write a snapshot to a file.
    Export {
        /// Its id.
        snapshot: u64,
        /// A file that does not exist.
        path: PathBuf,
    },
    /// Take a snapshot in from such a file.
    Import {
        /// The file.
        path: PathBuf,
    },
    /// What there is, and how much.
    Status,
    /// Read everything and check it.
    Verify,
    /// Free what nobody needs.
    Collect {
        /// Every bit of it, whatever that costs.
        all: bool,
    },
}

impl StoreCommand {
    /// Whether it takes something away, which nobody may do while a snapshot is taken.
    pub fn deletes(&self) -> bool {
        matches!(self, Self::Delete { .. } | Self::Collect { .. })
    }
}

/// The service answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// Number of the request.
    pub id: u64,
    /// How it went.
    #[serde(flatten)]
    pub done: Done,
}

/// How it went, or goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Done {
    /// Well.
    Ok(Value),
    /// Not.
    Error(String),
    /// It goes on.
    Progress {
        /// What is done.
        what: String,
        /// How much of it.
        done: u64,
        /// Of how much; 0 where that is not known.
        total: u64,
    },
}
