//! A file system of the host's, served to the guest by another program.

use std::path::PathBuf;

use devices::virtio::fs::MAX_TAG;

use super::ConfigError;
use super::vsock::MAX_SOCKET_PATH;

/// One file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsConfig {
    /// Its name, by which the guest mounts it.
    pub tag: String,
    /// Where the program that serves it listens: a vhost-user back-end, such as virtiofsd.
    pub socket: PathBuf,
}

impl FsConfig {
    /// Checks what can be judged without the host.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let permitted = |c: char| c.is_ascii_graphic();
        let len = self.tag.len();
        if !(1..=MAX_TAG).contains(&len) || !self.tag.chars().all(permitted) {
            return Err(self.refused("its tag must be 1 to 36 characters of ASCII without spaces"));
        }
        if !(1..=MAX_SOCKET_PATH).contains(&self.socket.as_os_str().len()) {
            return Err(self.refused("its socket must be a path of 1 to 107 bytes"));
        }
        Ok(())
    }

    /// Checks that it does not get into the way of `other`.
    pub(super) fn check_with(&self, other: &Self) -> Result<(), ConfigError> {
        if self.tag == other.tag {
            return Err(self.refused("there is another of this tag"));
        }
        if self.socket == other.socket {
            return Err(
                self.refused("another has the same socket, whose program serves one device")
            );
        }
        Ok(())
    }

    fn refused(&self, reason: &'static str) -> ConfigError {
        ConfigError::Fs {
            tag: self.tag.clone(),
            reason,
        }
    }
}
