//! HTTP/1.1 over a Unix socket, as much of it as the API needs.

mod connection;
mod message;
mod server;

pub use server::{BindError, Server, Stopper};

/// Most bytes of a request's body, unless the command line says otherwise (Firecracker's default).
pub const DEFAULT_MAX_BODY: usize = 51_200;
