//! `mmds-config`.

use serde::{Deserialize, Serialize};

/// How guests reach their metadata.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// `"V1"` or `"V2"`; V1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The interfaces that serve them.
    pub network_interfaces: Vec<String>,
    /// Where the guest finds them; 169.254.169.254 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<String>,
    /// Whether the answer is plain text whatever the guest accepts.
    #[serde(default)]
    pub imds_compat: bool,
}
