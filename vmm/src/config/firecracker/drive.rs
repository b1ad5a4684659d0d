//! `drives`.

use std::path::PathBuf;

use devices::virtio::block::engine::Preference;
use serde::Deserialize;
use serde_json::Value;

use super::rate_limiter::{self, RateLimiter};
use super::refuse;
use crate::config::{ConfigError, DiskFormat, DriveConfig, DriveId, DriveQueues};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Drive {
    drive_id: String,
    path_on_host: Option<PathBuf>,
    is_root_device: bool,
    is_read_only: Option<bool>,
    partuuid: Option<String>,
    cache_type: Option<String>,
    io_engine: Option<String>,
    rate_limiter: Option<RateLimiter>,
    socket: Option<Value>,
    queues: Option<i64>,
    format: Option<String>,
    backing_files: Option<Vec<PathBuf>>,
}

impl Drive {
    pub(super) fn check(self) -> Result<DriveConfig, ConfigError> {
        refuse("drives.socket (vhost-user)", self.socket.as_ref())?;
        let engine = match self.io_engine.as_deref() {
            None => Preference::Automatic,
            Some("Sync") => Preference::Synchronous,
            Some("Async") => Preference::Asynchronous,
            Some(_) => {
                return Err(ConfigError::UnknownWord {
                    field: "drives.io_engine",
                    value: self.io_engine.unwrap_or_default(),
                    permitted: "\"Sync\" and \"Async\"",
                });
            }
        };
        // A guest's flush always reaches the disk: "Unsafe" permits the VMM to skip it and does not ask for that.
        if let Some(cache) = self
            .cache_type
            .filter(|c| !matches!(c.as_str(), "Unsafe" | "Writeback"))
        {
            return Err(ConfigError::UnknownWord {
                field: "drives.cache_type",
                value: cache,
                permitted: "\"Unsafe\" and \"Writeback\"",
            });
        }
        let backing_files = self.backing_files.unwrap_or_default();
        let format = match self.format.as_deref() {
            None | Some("raw") if !backing_files.is_empty() => {
                return Err(ConfigError::RawWithBackingFiles { id: self.drive_id });
            }
            None | Some("raw") => DiskFormat::Raw,
            Some("qcow2") => DiskFormat::Qcow2 { backing_files },
            Some(_) => {
                return Err(ConfigError::UnknownWord {
                    field: "drives.format",
                    value: self.format.unwrap_or_default(),
                    permitted: "\"raw\" and \"qcow2\"",
                });
            }
        };
        let path = self
            .path_on_host
            .filter(|path| !path.as_os_str().is_empty())
            .ok_or(ConfigError::Empty {
                field: "drives.path_on_host",
            })?;
        Ok(DriveConfig {
            id: DriveId::new(self.drive_id)?,
            path,
            format,
            read_only: self.is_read_only.unwrap_or(false),
            is_root: self.is_root_device,
            partuuid: self.partuuid,
            rate_limiter: rate_limiter::check(self.rate_limiter),
            engine,
            queues: self.queues.map(DriveQueues::new).transpose()?,
        })
    }
}
