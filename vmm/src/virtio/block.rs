//! Disks: from the configuration to the device.

use std::fs::{File, OpenOptions};
use std::io;

use devices::virtio::block::{Block, RawFile};

use super::VirtioError;
use crate::config::DriveConfig;

/// Opens the image of `drive`.
pub(super) fn make(drive: &DriveConfig) -> Result<Block, VirtioError> {
    let (id, path) = (drive.id.to_string(), drive.path.clone());
    let file: io::Result<File> = OpenOptions::new()
        .read(true)
        .write(!drive.read_only)
        .open(&drive.path);
    let file = match file {
        Ok(file) => file,
        Err(source) => return Err(VirtioError::OpenDrive { id, path, source }),
    };
    match RawFile::new(file, drive.read_only) {
        Ok(raw) => Ok(Block::new(Box::new(raw), drive.id.as_str())),
        Err(source) => Err(VirtioError::UseDrive { id, path, source }),
    }
}
