//! Records in the index: JSON, so that a newer program can add to them, behind a BLAKE3 of it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::hash::Digest;

const DIGEST: usize = 32;

/// A record as it is stored.
pub fn seal(record: &impl Serialize) -> Vec<u8> {
    // Maps with names as keys, numbers and text: nothing of it can fail.
    let json = serde_json::to_vec(record).unwrap_or_default();
    [&Digest::of(&json).0[..], &json].concat()
}

/// A record that was stored.
pub fn unseal<T: DeserializeOwned>(what: &dyn Fn() -> String, bytes: &[u8]) -> Result<T> {
    let damaged = |why: String| Error::Record { what: what(), why };
    let (digest, json) = bytes
        .split_first_chunk::<DIGEST>()
        .ok_or_else(|| damaged("it is cut off".to_owned()))?;
    if Digest::of(json).0 != *digest {
        return Err(damaged("its hash differs".to_owned()));
    }
    serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text).ok_or_else(|| serde::de::Error::custom("no digest"))
    }
}
