//! The socket device (virtio 1.2 §5.10): streams between ports of the guest and the host's Unix sockets.
//!
//! [`packet`] is what lies on the queues, [`connection`] one stream with its credit, [`switch`] all of them and what they
//! have to say, [`device`] the queues. Nothing here grows beyond its bound: a stream holds at most [`BUF_ALLOC`] bytes
//! that its reader has not taken, and while the guest takes no answers its packets are not looked at.

mod connection;
pub mod device;
mod packet;
mod switch;

use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;

pub use device::Vsock;

/// The host's address (virtio 1.2 §5.10.4).
pub const HOST_CID: u64 = 2;
/// The first address a guest may have.
pub const FIRST_GUEST_CID: u64 = 3;
/// Most streams at a time.
pub const MAX_CONNECTIONS: usize = 256;
/// Bytes the guest may have sent on one stream that the host's program has not read.
pub const BUF_ALLOC: u32 = 64 << 10;

/// The host's programs, as the guest reaches them and they reach it. All streams are non-blocking.
pub trait Host: Send {
    /// Becomes readable when a program wants to talk to the guest. Stays open for the host's life.
    fn listener(&self) -> RawFd;

    /// The next program that wants to talk to the guest.
    fn accept(&mut self) -> io::Result<UnixStream>;

    /// Reaches the program that listens on `port`.
    fn connect(&mut self, port: u32) -> io::Result<UnixStream>;
}
