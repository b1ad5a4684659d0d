//! What a network is to the network device.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

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

    /// Whether there is a network at all. Without one the guest's link is down from the beginning.
    fn is_there(&self) -> bool {
        true
    }
}

/// No network: for a driver whose interface has lost its own. Frames go nowhere and none come.
#[derive(Debug)]
pub struct Unplugged(EventFd);

impl Unplugged {
    /// An end that leads nowhere.
    pub fn new() -> io::Result<Self> {
        // Never rung, and so never readable; that it is writable wakes the device once, which tells its driver.
        EventFd::new(EFD_NONBLOCK).map(Self)
    }
}

impl Backend for Unplugged {
    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Whatever a driver has taken from the network of before, it may keep.
    fn cuts_udp(&self) -> bool {
        true
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn is_there(&self) -> bool {
        false
    }
}
