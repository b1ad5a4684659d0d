//! `vsock`.

use std::path::PathBuf;

use serde::Deserialize;

use crate::config::VsockConfig;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vsock {
    guest_cid: u32,
    uds_path: PathBuf,
    // A name without a meaning: there is one device at most.
    #[serde(rename = "vsock_id")]
    _vsock_id: Option<String>,
}

impl From<Vsock> for VsockConfig {
    fn from(vsock: Vsock) -> Self {
        Self {
            guest_cid: vsock.guest_cid,
            uds_path: vsock.uds_path,
        }
    }
}
