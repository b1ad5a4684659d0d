//! `pmem`.

use api::model::Pmem;

use crate::config::PmemConfig;

pub(super) fn read(pmem: &Pmem) -> PmemConfig {
    PmemConfig {
        id: pmem.id.clone(),
        path: pmem.path_on_host.clone(),
        is_root: pmem.root_device,
        read_only: pmem.read_only,
    }
}
