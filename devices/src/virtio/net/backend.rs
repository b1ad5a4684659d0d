//! What a network is to the network device.

use std::io;
use std::os::fd::RawFd;

/// What the guest can take off the hands of the sender of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames without a checksum. Without it there are none of the others.
    pub checksum: bool,
    /// TCP over IPv4 in segments larger than a packet.
    pub tso4: bool,
    /// TCP over IPv6 in segments larger than a packet.
    pub tso6: bool,
    /// Such segments with congestion marks.
    pub ecn: bool,
    /// UDP over IPv4 in segments larger than a packet.
    pub uso4: bool,
    /// UDP over IPv6 in segments larger than a packet.
    pub uso6: bool,
}

/// A network that gives and takes one frame for each `readv` and `writev` of a non-blocking descriptor, with
/// [`HEADER_LEN`](super::HEADER_LEN) bytes of `struct virtio_net_hdr` before it.
pub trait Backend: Send {
    /// The descriptor. Stays open for the backend's life.
    fn fd(&self) -> RawFd;

    /// Whether it can cut UDP segments.
    fn cuts_udp(&self) -> bool;

    /// Incoming frames may make use of `offloads` from now on.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;
}
