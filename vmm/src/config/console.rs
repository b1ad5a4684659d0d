//! The virtio console and its ports.

use std::path::PathBuf;

use super::ConfigError;

/// Most bytes of a port's name.
const MAX_NAME: usize = 64;

/// What the guest's virtio console is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleConfig {
    /// Whether its first port is a terminal on standard input and output. The serial port has only output then.
    pub stdio: bool,
    /// Named byte streams.
    pub ports: Vec<ConsolePort>,
}

/// One named byte stream of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsolePort {
    /// By which the guest knows it.
    pub name: String,
    /// Unix socket to serve it at.
    pub path: PathBuf,
}

impl ConsoleConfig {
    /// Checks that there are ports, not too many, and that each has a name of its own.
    pub fn check(&self) -> Result<(), ConfigError> {
        let count = self.ports.len() + usize::from(self.stdio);
        let max = devices::virtio::console::MAX_PORTS;
        if count == 0 || count > max {
            return Err(ConfigError::ConsolePorts { count, max });
        }
        for (index, port) in self.ports.iter().enumerate() {
            let permitted = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let ok = (1..=MAX_NAME).contains(&port.name.len()) && port.name.chars().all(permitted);
            if !ok {
                return Err(ConfigError::BadPortName {
                    name: port.name.clone(),
                    max: MAX_NAME,
                });
            }
            if port.path.as_os_str().is_empty() {
                return Err(ConfigError::Empty {
                    field: "console.ports.path",
                });
            }
            if self.ports[..index]
                .iter()
                .any(|other| other.name == port.name)
            {
                return Err(ConfigError::DuplicatePort {
                    name: port.name.clone(),
                });
            }
        }
        Ok(())
    }
}
