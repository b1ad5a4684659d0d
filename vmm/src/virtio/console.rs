//! The console: from the configuration to the device.

use std::io;
use std::os::unix::net::UnixStream;

use devices::virtio::console::{Callers, Console, Host, PortSpec};

use super::VirtioError;
use super::listener::Listener;
use crate::config::ConsoleConfig;
use crate::metrics;
use crate::output::Output;
use crate::platform;

/// By which the guest knows the port that is the VMM's standard input and output.
const TERMINAL: &str = "terminal";

impl Callers for Listener {
    fn accept(&mut self) -> io::Result<UnixStream> {
        Listener::accept(self)
    }
}

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
        let listener = Listener::new(&port.path).map_err(|source| VirtioError::PortSocket {
            name: port.name.clone(),
            source,
        })?;
        ports.push(PortSpec {
            name: port.name.clone(),
            console: false,
            host: Host::Socket(Box::new(listener)),
        });
    }
    let console = Console::new(ports).map_err(VirtioError::Console)?;
    metrics::process().watch("console", None, &console);
    Ok(console)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::config::ConsolePort;
    use crate::jail::seccomp::Seccomp;

    #[test]
    fn a_port_is_served_again_after_a_vmm_that_was_killed_and_removed_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("port.sock");
        let config = ConsoleConfig {
            stdio: false,
            ports: vec![ConsolePort {
                name: "data".into(),
                path: path.clone(),
            }],
        };
        let output = Output::new(tempfile::tempfile().unwrap(), Seccomp::off()).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let console = make(&config, &output).unwrap();
        UnixStream::connect(&path).unwrap();
        assert!(matches!(
            make(&config, &output),
            Err(VirtioError::PortSocket { .. })
        ));
        drop(console);
        assert!(!path.exists());
        drop(make(&config, &output).unwrap());
    }
}
