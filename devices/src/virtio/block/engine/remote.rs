//! Work done by somebody else, to whom a descriptor leads.

use std::io;
use std::os::fd::RawFd;

use super::work::Work;

/// Carries work to where it is done, and what came of it back. Never waits but in [`wait`](Self::wait).
pub(in crate::virtio::block) trait Remote: Send {
    /// Has the descriptors that say when there is something to reap watched by `epoll`, which may watch others already.
    fn watch(&mut self, epoll: RawFd) -> io::Result<()>;

    /// Takes `work` over. No other work in flight has its `token`.
    fn queue(&mut self, token: u16, work: &mut Work);

    /// Sends what is queued, as much as there is room for.
    fn submit(&mut self);

    /// Something that has ended, if there is.
    fn reap(&mut self) -> Option<(u16, io::Result<()>)>;

    /// The work of `token`.
    fn work(&self, token: u16) -> &Work;

    /// Something is queued, or in flight, or has ended and was not reaped.
    fn is_busy(&self) -> bool;

    /// Waits until something has ended, if something is in flight: not for ever.
    fn wait(&mut self);

    /// Ends all that is in flight, so that guest memory is not touched any more.
    fn abandon(&mut self);
}
