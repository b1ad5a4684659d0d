//! What can be wrong in a machine file, said with the place and the way out.

use thiserror::Error;

use super::Protocol;
use crate::address::Mac;

/// A mistake in a machine file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{file} line {line}: {problem}")]
pub struct ConfigError {
    /// Name of the file.
    pub file: String,
    /// Line, counted from 1.
    pub line: usize,
    /// The mistake.
    pub problem: Box<Problem>,
}

/// The mistake itself.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// The text is no TOML.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// A key that nothing reads.
    #[error("unknown key '{key}' in {place}{}", suggestion(.nearest.as_deref()))]
    UnknownKey {
        /// The key.
        key: String,
        /// The section.
        place: String,
        /// The known key most like it.
        nearest: Option<String>,
    },
    /// A key without which there is no guest.
    #[error("key '{key}' is missing in {place}: {hint}")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// The section.
        place: String,
        /// What to write.
        hint: &'static str,
    },
    /// A value of another TOML type.
    #[error("'{key}' in {place} must be {expected}, not {found}")]
    WrongType {
        /// The key.
        key: String,
        /// The section.
        place: String,
        /// What is read here.
        expected: &'static str,
        /// The type that was found.
        found: &'static str,
    },
    /// A value that makes no sense for its key.
    #[error("'{key}' in {place} is {value}: {reason}")]
    BadValue {
        /// The key.
        key: String,
        /// The section.
        place: String,
        /// The value as written.
        value: String,
        /// Why not, and what would do.
        reason: String,
    },
    /// More RAM than there is.
    #[error("guest '{guest}' wants {wanted_mib} MiB of memory, but the host has {host_mib} MiB")]
    MemoryTooLarge {
        /// The guest.
        guest: String,
        /// RAM asked for in MiB.
        wanted_mib: u64,
        /// RAM of the host in MiB.
        host_mib: u64,
    },
    /// A second guest of one name.
    #[error("guest name '{name}' is already taken in line {first}; each guest needs its own")]
    DuplicateName {
        /// The name.
        name: String,
        /// Line of the guest that keeps it.
        first: usize,
    },
    /// One image, written by one guest and used by another.
    #[error(
        "disk '{source_text}' of guest '{guest}' is already used by guest '{other}' (line {other_line}), \
         and one of them writes to it; give it a copy, or make it read-only in both"
    )]
    SharedDisk {
        /// The image as written.
        source_text: String,
        /// The guest that is refused.
        guest: String,
        /// The guest that keeps the disk.
        other: String,
        /// Its line.
        other_line: usize,
    },
    /// One hardware address for two cards.
    #[error(
        "hardware address {mac} of guest '{guest}' is already used by guest '{other}' (line {other_line}); \
         give each its own"
    )]
    SharedMac {
        /// The address.
        mac: Mac,
        /// The guest that is refused.
        guest: String,
        /// The guest that keeps the address.
        other: String,
        /// Its line.
        other_line: usize,
    },
    /// One port of the host for two guests.
    #[error(
        "{protocol} port {port} of guest '{guest}' is already published for guest '{other}' (line {other_line}); \
         choose another"
    )]
    SharedPort {
        /// TCP or UDP.
        protocol: Protocol,
        /// Port of the host.
        port: u16,
        /// The guest that is refused.
        guest: String,
        /// The guest that keeps the port.
        other: String,
        /// Its line.
        other_line: usize,
    },
    /// Nothing to run.
    #[error("no [[guest]] section: nothing to run")]
    NoGuests,
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest
        .map(|key| format!("; did you mean '{key}'?"))
        .unwrap_or_default()
}

/// The candidate most like `word`, if one is alike enough to be meant.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
