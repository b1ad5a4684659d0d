//! The bodies of requests and answers, and of a configuration file: Firecracker's JSON.
//!
//! Every field is as it was written: these types say what is a string and what a number, and know no ranges. A field that
//! is unknown is an error. Fields of ours beyond Firecracker's say so.

mod balloon;
mod boot;
mod document;
mod drive;
mod instance;
mod limiter;
mod machine;
mod mmds;
mod net;
mod other;
mod snapshot;
mod telemetry;

pub use balloon::{Balloon, BalloonStatistics, BalloonStatisticsUpdate, BalloonUpdate};
pub use boot::BootSource;
pub use document::Document;
pub use drive::{Drive, PartialDrive};
pub use instance::{Action, ActionInfo, InstanceInfo, State, Version, Vm, VmState};
pub use limiter::{RateLimiter, TokenBucket};
pub use machine::{MachineConfig, MachineConfigUpdate};
pub use mmds::MmdsConfig;
pub use net::{NetworkInterface, NetworkInterfaceUpdate};
pub use other::{Console, ConsolePort, Entropy, Fs, Pmem, Serial, Vsock};
pub use snapshot::{
    CreateSnapshot, DriveOverride, LoadSnapshot, MemoryBackend, NetworkOverride, PmemOverride,
    VsockOverride,
};
pub use telemetry::{Logger, Metrics};
