//! The guest as a whole: what it is, and what can be done with it.

use serde::{Deserialize, Serialize};

/// `GET /`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names are Firecracker's")]
pub struct InstanceInfo {
    pub app_name: String,
    pub id: String,
    pub state: State,
    pub vmm_version: String,
}

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum State {
    /// It is being put together.
    #[serde(rename = "Not started")]
    NotStarted,
    /// It runs.
    Running,
    /// Its vCPUs stand still.
    Paused,
}

/// `GET /version`. The name is Firecracker's, the version ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the name is Firecracker's")]
pub struct Version {
    pub firecracker_version: String,
}

/// `PATCH /vm`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// What it shall do.
    pub state: VmState,
}

/// What the guest shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum VmState {
    /// Stand still.
    Paused,
    /// Go on.
    Resumed,
}

/// `PUT /actions`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ActionInfo {
    /// Which.
    pub action_type: Action,
}

/// Something to do once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Action {
    /// Write the metrics now.
    FlushMetrics,
    /// Build the guest and run it.
    InstanceStart,
    /// Ask the guest to shut down.
    SendCtrlAltDel,
}
