//! A disk of the guest.

use std::fmt;
use std::path::PathBuf;

use devices::virtio::block::engine::Preference;

use super::{ConfigError, RateLimiterConfig, VcpuCount};

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

/// Number of queues of a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriveQueues(u16);

impl DriveQueues {
    /// Fewest queues.
    pub const MIN: i64 = 1;
    /// Most queues: what guests with many vCPUs are given.
    pub const MAX: i64 = 16;

    /// Checks the number.
    pub fn new(value: i64) -> Result<Self, ConfigError> {
        match u16::try_from(value) {
            Ok(queues) if (Self::MIN..=Self::MAX).contains(&value) => Ok(Self(queues)),
            _ => Err(ConfigError::OutOfRange {
                field: "drives.queues",
                value,
                min: Self::MIN,
                max: Self::MAX,
                unit: "queues",
            }),
        }
    }

    /// One for each of `vcpus`, as far as that helps: one thread serves them all.
    pub fn for_vcpus(vcpus: VcpuCount) -> Self {
        Self(u16::from(vcpus.get()).min(4))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// What the bytes of an image file mean. Always said, never guessed: a guest can write any header to a raw disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DiskFormat {
    /// They are the disk's.
    #[default]
    Raw,
    /// QEMU's format.
    Qcow2 {
        /// The files that the image, and those it is based on, may be based on.
        backing_files: Vec<PathBuf>,
    },
    /// There is no file: the path is the Unix socket of a server, which has the disk as its default export (NBD).
    Nbd,
}

/// One disk image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveConfig {
    /// Its name.
    pub id: DriveId,
    /// The image or block device on the host, or the socket of a server.
    pub path: PathBuf,
    /// What is in it.
    pub format: DiskFormat,
    /// The guest cannot write.
    pub read_only: bool,
    /// The guest's root file system is on this drive.
    pub is_root: bool,
    /// Partition of the root file system on a root drive; `None` is the whole drive.
    pub partuuid: Option<String>,
    /// How much the guest may read and write in a time.
    pub rate_limiter: RateLimiterConfig,
    /// How its bytes are moved; what the host cannot do is done otherwise.
    pub engine: Preference,
    /// Number of queues; `None` is what suits the vCPUs.
    pub queues: Option<DriveQueues>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_1_to_16() {
        for value in [0, 17, -1, 1 << 16 | 1] {
            let text = DriveQueues::new(value).unwrap_err().to_string();
            let expected = format!("drives.queues is {value}, permitted are 1 to 16 queues");
            assert_eq!(text, expected);
        }
        assert_eq!(DriveQueues::new(16).unwrap().get(), 16);
        let vcpus = |count| VcpuCount::new("vcpu_count", count).unwrap();
        assert_eq!(DriveQueues::for_vcpus(vcpus(1)).get(), 1);
        assert_eq!(DriveQueues::for_vcpus(vcpus(32)).get(), 4);
    }

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
