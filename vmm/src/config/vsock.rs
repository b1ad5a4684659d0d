//! The guest's socket device.

use std::path::PathBuf;

use devices::virtio::vsock::FIRST_GUEST_CID;

use super::ConfigError;

/// The most bytes of a Unix socket's path (`sun_path`, less the end).
pub(super) const MAX_SOCKET_PATH: usize = 107;
/// The most bytes that a port adds to the path: `_4294967295`.
const MAX_SUFFIX: usize = 11;

/// A socket device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's address.
    pub guest_cid: u32,
    /// Where programs of the host reach the guest; with `_<port>` after it, where the guest reaches them.
    pub uds_path: PathBuf,
}

impl VsockConfig {
    /// Checks what can be judged without the host.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        // The last one means "any".
        let addresses = FIRST_GUEST_CID..u32::MAX.into();
        if !addresses.contains(&self.guest_cid.into()) {
            return Err(ConfigError::OutOfRange {
                field: "vsock.guest_cid",
                value: self.guest_cid.into(),
                min: 3,
                max: i64::from(u32::MAX) - 1,
                unit: "(below are the hypervisor, the local machine and the host)",
            });
        }
        let length = self.uds_path.as_os_str().len();
        if length == 0 {
            return Err(ConfigError::Empty {
                field: "vsock.uds_path",
            });
        }
        if length > MAX_SOCKET_PATH - MAX_SUFFIX {
            return Err(ConfigError::SocketPathTooLong {
                path: self.uds_path.clone(),
                length,
                max: MAX_SOCKET_PATH - MAX_SUFFIX,
            });
        }
        Ok(())
    }
}
