//! What Daruma's guests are made of: root file systems, initial RAM disks and the disks they lie on.
//!
//! Each recipe turns named inputs (a BusyBox, a Debian mirror, a program) into one image file with the tools of the
//! distribution, without mounting anything, and gives the same bytes for the same inputs as far as those tools do.
//! The recipes' texts lie beside the code, in `pocket/` and `debian/`.

pub mod agent;
pub mod busybox;
pub mod debian;
pub mod disk;
pub mod ext4;
pub mod pocket;
pub mod stick;
mod table;
mod tool;
pub mod web;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("Could not {action} {path}")]
    Io {
        /// A verb: "read", "write", "create" …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A tool could not be started at all.
    #[error(
        "Could not start {program}: is it installed? `cargo xtask doctor` lists what is needed"
    )]
    Start {
        /// The tool's name.
        program: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A tool ran and failed.
    #[error("{program} failed with {status}; its output is in {log}, and ends with:\n{tail}")]
    Tool {
        /// The tool's name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// Where all it said was written.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// The given BusyBox cannot serve in an image without libraries.
    #[error("{path} is not usable as BusyBox: {reason}; take the one from Debian's busybox-static")]
    BusyBox {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The partition table could not be written.
    #[error("Could not write the partition table of {path}")]
    PartitionTable {
        /// The disk image.
        path: PathBuf,
        /// What the table's writer said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// A file of a recipe: its path in the image, its mode and its content.
pub(crate) struct RecipeFile {
    pub path: &'static str,
    pub mode: u32,
    pub content: &'static str,
}

/// Everything of a recipe that decides what comes out, in one string: callers hash it to know whether a built image
/// is still the right one.
pub(crate) fn fingerprint(files: &[RecipeFile], rest: &[&str]) -> String {
    let mut text = String::new();
    for RecipeFile {
        path,
        mode,
        content,
    } in files
    {
        text.push_str(&format!("{path} {mode:o} {}\n{content}\n", content.len()));
    }
    for part in rest {
        text.push_str(&format!("{}\n{part}\n", part.len()));
    }
    text
}
