//! The devices with little to say about them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{RateLimiter, TokenBucket};

/// `vsock`: the socket device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's address.
    pub guest_cid: u32,
    /// Where programs of the host reach the guest.
    pub uds_path: PathBuf,
    /// A name without a meaning: there is one device at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
}

/// `entropy`: the device that gives random numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// How much the guest may take in a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// `pmem`: a file in the guest's address space.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pmem {
    /// Its name.
    pub id: String,
    /// The file.
    pub path_on_host: PathBuf,
    /// Whether the guest's root file system is in it.
    #[serde(default)]
    pub root_device: bool,
    /// Whether the guest cannot write.
    #[serde(default)]
    pub read_only: bool,
}

/// `serial`: the serial port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// Where its output goes instead of standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<PathBuf>,
    /// How much the guest may print in a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucket>,
}

/// `console`, ours: the virtio console.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// Whether its first port is a terminal on standard input and output.
    #[serde(default)]
    pub stdio: bool,
    /// Named byte streams.
    #[serde(default)]
    pub ports: Vec<ConsolePort>,
}

/// One named byte stream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ConsolePort {
    /// By which the guest knows it.
    pub name: String,
    /// The Unix socket it is served at.
    pub path: PathBuf,
}

/// `fs`, ours: a file system of the host's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fs {
    /// By which the guest mounts it.
    pub tag: String,
    /// The Unix socket of the program that serves it.
    pub socket: PathBuf,
}
