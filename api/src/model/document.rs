//! A whole guest: a configuration file, and the answer to `GET /vm/config`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Balloon, BootSource, Console, Drive, Entropy, Fs, Logger, MachineConfig, Metrics, MmdsConfig,
    NetworkInterface, Pmem, Serial, Vsock,
};

/// All sections. Those that Firecracker has and this VMM does not may be there as long as they ask for nothing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(missing_docs, reason = "each section is its type")]
pub struct Document {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_source: Option<BootSource>,
    #[serde(default)]
    pub machine_config: Option<MachineConfig>,
    #[serde(default)]
    pub drives: Vec<Drive>,
    #[serde(default)]
    pub network_interfaces: Vec<NetworkInterface>,
    #[serde(default)]
    pub pmem: Vec<Pmem>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fs: Vec<Fs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Balloon>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Entropy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<Console>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logger: Option<Logger>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mmds_config: Option<MmdsConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_config: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_hotplug: Option<Value>,
}
