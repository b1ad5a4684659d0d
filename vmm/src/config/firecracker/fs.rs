//! `fs`, which Firecracker does not have.

use std::path::PathBuf;

use serde::Deserialize;

use crate::config::FsConfig;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fs {
    tag: String,
    socket: PathBuf,
}

impl From<Fs> for FsConfig {
    fn from(fs: Fs) -> Self {
        Self {
            tag: fs.tag,
            socket: fs.socket,
        }
    }
}
