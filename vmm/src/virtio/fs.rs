//! File systems of the host's: from the configuration to the device.

use std::os::unix::net::UnixStream;

use devices::virtio::fs::Fs;

use super::VirtioError;
use super::listener::reach;
use crate::config::FsConfig;
use crate::jail::opened::{self, Kind};
use crate::jail::seccomp;
use crate::metrics;

/// Connects to the program that serves `config`, for a later [`make`].
pub(super) fn open_ahead(config: &FsConfig) -> Result<(), VirtioError> {
    let stream = reach(&config.socket).map_err(|source| VirtioError::FsSocket {
        tag: config.tag.clone(),
        path: config.socket.clone(),
        source,
    })?;
    opened::keep(Kind::Connection, &config.socket, stream);
    Ok(())
}

/// Connects to the program that serves `config`.
pub(super) fn make(config: &FsConfig) -> Result<Fs, VirtioError> {
    let tag = || config.tag.clone();
    let connected = match opened::take(Kind::Connection, &config.socket) {
        Some(stream) => Ok(UnixStream::from(stream)),
        None => reach(&config.socket),
    };
    let connected = connected.and_then(|stream: UnixStream| {
        stream.set_nonblocking(false)?;
        Ok(stream)
    });
    let stream = connected.map_err(|source| VirtioError::FsSocket {
        tag: tag(),
        path: config.socket.clone(),
        source,
    })?;
    let fs = Fs::new(&config.tag, stream, seccomp::begin_device).map_err(|source| {
        VirtioError::FsBackend {
            tag: tag(),
            path: config.socket.clone(),
            source,
        }
    })?;
    metrics::process().watch("fs", Some(&config.tag), &fs);
    Ok(fs)
}
