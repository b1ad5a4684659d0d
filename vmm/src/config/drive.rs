//! A disk of the guest.

use std::fmt;
use std::path::PathBuf;

use super::{ConfigError, RateLimiterConfig};

/// Name of a drive within its guest: letters, digits and `_`, at most 64 (Firecracker's rule).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveId(String);

impl DriveId {
    /// Most characters of a name.
    pub const MAX_LENGTH: usize = 64;

    /// Checks the name.
    pub fn new(name: String) -> Result<Self, ConfigError> {
        let permitted = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if name.is_empty() || name.len() > Self::MAX_LENGTH || !name.chars().all(permitted) {
            return Err(ConfigError::BadDriveId {
                id: name,
                max: Self::MAX_LENGTH,
            });
        }
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DriveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One raw disk image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveConfig {
    /// Its name.
    pub id: DriveId,
    /// The image or block device on the host.
    pub path: PathBuf,
    /// The guest cannot write.
    pub read_only: bool,
    /// The guest's root file system is on this drive.
    pub is_root: bool,
    /// Partition of the root file system on a root drive; `None` is the whole drive.
    pub partuuid: Option<String>,
    /// How much the guest may read and write in a time.
    pub rate_limiter: RateLimiterConfig,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["rootfs", "a", "disk_1", "data-2"] {
            assert!(DriveId::new(good.into()).is_ok(), "{good}");
        }
        for bad in ["", "a b", "../x", "ü", &"x".repeat(65)] {
            assert!(DriveId::new(bad.into()).is_err(), "{bad}");
        }
    }
}
