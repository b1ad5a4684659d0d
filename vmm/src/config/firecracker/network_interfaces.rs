//! `network-interfaces`. Added keys of ours: `host_dev_fd` (a tap that is open already) and `mtu`.

use api::model::NetworkInterface;

use super::rate_limiter;
use crate::config::{ConfigError, NetConfig, TapSource};

pub(crate) fn check(interface: &NetworkInterface) -> Result<NetConfig, ConfigError> {
    let id = || interface.iface_id.clone();
    let tap = match (&interface.host_dev_name, interface.host_dev_fd) {
        (Some(name), None) => TapSource::Name(name.clone()),
        (None, Some(fd)) => TapSource::Fd(fd),
        _ => return Err(ConfigError::OneTap { id: id() }),
    };
    let mac = interface.guest_mac.as_ref().map(|mac| mac.parse());
    Ok(NetConfig {
        id: id(),
        tap,
        mac: mac.transpose()?,
        mtu: interface.mtu,
        rx_rate_limiter: rate_limiter::read(interface.rx_rate_limiter),
        tx_rate_limiter: rate_limiter::read(interface.tx_rate_limiter),
    })
}
