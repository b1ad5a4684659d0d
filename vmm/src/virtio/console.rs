//! The console: from the configuration to the device.

use std::io;
use std::os::unix::net::UnixListener;

use devices::virtio::console::{Console, Host, PortSpec};

use super::VirtioError;
use crate::config::ConsoleConfig;
use crate::output::Output;
use crate::platform;

/// By which the guest knows the port that is the VMM's standard input and output.
const TERMINAL: &str = "terminal";

/// Makes the device; its terminal prints to `output`.
pub(super) fn make(config: &ConsoleConfig, output: &Output) -> Result<Console, VirtioError> {
    let mut ports = Vec::new();
    if config.stdio {
        let input = platform::duplicate(&io::stdin()).map_err(VirtioError::Console)?;
        ports.push(PortSpec {
            name: TERMINAL.into(),
            console: true,
            host: Host::Streams {
                input,
                output: Box::new(output.clone()),
            },
        });
    }
    for port in &config.ports {
        let listener =
            UnixListener::bind(&port.path).map_err(|source| VirtioError::PortSocket {
                name: port.name.clone(),
                path: port.path.clone(),
                source,
            })?;
        ports.push(PortSpec {
            name: port.name.clone(),
            console: false,
            host: Host::Socket(listener),
        });
    }
    Console::new(ports).map_err(VirtioError::Console)
}
