//! `network-interfaces`.

use serde::{Deserialize, Serialize};

use super::RateLimiter;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// Its name.
    pub iface_id: String,
    /// The host's tap interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
    /// Ours: a tap that was opened for this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_dev_fd: Option<i32>,
    /// The guest's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// The longest packet in bytes, if the guest is to be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// How much the guest may receive in a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// How much the guest may send in a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// What can be changed of an interface while a guest has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfaceUpdate {
    /// Its name.
    pub iface_id: String,
    /// How much the guest may receive in a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// How much the guest may send in a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}
