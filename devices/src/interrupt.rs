//! How a device asks for an interrupt without knowing the interrupt controller.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// An interrupt line, or one message, of a device.
pub trait Interrupt: Send + Sync {
    /// Raises the interrupt once (an edge).
    fn trigger(&self) -> io::Result<()>;
}

/// An `EventFd` bound to the interrupt by its other end, such as KVM's irqfd.
impl Interrupt for EventFd {
    fn trigger(&self) -> io::Result<()> {
        match self.write(1) {
            // The counter is full: an edge is already waiting to be delivered.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn trigger_is_seen_by_the_other_end() {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let other_end = line.try_clone().unwrap();
        line.trigger().unwrap();
        line.trigger().unwrap();
        assert_eq!(other_end.read().unwrap(), 2);
    }

    #[test]
    fn trigger_with_a_full_counter_is_not_an_error() {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        line.write(u64::MAX - 1).unwrap();
        line.trigger().unwrap();
    }
}
