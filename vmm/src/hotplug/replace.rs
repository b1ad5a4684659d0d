//! A network interface in the place of one that the guest has: for a guest that goes on from a snapshot as another one.
//!
//! A driver reads an interface's address only when it finds it. So the guest is asked to let go of the one that it knows,
//! and finds another one at the same device number when it has. It may take its time: what it is given then is open already,
//! since a VMM in its jail could not open it any more.

use devices::virtio::net::Backend;

use super::nursery::{Attachment, Job};
use super::{DeviceId, Hotplug, HotplugError, Reply, lock};
use crate::config::NetConfig;

/// A network interface that is not the guest's yet, with its host's end.
pub struct Successor {
    /// The interface, which has the name of the one that goes.
    pub net: NetConfig,
    /// Where it is plugged in.
    pub end: Box<dyn Backend>,
}

impl Hotplug {
    /// Asks the guest to let go of its network interface of `new`'s name, and plugs that one in when it has. `reply` is told
    /// how that ended. It is not told as long as the guest does not let go, which the parent hears of.
    pub fn replace_net(&self, new: Successor, reply: Reply) {
        let id = DeviceId::Net(new.net.id.clone());
        let mut inner = lock(&self.inner);
        match self.find_removable(&inner, &id) {
            Ok(number) => {
                if let Some(slot) = inner.slots.get(number) {
                    slot.successor = Some((new, reply));
                }
                // What is left to do when the guest has let go is the successor's.
                self.ask_back(&mut inner, number, Box::new(|_| ()));
            }
            Err(error) => {
                drop(inner);
                self.refuse_detach(&id, error, reply);
            }
        }
    }

    /// The place `number` is free for the `successor` of what was there.
    pub(super) fn succeed(&self, number: usize, successor: (Successor, Reply)) {
        let (new, reply) = successor;
        let attachment = Attachment::Successor(Box::new(new), number);
        self.send(Job::Attach(attachment, reply));
    }

    pub(super) fn refuse_detach(&self, id: &DeviceId, error: HotplugError, reply: Reply) {
        self.connections.events.detach_failed(id, &error);
        reply(Err(error));
    }
}
