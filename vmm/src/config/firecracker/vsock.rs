//! `vsock`.

use api::model::Vsock;

use crate::config::VsockConfig;

pub(super) fn read(vsock: &Vsock) -> VsockConfig {
    VsockConfig {
        guest_cid: vsock.guest_cid,
        uds_path: vsock.uds_path.clone(),
    }
}
