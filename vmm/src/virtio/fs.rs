//! File systems of the host's: from the configuration to the device.

use std::os::unix::net::UnixStream;

use devices::virtio::fs::Fs;

use super::VirtioError;
use super::listener::reach;
use crate::config::FsConfig;
use crate::metrics;

/// Connects to the program that serves `config`.
pub(super) fn make(config: &FsConfig) -> Result<Fs, VirtioError> {
    let tag = || config.tag.clone();
    let connected = reach(&config.socket).and_then(|stream: UnixStream| {
        stream.set_nonblocking(false)?;
        Ok(stream)
    });
    let stream = connected.map_err(|source| VirtioError::FsSocket {
        tag: tag(),
        path: config.socket.clone(),
        source,
    })?;
    let fs = Fs::new(&config.tag, stream).map_err(|source| VirtioError::FsBackend {
        tag: tag(),
        path: config.socket.clone(),
        source,
    })?;
    metrics::process().watch("fs", Some(&config.tag), &fs);
    Ok(fs)
}
