//! What one guest is made of, as typed and checked values.
//!
//! These types know no file format. [`firecracker`] reads them from Firecracker's JSON; an API can fill them from
//! requests.

mod balloon;
mod boot;
mod console;
mod cpu;
mod drive;
mod error;
pub mod firecracker;
mod fs;
mod limits;
mod net;
mod pmem;
mod rate_limiter;
mod vsock;

pub use balloon::BalloonConfig;
pub use boot::{BootConfig, BootProtocol, DEFAULT_BOOT_ARGS};
pub use console::{ConsoleConfig, ConsolePort};
pub use cpu::{CpuConfig, CpuTemplate};
pub use drive::{DiskFormat, DriveConfig, DriveId, DriveQueues};
pub use error::ConfigError;
pub use fs::FsConfig;
pub use limits::{MemorySize, VcpuCount};
pub use net::{MacAddress, NetConfig, TapSource};
pub use pmem::PmemConfig;
pub use rate_limiter::{BucketConfig, RateLimiterConfig};
pub use vsock::VsockConfig;

use std::path::PathBuf;

use crate::mmds;

/// Most virtio devices one guest can have: one device number on the PCI bus each, but for that of the host bridge. On
/// MMIO there are fewer interrupt lines.
pub const MAX_VIRTIO_DEVICES: usize = devices::pci::SLOTS - 1;

/// Everything that is needed to build one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// Number of virtual CPUs.
    pub vcpus: VcpuCount,
    /// What the vCPUs are.
    pub cpu: CpuConfig,
    /// Guest memory.
    pub memory: MemorySize,
    /// Whether it is noted which pages of it change, for snapshots of those alone.
    pub track_dirty: bool,
    /// Kernel, initrd and command line.
    pub boot: BootConfig,
    /// Whether virtio devices are on PCI, or else on MMIO.
    pub pci: bool,
    /// Disks, in the order in which the guest sees them.
    pub drives: Vec<DriveConfig>,
    /// Network interfaces, in the order in which the guest sees them.
    pub net: Vec<NetConfig>,
    /// The console device, if the guest has one.
    pub console: Option<ConsoleConfig>,
    /// The balloon device, if the guest has one.
    pub balloon: Option<BalloonConfig>,
    /// The socket device, if the guest has one.
    pub vsock: Option<VsockConfig>,
    /// Files in the guest's address space, in the order in which it sees them.
    pub pmem: Vec<PmemConfig>,
    /// File systems of the host's, in the order in which the guest sees them.
    pub fs: Vec<FsConfig>,
    /// The limits of the guest's virtio entropy device, if it has one.
    pub entropy: Option<RateLimiterConfig>,
    /// How the guest reaches its metadata, if it does.
    pub mmds: Option<mmds::Config>,
    /// Where the serial port prints to, if not to standard output.
    pub serial_output: Option<PathBuf>,
}

impl VmConfig {
    /// How many virtio devices the guest has.
    pub fn virtio_devices(&self) -> usize {
        let single = [
            self.vsock.is_some(),
            self.entropy.is_some(),
            self.console.is_some(),
            self.balloon.is_some(),
        ];
        let single = single.into_iter().filter(|there| *there).count();
        self.drives.len() + self.net.len() + self.pmem.len() + self.fs.len() + single
    }

    /// Whether other processes of the host work in the guest's memory.
    pub fn shares_memory(&self) -> bool {
        !self.fs.is_empty()
    }

    /// Checks what no single field can: drive names are unique, one root drive, enough interrupt lines, no image that
    /// is written through two drives.
    pub fn check(&self) -> Result<(), ConfigError> {
        let devices = self.virtio_devices();
        if devices > MAX_VIRTIO_DEVICES {
            return Err(ConfigError::TooManyDevices {
                devices,
                max: MAX_VIRTIO_DEVICES,
            });
        }
        if let Some(console) = &self.console {
            console.check()?;
        }
        if let Some(vsock) = &self.vsock {
            vsock.check()?;
        }
        if let Some(balloon) = &self.balloon {
            balloon.check(self.memory)?;
        }
        for (index, net) in self.net.iter().enumerate() {
            net.check()?;
            for earlier in &self.net[..index] {
                net.check_with(earlier)?;
            }
        }
        for (index, pmem) in self.pmem.iter().enumerate() {
            pmem.check()?;
            for earlier in &self.pmem[..index] {
                pmem.check_with(earlier)?;
            }
            let shares = |drive: &DriveConfig| {
                drive.path == pmem.path && !(drive.read_only && pmem.read_only)
            };
            if self.drives.iter().any(shares) {
                return Err(pmem.refused("a drive has the same file, and one of them writes"));
            }
            if pmem.is_root && self.drives.iter().any(|drive| drive.is_root) {
                return Err(pmem.refused("a drive is the root device already"));
            }
        }
        for (index, fs) in self.fs.iter().enumerate() {
            fs.check()?;
            for earlier in &self.fs[..index] {
                fs.check_with(earlier)?;
            }
        }
        for (index, drive) in self.drives.iter().enumerate() {
            for earlier in &self.drives[..index] {
                if earlier.id == drive.id {
                    return Err(ConfigError::DuplicateDrive {
                        id: drive.id.to_string(),
                    });
                }
                if earlier.path == drive.path && !(earlier.read_only && drive.read_only) {
                    return Err(ConfigError::DriveSharedForWriting {
                        first: earlier.id.to_string(),
                        second: drive.id.to_string(),
                        path: drive.path.clone(),
                    });
                }
                if earlier.is_root && drive.is_root {
                    return Err(ConfigError::TwoRootDrives {
                        first: earlier.id.to_string(),
                        second: drive.id.to_string(),
                    });
                }
            }
        }
        Ok(())
    }
}
