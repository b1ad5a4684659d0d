//! `fs`, which Firecracker does not have.

use api::model::Fs;

use crate::config::FsConfig;

pub(super) fn read(fs: &Fs) -> FsConfig {
    FsConfig {
        tag: fs.tag.clone(),
        socket: fs.socket.clone(),
    }
}
