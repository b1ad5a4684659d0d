//! Network interfaces: from the configuration to the device.

use devices::rate_limiter::LimitsControl;
use devices::virtio::net::{Backend, Interceptor, Net, NetOptions, Tap, Unplugged};

use super::tap;
use super::{VirtioError, rate_limiter};
use crate::config::{NetConfig, TapSource};
use crate::jail::opened::{self, Kind};
use crate::{metrics, mmds};

/// What can be done with an interface while a guest has it.
#[derive(Clone)]
pub struct Handle {
    /// How much the guest may receive in a time.
    pub receive: LimitsControl,
    /// How much it may send.
    pub transmit: LimitsControl,
}

/// Opens what [`make`] needs.
pub fn open_ahead(net: &NetConfig) -> Result<(), VirtioError> {
    if let TapSource::Name(name) = &net.tap {
        let id = net.id.clone();
        let file = tap::open(name).map_err(|source| VirtioError::OpenTap { id, source })?;
        opened::keep(Kind::Tap, name, file);
    }
    Ok(())
}

/// Opens the host's end of `net`.
pub fn open(net: &NetConfig) -> Result<Box<dyn Backend>, VirtioError> {
    let id = || net.id.clone();
    let file = match &net.tap {
        TapSource::Name(name) => tap::open(name),
        TapSource::Fd(fd) => tap::take(*fd),
        TapSource::Unplugged => {
            let end = Unplugged::new();
            let end = end.map_err(|source| VirtioError::NoTap { id: id(), source })?;
            return Ok(Box::new(end));
        }
    };
    let file = file.map_err(|source| VirtioError::OpenTap { id: id(), source })?;
    let tap = Tap::new(file).map_err(|source| VirtioError::UseTap { id: id(), source })?;
    Ok(Box::new(tap))
}

/// Makes the interface `net`, whose host's end is `backend`.
pub(super) fn make(
    net: &NetConfig,
    backend: Box<dyn Backend>,
) -> Result<(Net, Handle), VirtioError> {
    let receive_limiter = rate_limiter(net.rx_rate_limiter)?;
    let transmit_limiter = rate_limiter(net.tx_rate_limiter)?;
    let handle = Handle {
        receive: receive_limiter.control(),
        transmit: transmit_limiter.control(),
    };
    let metadata = mmds::process().endpoint(&net.id).map_err(|source| {
        let id = net.id.clone();
        VirtioError::Metadata { id, source }
    })?;
    let options = NetOptions {
        mac: net.address().bytes(),
        mtu: net.mtu,
        receive_limiter,
        transmit_limiter,
        interceptor: metadata.map(|endpoint| Box::new(endpoint) as Box<dyn Interceptor>),
    };
    let device = Net::new(backend, options);
    metrics::process().watch("net", Some(&net.id), &device);
    Ok((device, handle))
}

#[cfg(test)]
mod tests;
