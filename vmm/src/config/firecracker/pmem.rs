//! `pmem`.

use std::path::PathBuf;

use serde::Deserialize;

use crate::config::PmemConfig;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pmem {
    id: String,
    path_on_host: PathBuf,
    #[serde(default)]
    root_device: bool,
    #[serde(default)]
    read_only: bool,
}

impl From<Pmem> for PmemConfig {
    fn from(pmem: Pmem) -> Self {
        Self {
            id: pmem.id,
            path: pmem.path_on_host,
            is_root: pmem.root_device,
            read_only: pmem.read_only,
        }
    }
}
