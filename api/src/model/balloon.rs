//! `balloon`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A balloon device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// How much of the guest's memory the balloon shall have, in MiB.
    pub amount_mib: u32,
    /// Whether the guest takes memory back when it is short of it.
    pub deflate_on_oom: bool,
    /// How often the guest is asked for statistics, in seconds; zero is never.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// Whether the guest is asked for hints of free pages.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// Whether the guest reports free pages.
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// Another size for the balloon.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// In MiB.
    pub amount_mib: u32,
}

/// Another interval for the balloon's statistics.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatisticsUpdate {
    /// In seconds.
    pub stats_polling_interval_s: u16,
}

/// A balloon, and the guest's memory as the guest sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BalloonStatistics {
    /// Pages of 4096 bytes that the balloon shall have.
    pub target_pages: u32,
    /// Pages that it has, as the guest says.
    pub actual_pages: u32,
    /// The same in MiB.
    pub target_mib: u32,
    /// The same in MiB.
    pub actual_mib: u32,
    /// What the guest says, by Firecracker's names: bytes, or counts of events.
    #[serde(flatten)]
    pub guest: BTreeMap<&'static str, u64>,
}
