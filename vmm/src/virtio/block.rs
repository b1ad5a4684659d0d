//! Disks: from the configuration to the device.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use devices::virtio::block::{Block, Engine, Options, RawFile};

use super::VirtioError;
use crate::config::{DriveConfig, DriveQueues, RateLimiterConfig, VcpuCount};

/// Opens the image of `drive`, for a guest with `vcpus`.
pub(super) fn make(drive: &DriveConfig, vcpus: VcpuCount) -> Result<Block, VirtioError> {
    let (id, path) = (drive.id.to_string(), drive.path.clone());
    let file = match open(&drive.path, drive.read_only) {
        Ok(file) => file,
        Err(source) => return Err(VirtioError::OpenDrive { id, path, source }),
    };
    let backend = match RawFile::new(file, drive.read_only) {
        Ok(raw) => Box::new(raw),
        Err(source) => return Err(VirtioError::UseDrive { id, path, source }),
    };
    let limiter = match drive.rate_limiter {
        limits if limits == RateLimiterConfig::default() => None,
        limits => Some(super::rate_limiter(limits)?),
    };
    let options = Options {
        serial: drive.id.to_string(),
        queues: drive
            .queues
            .unwrap_or_else(|| DriveQueues::for_vcpus(vcpus))
            .get(),
        limiter,
    };
    Block::new(backend, Engine::new(drive.engine), options)
        .map_err(|source| VirtioError::DriveEvents { id, source })
}

fn open(path: &Path, read_only: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(!read_only).open(path)
}
