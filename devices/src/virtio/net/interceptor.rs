//! Somebody within the VMM who answers some of the guest's frames in place of the network.

use std::os::fd::RawFd;

/// How many bytes of a frame [`Interceptor::wants`] is shown: Ethernet and ARP headers, or Ethernet, IPv4 and ports.
pub const START_LEN: usize = 42;

/// The longest frame that an [`Interceptor`] gets; of longer ones it gets the start. The window that it announces to
/// its peers keeps those who follow the rules from sending such.
pub const MAX_INTERCEPTED: usize = 8 << 10;

/// Answers frames of the guest that are for it. Everything that the guest sends is hostile; answers go to the guest
/// only, as many as it has taken the ones before.
pub trait Interceptor: Send {
    /// Whether the frame that begins with `start`, [`START_LEN`] bytes or the whole of it, is for it. Such a frame never
    /// reaches the network.
    fn wants(&mut self, start: &[u8]) -> bool;

    /// Takes a frame that it wanted.
    fn take(&mut self, frame: &[u8]);

    /// Puts the next frame for the guest into `frame` and returns its length, at most [`MAX_INTERCEPTED`].
    fn next(&mut self, frame: &mut [u8]) -> Option<usize>;

    /// Whether there is a frame for the guest.
    fn has_next(&mut self) -> bool;

    /// A descriptor that is ready, as an edge, when time has made something of it necessary. Stays open for its life.
    fn timer(&self) -> RawFd;

    /// The timer is ready.
    fn wake(&mut self);

    /// The guest's driver starts anew.
    fn reset(&mut self);
}
