//! What of a device goes into a snapshot, as values, and why a device cannot go on from one.
//!
//! A snapshot may be damaged or made by hand: what is restored is checked like what a driver says.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::queue::{QueueError, QueueRegisters, QueueState};

/// A virtio device, whatever its transport: all that its driver has set, and where its queues stand.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct VirtioSaved {
    /// Device ID (virtio 1.2 §5).
    pub device_id: u32,
    /// Device status (§2.1).
    pub status: u32,
    /// Which half of the device's features the driver looks at.
    pub device_features_select: u32,
    /// Which half of its own features the driver writes.
    pub driver_features_select: u32,
    /// What the driver has accepted, or is about to.
    pub driver_features: u64,
    /// Which queue the queue registers are of.
    pub queue_select: u32,
    /// The queues, in their order.
    pub queues: Vec<QueueSaved>,
    /// Counts changes of the configuration.
    pub config_generation: u32,
    /// The rest, which is the device type's own.
    pub device: DeviceState,
}

/// One queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct QueueSaved {
    /// What the driver has written.
    pub registers: QueueRegisters,
    /// Where it stands, if it runs. Nothing is in flight: the next entries are the same on both sides.
    pub state: Option<QueueState>,
}

/// What a type of device knows beyond features, configuration and queues.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// Nothing.
    Plain,
    /// A disk.
    Block {
        /// A flush has failed: none succeeds until the driver starts anew.
        lost: bool,
    },
    /// A network interface.
    Net {
        /// The guest's address, which may be made from the name of a tap that is another one later.
        mac: [u8; 6],
    },
    /// A socket device. Streams are not saved: the driver is told that they are gone.
    Vsock {
        /// The guest's address.
        cid: u64,
    },
    /// A balloon.
    Balloon {
        /// Pages that it shall have.
        target_pages: u32,
        /// Pages that it has, as the driver says.
        actual_pages: u32,
    },
    /// A console.
    Console(ConsoleState),
}

/// A console device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ConsoleState {
    /// Columns and rows of the terminal.
    pub size: (u16, u16),
    /// Control messages that the driver has not taken yet.
    pub waiting: Vec<Vec<u8>>,
    /// Its ports, in their order.
    pub ports: Vec<PortState>,
}

/// One port of a console device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PortState {
    /// The driver has it open.
    pub open: bool,
    /// The number of the peer the driver knows of.
    pub told: Option<u64>,
    /// What came from the host and the guest has not taken yet.
    pub input: Vec<u8>,
    /// Bytes of the first request in the transmitting queue that the host has taken already.
    pub taken: u32,
}

/// Why a device has no state to give.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("A virtio device of type {device_id} cannot be part of a snapshot: {why}")]
pub struct SaveError {
    /// Device ID.
    pub device_id: u32,
    /// Why.
    pub why: &'static str,
}

/// Why a device cannot go on from a state.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum RestoreError {
    #[error("The state is of a virtio device of type {found}, the device is of type {expected}")]
    OtherDevice { found: u32, expected: u32 },
    #[error("The state \"{kind}\" does not belong to a virtio device of type {device_id}")]
    Kind { device_id: u32, kind: String },
    #[error("The state has {found} {what}, the device has {expected}")]
    Count {
        what: &'static str,
        found: usize,
        expected: usize,
    },
    #[error(
        "The guest uses the features {missing:#x}, which the device does not have here: does the host offer less?"
    )]
    Features { missing: u64 },
    #[error("The state contradicts itself: {what}")]
    Contradiction { what: &'static str },
    #[error(
        "Byte {register:#x} of the function's configuration space is {found:#x}, expected is {expected:#x}"
    )]
    ConfigSpace {
        register: usize,
        found: u8,
        expected: u8,
    },
    #[error("Queue {index} cannot go on")]
    Queue {
        index: u16,
        #[source]
        source: QueueError,
    },
    #[error("The device cannot be set up as it was: {what}")]
    Host {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

impl RestoreError {
    /// `state` is that of another type of device.
    pub(super) fn kind(device_id: u32, state: &DeviceState) -> Self {
        let kind = match state {
            DeviceState::Plain => "plain",
            DeviceState::Block { .. } => "block",
            DeviceState::Net { .. } => "net",
            DeviceState::Vsock { .. } => "vsock",
            DeviceState::Balloon { .. } => "balloon",
            DeviceState::Console(_) => "console",
        };
        Self::Kind {
            device_id,
            kind: kind.into(),
        }
    }

    /// An error unless there are as many.
    pub(super) fn count(what: &'static str, found: usize, expected: usize) -> Result<(), Self> {
        if found == expected {
            return Ok(());
        }
        Err(Self::Count {
            what,
            found,
            expected,
        })
    }
}
