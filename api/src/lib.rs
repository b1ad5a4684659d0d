//! The VMM's API: Firecracker's routes and bodies in HTTP/1.1 over a Unix socket.
//!
//! ```text
//!   http::Server ── one thread, many connections ──► http::message (httparse)
//!        │                                                │
//!        ▼                                                ▼
//!   Handler (the VMM) ◄──────── Request ◄──────── routes::parse ── model (bodies)
//!        └────────► Answer or Fault ────────► bytes
//! ```
//!
//! This crate knows HTTP, JSON and the shape of every request; what a request means, and whether it is one for now, is
//! the [`Handler`]'s to say. `openapi.json` beside this file is the published contract; tests hold it against the code.
//!
//! Why `httparse` and not hyper: what is served is a handful of short requests by a trusted user. Hyper's server needs an
//! executor, timers and 200 KiB of a ROM; the limits that matter here (bytes of a body, a client that stalls, the number
//! of connections) would still be ours to build. The part of HTTP that is easy to get wrong is the parsing of a message's
//! head, and that is what `httparse`, which hyper itself uses, does.

pub mod http;
pub mod model;
mod outcome;
mod request;
pub mod routes;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;

pub use outcome::{Answer, Fault, Outcome, Status};
pub use request::Request;

/// Carries requests out, one after the other.
pub trait Handler {
    /// What the client gets.
    fn handle(&mut self, request: Request) -> Outcome;
}

impl<F: FnMut(Request) -> Outcome> Handler for F {
    fn handle(&mut self, request: Request) -> Outcome {
        self(request)
    }
}
