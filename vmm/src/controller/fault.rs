//! What clients are told, in Firecracker's words where it has some.

use std::error::Error;

use api::Fault;

use crate::logger::chain;

/// `error` with all its causes, after what it is about.
pub(super) fn about(what: &str, error: &dyn Error) -> Fault {
    Fault::new(format!("{what}: {}", chain(error)))
}

pub(super) fn no_balloon() -> Fault {
    Fault::new("Balloon config error: No balloon device found.")
}
