//! `balloon`.

use std::time::Duration;

use api::model::Balloon;

use crate::config::{BalloonConfig, ConfigError};

pub(super) fn check(balloon: &Balloon) -> Result<BalloonConfig, ConfigError> {
    if balloon.free_page_hinting {
        return Err(ConfigError::NotSupportedYet {
            what: "balloon.free_page_hinting",
        });
    }
    let interval = Duration::from_secs(balloon.stats_polling_interval_s.into());
    Ok(BalloonConfig {
        amount_mib: balloon.amount_mib,
        deflate_on_oom: balloon.deflate_on_oom,
        statistics_interval: (!interval.is_zero()).then_some(interval),
        free_page_reporting: balloon.free_page_reporting,
    })
}
