//! Everything a client can ask for.

use serde_json::Value;

use crate::model::{
    Action, Balloon, BalloonStatisticsUpdate, BalloonUpdate, BootSource, Console, CreateSnapshot,
    Drive, Entropy, Fs, LoadSnapshot, Logger, MachineConfig, MachineConfigUpdate, Metrics,
    MmdsConfig, NetworkInterface, NetworkInterfaceUpdate, PartialDrive, Pmem, Serial, VmState,
    Vsock,
};

/// A request that is well formed. Whether its values make sense, and whether it comes at the right time, is the
/// [`Handler`](crate::Handler)'s to say.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is named after its route")]
pub enum Request {
    GetInstance,
    GetVersion,
    GetMachineConfig,
    GetVmConfig,
    GetBalloon,
    GetBalloonStatistics,
    GetMmds,
    /// Ours.
    GetMetrics,
    PutBootSource(BootSource),
    PutMachineConfig(MachineConfig),
    PutDrive(Drive),
    PutNetworkInterface(NetworkInterface),
    PutVsock(Vsock),
    PutLogger(Logger),
    PutMetrics(Metrics),
    PutAction(Action),
    PutBalloon(Balloon),
    PutEntropy(Entropy),
    PutMmds(Value),
    PutMmdsConfig(MmdsConfig),
    PutSerial(Serial),
    PutPmem(Pmem),
    /// Ours.
    PutConsole(Console),
    /// Ours.
    PutFs(Fs),
    CreateSnapshot(CreateSnapshot),
    LoadSnapshot(LoadSnapshot),
    PatchVm(VmState),
    PatchDrive(PartialDrive),
    PatchNetworkInterface(NetworkInterfaceUpdate),
    PatchBalloon(BalloonUpdate),
    PatchBalloonStatistics(BalloonStatisticsUpdate),
    PatchMachineConfig(MachineConfigUpdate),
    PatchMmds(Value),
    /// Ours: by its ID.
    DeleteDrive(String),
    /// Ours: by its ID.
    DeleteNetworkInterface(String),
    /// A route of Firecracker's for something that this VMM does not have, by a short name.
    NotSupported(&'static str),
}
