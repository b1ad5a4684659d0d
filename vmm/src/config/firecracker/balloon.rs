//! `balloon`.

use std::time::Duration;

use serde::Deserialize;

use crate::config::{BalloonConfig, ConfigError};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Balloon {
    amount_mib: u32,
    deflate_on_oom: bool,
    /// Seconds; zero is never.
    #[serde(default)]
    stats_polling_interval_s: u16,
    #[serde(default)]
    free_page_reporting: bool,
    #[serde(default)]
    free_page_hinting: bool,
}

impl Balloon {
    pub(super) fn check(self) -> Result<BalloonConfig, ConfigError> {
        if self.free_page_hinting {
            return Err(ConfigError::NotSupportedYet {
                what: "balloon.free_page_hinting",
            });
        }
        let interval = Duration::from_secs(self.stats_polling_interval_s.into());
        Ok(BalloonConfig {
            amount_mib: self.amount_mib,
            deflate_on_oom: self.deflate_on_oom,
            statistics_interval: (!interval.is_zero()).then_some(interval),
            free_page_reporting: self.free_page_reporting,
        })
    }
}
