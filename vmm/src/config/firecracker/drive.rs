//! `drives`.

use api::model::Drive;
use devices::virtio::block::engine::Preference;

use super::{rate_limiter, refuse};
use crate::config::{ConfigError, DiskFormat, DriveConfig, DriveId, DriveQueues};

pub(crate) fn check(drive: &Drive) -> Result<DriveConfig, ConfigError> {
    refuse("drives.socket (vhost-user)", drive.socket.as_ref())?;
    let engine = match drive.io_engine.as_deref() {
        None => Preference::Automatic,
        Some("Sync") => Preference::Synchronous,
        Some("Async") => Preference::Asynchronous,
        Some(_) => {
            return Err(ConfigError::UnknownWord {
                field: "drives.io_engine",
                value: drive.io_engine.clone().unwrap_or_default(),
                permitted: "\"Sync\" and \"Async\"",
            });
        }
    };
    // A guest's flush always reaches the disk: "Unsafe" permits the VMM to skip it and does not ask for that.
    if let Some(cache) = drive
        .cache_type
        .clone()
        .filter(|c| !matches!(c.as_str(), "Unsafe" | "Writeback"))
    {
        return Err(ConfigError::UnknownWord {
            field: "drives.cache_type",
            value: cache,
            permitted: "\"Unsafe\" and \"Writeback\"",
        });
    }
    let backing_files = drive.backing_files.clone().unwrap_or_default();
    let format = match drive.format.as_deref() {
        None | Some("raw" | "nbd") if !backing_files.is_empty() => {
            return Err(ConfigError::RawWithBackingFiles {
                id: drive.drive_id.clone(),
            });
        }
        Some("nbd") => DiskFormat::Nbd,
        None | Some("raw") => DiskFormat::Raw,
        Some("qcow2") => DiskFormat::Qcow2 { backing_files },
        Some(_) => {
            return Err(ConfigError::UnknownWord {
                field: "drives.format",
                value: drive.format.clone().unwrap_or_default(),
                permitted: "\"raw\", \"qcow2\" and \"nbd\"",
            });
        }
    };
    let path = drive
        .path_on_host
        .clone()
        .filter(|path| !path.as_os_str().is_empty())
        .ok_or(ConfigError::Empty {
            field: "drives.path_on_host",
        })?;
    Ok(DriveConfig {
        id: DriveId::new(drive.drive_id.clone())?,
        path,
        format,
        read_only: drive.is_read_only.unwrap_or(false),
        is_root: drive.is_root_device,
        partuuid: drive.partuuid.clone(),
        rate_limiter: rate_limiter::read(drive.rate_limiter),
        engine,
        queues: drive.queues.map(DriveQueues::new).transpose()?,
    })
}
