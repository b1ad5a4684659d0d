//! What can go wrong, with what to do about it.

use std::io;

/// Result of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The medium refused.
    #[error("Could not {doing}")]
    Io {
        /// What was tried, with names.
        doing: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The medium has no room. What was committed before is whole.
    #[error(
        "Could not {doing}: the store's disk is full; delete snapshots and collect garbage, or make room"
    )]
    Full {
        /// What was tried.
        doing: String,
    },
    /// The index refused.
    #[error("Could not {doing} in the store's index")]
    Index {
        /// What was tried.
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// An earlier commit failed.
    #[error(
        "The store's disk failed during an earlier commit, which may be durable or not: open the store again"
    )]
    Failed,
    /// The directory holds something else.
    #[error("No store here: {why}")]
    NotAStore {
        /// What was found.
        why: String,
    },
    /// There is a store already.
    #[error("There is a store here already: open it, or choose an empty directory")]
    Exists,
    /// Made by a later program.
    #[error(
        "The store has format {found} and this program reads up to {known}: use a newer program"
    )]
    Newer {
        /// Format of the store.
        found: u32,
        /// Newest known format.
        known: u32,
    },
    /// Made on another machine.
    #[error("The store belongs to machine {found:?} and this is {here:?}: adopt it to go on")]
    OtherMachine {
        /// Machine that the store names.
        found: String,
        /// This machine.
        here: String,
    },
    /// A file of the store is not what its name says.
    #[error("{name} in the store is no file of this store: {why}; move it elsewhere")]
    Foreign {
        /// Name of the file.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file is missing or short: the store was copied in part.
    #[error(
        "{name} in the store has {found} bytes and {needed} are needed: the store is a partial copy or its disk lost data; copy it again, or restore it from a backup"
    )]
    Partial {
        /// Name of the file.
        name: String,
        /// Bytes there; 0 if it is missing.
        found: u64,
        /// Bytes that were committed.
        needed: u64,
    },
    /// Nothing can be changed.
    #[error("The store is open read-only: {doing} needs to write")]
    ReadOnly {
        /// What was tried.
        doing: &'static str,
    },
    /// What is stored is not what was stored.
    #[error("Snapshot {snapshot}, {object}, offset {offset:#x}: {fault}")]
    Corrupt {
        /// Id of the snapshot.
        snapshot: u64,
        /// Name of the object.
        object: String,
        /// Bytes from the object's start.
        offset: u64,
        /// What is wrong.
        fault: Fault,
    },
    /// The record of a snapshot, or of a disk, is damaged.
    #[error("The record of {what} is damaged: {why}")]
    Record {
        /// What the record describes.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The index counts wrongly. Found by `verify`.
    #[error("The index counts {found} references to chunk {hash} and there are {needed}")]
    References {
        /// Hash of the chunk, in hexadecimal.
        hash: String,
        /// References that the index counts.
        found: u64,
        /// References that exist.
        needed: u64,
    },
    /// No such snapshot.
    #[error("There is no snapshot {id}")]
    NoSnapshot {
        /// Id that was asked for.
        id: u64,
    },
    /// No such object in a snapshot.
    #[error("Snapshot {snapshot} has no object {object:?}")]
    NoObject {
        /// Id of the snapshot.
        snapshot: u64,
        /// Name that was asked for.
        object: String,
    },
    /// No such disk.
    #[error("There is no disk {name:?} in the store")]
    NoDisk {
        /// Name that was asked for.
        name: String,
    },
    /// No such image.
    #[error("There is no image {image} in the store: adopt it first")]
    NoImage {
        /// Id that was asked for, in hexadecimal.
        image: String,
    },
    /// Nobody has said where an image is.
    #[error(
        "Image {image} of {len} bytes is not attached: say where the file is that was adopted, or put it back"
    )]
    Detached {
        /// Id of the image, in hexadecimal.
        image: String,
        /// Bytes.
        len: u64,
    },
    /// A file that is said to be an image has another length.
    #[error(
        "This is not image {image}: it has {found} bytes and the image has {needed}; give the file that was adopted, or adopt this one"
    )]
    OtherImage {
        /// Id of the image, in hexadecimal.
        image: String,
        /// Bytes of the file.
        found: u64,
        /// Bytes of the image.
        needed: u64,
    },
    /// A page of an image is not what was adopted.
    #[error("Image {image}, offset {offset:#x}: {fault}")]
    Image {
        /// Id of the image, in hexadecimal.
        image: String,
        /// Bytes from its start.
        offset: u64,
        /// What is wrong.
        fault: Fault,
    },
    /// Something is in use that the call wants to change.
    #[error("{what} is in use by {user}: try again when that is done")]
    Busy {
        /// What is in use.
        what: String,
        /// By whom.
        user: String,
    },
    /// Bytes behind the end of an object or a disk, or not whole pages.
    #[error("{len} bytes at offset {offset:#x} do not fit {what} of {size} bytes")]
    Range {
        /// Object or disk.
        what: String,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Size of the object or disk, bytes.
        size: u64,
    },
    /// A name or a size that cannot be used.
    #[error("{what} cannot be used: {why}")]
    Unusable {
        /// What was given.
        what: String,
        /// Why not.
        why: &'static str,
    },
    /// A file that was to be imported is not what it should be.
    #[error("The imported file is no whole snapshot: {why}")]
    Import {
        /// What is wrong.
        why: String,
    },
}

/// What is wrong with a piece of data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The hash differs: bits have flipped.
    #[error(
        "the data does not have the hash {expected} it was stored with: the disk has changed it"
    )]
    Hash {
        /// The hash, in hexadecimal.
        expected: String,
    },
    /// The chunk is not in the index.
    #[error("chunk {hash} is not in the store")]
    Missing {
        /// The hash, in hexadecimal.
        hash: String,
    },
    /// A record that makes no sense.
    #[error("the record of chunk {hash} is damaged: {why}")]
    Record {
        /// The hash, in hexadecimal.
        hash: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A node of the tree that makes no sense.
    #[error("a node of the tree is damaged: {0}")]
    Node(&'static str),
    /// The list of an image's digests was changed.
    #[error("the store's list of the image's digests is damaged: adopt the image again")]
    List,
    /// Reading failed.
    #[error("reading failed: {0}")]
    Io(String),
}

impl Error {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let doing = doing.into();
            if source.kind() == io::ErrorKind::StorageFull {
                Self::Full { doing }
            } else {
                Self::Io { doing, source }
            }
        }
    }

    pub(crate) fn index<E: Into<redb::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |error| match error.into() {
            redb::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => Self::Full {
                doing: format!("{doing} in the index"),
            },
            error => Self::Index {
                doing,
                source: Box::new(error),
            },
        }
    }
}
