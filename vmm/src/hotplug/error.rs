//! What can be wrong with plugging and unplugging.

use std::fmt;
use std::io;

use devices::pci::SlotError;

use crate::config::ConfigError;
use crate::device_thread::ThreadError;
use crate::virtio::VirtioError;

/// The name of a device that can be removed while the guest runs. Drives and network interfaces have names of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceId {
    /// `drive_id`.
    Drive(String),
    /// `iface_id`.
    Net(String),
}

impl DeviceId {
    /// What it is, as in the names of Firecracker's requests.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Drive(_) => "drive",
            Self::Net(_) => "network-interface",
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Drive(name) | Self::Net(name) => name,
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Drive(_) => "drive",
            Self::Net(_) => "network interface",
        };
        write!(f, "{kind} \"{}\"", self.name())
    }
}

/// Why a device was not plugged in or not removed.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant describes it and its values"
)]
pub enum HotplugError {
    #[error(
        "Devices cannot be plugged or unplugged while the guest runs: its virtio devices are on MMIO. Start it with \
         --enable-pci"
    )]
    NoPci,
    #[error("Cannot plug in {id}")]
    Config {
        id: DeviceId,
        #[source]
        source: Box<ConfigError>,
    },
    #[error(
        "Cannot plug in {id} as root device: the guest has booted. Set is_root_device to false"
    )]
    RootDevice { id: DeviceId },
    #[error(
        "Cannot plug in {id}: all device numbers on the PCI bus are taken. Remove a device first"
    )]
    NoFreeSlot { id: DeviceId },
    #[error("Cannot plug in {id}")]
    Make {
        id: DeviceId,
        #[source]
        source: Box<VirtioError>,
    },
    #[error(
        "Cannot plug in {id} by host_dev_fd: descriptors are handed over when the VMM starts. Use host_dev_name"
    )]
    Descriptor { id: DeviceId },
    #[error("Cannot plug in {id} now: too many devices wait to be plugged in")]
    Busy { id: DeviceId },
    #[error("Cannot connect {id} to the guest")]
    Connect {
        id: DeviceId,
        #[source]
        source: io::Error,
    },
    #[error("Cannot let {id} work")]
    Thread {
        id: DeviceId,
        #[source]
        source: ThreadError,
    },
    #[error("Cannot place {id}")]
    Slot {
        id: DeviceId,
        #[source]
        source: SlotError,
    },
    #[error("There is no {id}")]
    Unknown { id: DeviceId },
    #[error("Cannot remove {id}: the guest's root file system is on it")]
    RootInUse { id: DeviceId },
    #[error("The guest has been asked to let go of {id} already")]
    AlreadyAsked { id: DeviceId },
    #[error(
        "The guest did not let go of {id} within {seconds} s, it stays: the guest may be busy with it, or not know hot-plug \
         by ACPI (Linux: CONFIG_HOTPLUG_PCI_ACPI)"
    )]
    TimedOut { id: DeviceId, seconds: u64 },
    #[error("The guest has ended, and {id} with it")]
    Ended { id: DeviceId },
}

impl HotplugError {
    /// Whether another request would help (rather than another host or guest).
    pub fn is_request(&self) -> bool {
        match self {
            Self::Make { source, .. } => source.is_configuration(),
            Self::Connect { .. } | Self::Thread { .. } | Self::Slot { .. } => false,
            _ => true,
        }
    }
}
