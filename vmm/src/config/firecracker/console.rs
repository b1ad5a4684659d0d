//! `console`: ours, beyond Firecracker's format.

use api::model::Console;

use crate::config::{ConsoleConfig, ConsolePort};

pub(super) fn read(console: &Console) -> ConsoleConfig {
    let port = |port: &api::model::ConsolePort| ConsolePort {
        name: port.name.clone(),
        path: port.path.clone(),
    };
    ConsoleConfig {
        stdio: console.stdio,
        ports: console.ports.iter().map(port).collect(),
    }
}
