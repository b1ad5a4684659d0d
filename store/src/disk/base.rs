//! What a disk stands on.

use std::sync::Arc;

use crate::error::Result;
use crate::hash::Digest;
use crate::snapshot::Object;
use crate::store::Inner;
use crate::tree::Root;

/// What a disk is to stand on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nothing: zeros.
    Zeros,
    /// An object of a snapshot, by the snapshot's id and the object's name.
    Object(u64, String),
    /// An image that was adopted, by its id.
    Image(Digest),
}

/// An object of a snapshot, or zeros.
impl From<Option<(u64, &str)>> for Base {
    fn from(object: Option<(u64, &str)>) -> Self {
        object.map_or(Self::Zeros, |(id, object)| {
            Self::Object(id, object.to_owned())
        })
    }
}

/// What a disk that is open stands on.
pub enum Ground {
    Zeros,
    Object(Object),
    /// An image, and its length.
    Image(Arc<Inner>, Digest, u64),
}

impl Ground {
    /// Bytes. What is behind them is zero.
    pub fn len(&self) -> u64 {
        match self {
            Self::Zeros => 0,
            Self::Object(object) => object.info().len,
            Self::Image(_, _, len) => *len,
        }
    }

    /// Reads bytes that are not behind the end.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        match self {
            Self::Zeros => bytes.fill(0),
            Self::Object(object) => object.read(offset, bytes)?,
            // Each time anew: it may be somewhere else by now.
            Self::Image(inner, id, _) => inner.image(id)?.read(offset, bytes)?,
        }
        Ok(())
    }

    /// The tree of a snapshot that stands on the same, and the image below that.
    pub fn root(&self) -> (Option<Root>, Option<Digest>) {
        match self {
            Self::Zeros => (None, None),
            Self::Object(object) => (object.info().tree(), object.info().image),
            Self::Image(_, id, _) => (None, Some(*id)),
        }
    }
}
