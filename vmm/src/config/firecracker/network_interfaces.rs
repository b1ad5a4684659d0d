//! `network-interfaces`. Added keys of ours: `host_dev_fd` (a tap that is open already) and `mtu`.

use std::os::fd::RawFd;

use serde::Deserialize;

use super::rate_limiter::{self, RateLimiter};
use crate::config::{ConfigError, NetConfig, TapSource};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NetworkInterface {
    iface_id: String,
    host_dev_name: Option<String>,
    host_dev_fd: Option<RawFd>,
    guest_mac: Option<String>,
    mtu: Option<u16>,
    rx_rate_limiter: Option<RateLimiter>,
    tx_rate_limiter: Option<RateLimiter>,
}

impl NetworkInterface {
    pub(super) fn check(self) -> Result<NetConfig, ConfigError> {
        let tap = match (self.host_dev_name, self.host_dev_fd) {
            (Some(name), None) => TapSource::Name(name),
            (None, Some(fd)) => TapSource::Fd(fd),
            _ => return Err(ConfigError::OneTap { id: self.iface_id }),
        };
        Ok(NetConfig {
            id: self.iface_id,
            tap,
            mac: self.guest_mac.map(|mac| mac.parse()).transpose()?,
            mtu: self.mtu,
            rx_rate_limiter: rate_limiter::check(self.rx_rate_limiter),
            tx_rate_limiter: rate_limiter::check(self.tx_rate_limiter),
        })
    }
}
