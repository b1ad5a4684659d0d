//! `console`: ours, beyond Firecracker's format.

use std::path::PathBuf;

use serde::Deserialize;

use crate::config::{ConsoleConfig, ConsolePort};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Console {
    #[serde(default)]
    stdio: bool,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Port {
    name: String,
    path: PathBuf,
}

impl From<Console> for ConsoleConfig {
    fn from(console: Console) -> Self {
        let port = |Port { name, path }| ConsolePort { name, path };
        Self {
            stdio: console.stdio,
            ports: console.ports.into_iter().map(port).collect(),
        }
    }
}
