//! What can be wrong with a configuration.

use std::io;
use std::path::PathBuf;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant describes it and its values"
)]
pub enum ConfigError {
    #[error(transparent)]
    Mmds(#[from] crate::mmds::ConfigError),
    #[error("Cannot read the configuration file {path}", path = .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("The configuration file {path} is {size} bytes, permitted are {max}", path = .path.display())]
    FileTooLarge { path: PathBuf, size: u64, max: u64 },
    #[error("The configuration file {path} cannot be understood", path = .path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("There is nothing to boot: boot-source is missing")]
    NoBootSource,
    #[error("{field} is {value}, permitted are {min} to {max} {unit}")]
    OutOfRange {
        field: &'static str,
        value: i64,
        min: i64,
        max: i64,
        unit: &'static str,
    },
    #[error(
        "machine-config.smt gives each core two threads, which {vcpus} vCPUs do not: make machine-config.vcpu_count even"
    )]
    OddThreads { vcpus: u8 },
    #[error("Cannot have pmem device \"{id}\": {reason}")]
    Pmem { id: String, reason: &'static str },
    #[error("Cannot have file system \"{tag}\": {reason}")]
    Fs { tag: String, reason: &'static str },
    #[error("console has {count} ports, permitted are 1 to {max}")]
    ConsolePorts { count: usize, max: usize },
    #[error(
        "console.ports.name is \"{name}\", permitted are 1 to {max} letters, digits, \".\", \"_\" and \"-\""
    )]
    BadPortName { name: String, max: usize },
    #[error("Two console ports are named \"{name}\"")]
    DuplicatePort { name: String },
    #[error("{field} is empty")]
    Empty { field: &'static str },
    #[error("{what} is not supported yet: remove it from the configuration")]
    NotSupportedYet { what: &'static str },
    #[error("{field} is \"{value}\", permitted are {permitted}")]
    UnknownWord {
        field: &'static str,
        value: String,
        permitted: &'static str,
    },
    #[error("The kernel command line is {length} bytes, permitted are {max}")]
    CmdlineTooLong { length: usize, max: usize },
    #[error(
        "The kernel command line has the byte {byte:#04x} at position {position}, permitted is printable ASCII"
    )]
    CmdlineCharacter { position: usize, byte: u8 },
    #[error("drive_id is \"{id}\", permitted are 1 to {max} letters, digits, \"_\" and \"-\"")]
    BadDriveId { id: String, max: usize },
    #[error(
        "Drive \"{id}\" has backing_files, which only a qcow2 image can have: remove them or set format to \"qcow2\""
    )]
    RawWithBackingFiles { id: String },
    #[error("Two drives are named \"{id}\"")]
    DuplicateDrive { id: String },
    #[error("iface_id is \"{id}\", permitted are 1 to {max} letters, digits, \"_\" and \"-\"")]
    BadInterfaceId { id: String, max: usize },
    #[error(
        "Network interface \"{id}\" needs either host_dev_name, the name of a tap, or host_dev_fd, an open one"
    )]
    OneTap { id: String },
    #[error("host_dev_name is \"{name}\", permitted are interface names of 1 to {max} characters")]
    BadTapName { name: String, max: usize },
    #[error(
        "guest_mac is \"{mac}\", permitted are addresses of one station, like \"02:00:00:00:00:01\""
    )]
    BadMac { mac: String },
    #[error("Two network interfaces are named \"{id}\"")]
    DuplicateInterface { id: String },
    #[error("Network interfaces \"{first}\" and \"{second}\" share one {what}: give each its own")]
    InterfacesShare {
        first: String,
        second: String,
        what: &'static str,
    },
    #[error(
        "vsock.uds_path {path} is {length} bytes, permitted are {max}: sockets have short paths",
        path = .path.display()
    )]
    SocketPathTooLong {
        path: PathBuf,
        length: usize,
        max: usize,
    },
    #[error("Drives \"{first}\" and \"{second}\" are both root devices, permitted is one")]
    TwoRootDrives { first: String, second: String },
    #[error(
        "Drives \"{first}\" and \"{second}\" share {path} and one of them writes: make both read-only or give each its own image",
        path = .path.display()
    )]
    DriveSharedForWriting {
        first: String,
        second: String,
        path: PathBuf,
    },
    #[error(
        "{devices} virtio devices, permitted are {max}: every device needs a number of its own on the PCI bus"
    )]
    TooManyDevices { devices: usize, max: usize },
}
