//! Persistent memory of the guest: a file mapped into its physical address space.

use std::path::PathBuf;

use super::ConfigError;

/// Most characters of a device's name within its guest.
const MAX_ID_LENGTH: usize = 64;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PmemConfig {
    /// Its name.
    pub id: String,
    /// The file on the host.
    pub path: PathBuf,
    /// The guest's root file system is in it.
    pub is_root: bool,
    /// The guest cannot write.
    pub read_only: bool,
}

impl PmemConfig {
    /// Checks what can be judged without the host.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let permitted = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let len = self.id.len();
        if !(1..=MAX_ID_LENGTH).contains(&len) || !self.id.chars().all(permitted) {
            return Err(self.refused("its id must be 1 to 64 letters, digits, \"_\" and \"-\""));
        }
        if self.path.as_os_str().is_empty() {
            return Err(self.refused("path_on_host is empty"));
        }
        Ok(())
    }

    /// Checks that it does not get into the way of `other`.
    pub(super) fn check_with(&self, other: &Self) -> Result<(), ConfigError> {
        if self.id == other.id {
            return Err(self.refused("there is another of this id"));
        }
        if self.path == other.path && !(self.read_only && other.read_only) {
            return Err(self.refused("another device has the same file, and one of them writes"));
        }
        if self.is_root && other.is_root {
            return Err(self.refused("another device is the root device already"));
        }
        Ok(())
    }

    /// An error about this device.
    pub(super) fn refused(&self, reason: &'static str) -> ConfigError {
        ConfigError::Pmem {
            id: self.id.clone(),
            reason,
        }
    }
}
