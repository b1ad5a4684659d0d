//! What is at each device number of the PCI bus.

use std::sync::Arc;
use std::time::Instant;

use devices::pci::{PciFunction, SLOTS};

use super::{DeviceId, Reply, Successor};
use crate::device_thread::RunningThread;

/// A device number that is not free.
#[derive(Default)]
pub(super) struct Slot {
    /// What the device is called in a snapshot.
    pub(super) name: String,
    /// The device's name, if it can be removed.
    pub(super) id: Option<DeviceId>,
    /// Does its work, if it has a thread of its own and the run has begun.
    pub(super) thread: Option<RunningThread>,
    /// The host wants it back.
    pub(super) request: Option<Request>,
    /// What comes in its place when the guest has let go of it, and who is told how that ended.
    pub(super) successor: Option<(Successor, Reply)>,
    /// The guest has let go of it, and not everything of it is gone yet.
    pub(super) leaving: Option<Leaving>,
}

/// The host wants a device back.
pub(super) struct Request {
    /// The guest is not waited for longer.
    pub(super) deadline: Instant,
    /// Who is told how it ended.
    pub(super) reply: Reply,
}

/// Where a device is on its way out.
pub(super) enum Leaving {
    /// Off the bus; vCPUs may be in the middle of accesses to it.
    Accessed(Arc<dyn PciFunction>),
    /// Its thread was told to end its work.
    Working,
}

impl Slot {
    /// Goes on with the device's way out, as far as that goes without waiting. Says whether nothing of it is left.
    pub(super) fn leave(&mut self) -> bool {
        if let Some(Leaving::Accessed(function)) = &self.leaving {
            // Off the bus it gets no new users. Nobody may start its queues again once its thread has stopped them.
            if Arc::strong_count(function) > 1 {
                return false;
            }
            // This drops the function, which takes its doorbells back from KVM.
            self.leaving = Some(Leaving::Working);
            if let Some(thread) = &self.thread {
                thread.stop();
            }
        }
        match self.thread.take_if(|thread| thread.is_finished()) {
            Some(thread) => thread.join(),
            None if self.thread.is_some() => return false,
            None => {}
        }
        true
    }
}

/// All device numbers.
pub(super) struct Slots {
    /// The guest knows the slots below it.
    pub(super) limit: usize,
    /// What is there.
    pub(super) places: [Option<Slot>; SLOTS],
}

impl Slots {
    /// The device number of the device `id`.
    pub(super) fn find(&self, id: &DeviceId) -> Option<usize> {
        let is = |slot: &Option<Slot>| slot.as_ref().is_some_and(|s| s.id.as_ref() == Some(id));
        self.places.iter().position(is)
    }

    /// A device number that is free: the one that is `wanted`, or the lowest.
    pub(super) fn free(&self, wanted: Option<usize>) -> Option<usize> {
        let known = || self.places.iter().take(self.limit);
        let is_free = |number: &usize| known().nth(*number).is_some_and(Option::is_none);
        wanted
            .filter(is_free)
            .or_else(|| known().position(Option::is_none))
    }

    pub(super) fn get(&mut self, slot: usize) -> Option<&mut Slot> {
        self.places.get_mut(slot)?.as_mut()
    }

    /// Whether a device is on its way out.
    pub(super) fn any_leaving(&self) -> bool {
        self.places
            .iter()
            .flatten()
            .any(|slot| slot.leaving.is_some())
    }

    /// Whether the host waits for the guest.
    pub(super) fn any_requested(&self) -> bool {
        self.places
            .iter()
            .flatten()
            .any(|slot| slot.request.is_some())
    }
}
