//! What the host can do with devices from outside, while a guest has them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::virtio::console::Resizer;

use super::{Made, balloon, block, net};
use crate::hotplug::DeviceId;

/// Everything that can be done with a guest's devices.
#[derive(Default)]
pub struct Handles {
    /// Tells the console its size.
    pub resizer: Option<Resizer>,
    /// What can be done with the balloon.
    pub balloon: Option<balloon::Handle>,
    /// What can be done with devices that have names.
    pub devices: DeviceHandles,
}

/// What can be done with one device.
#[derive(Clone)]
pub enum DeviceHandle {
    /// A disk.
    Drive(Arc<Mutex<block::Handle>>),
    /// A network interface.
    Net(net::Handle),
}

/// What can be done with drives and network interfaces, which may come and go. Clones are the same.
#[derive(Clone, Default)]
pub struct DeviceHandles(Arc<Mutex<Vec<(DeviceId, DeviceHandle)>>>);

impl DeviceHandles {
    /// Keeps what can be done with `made`.
    pub fn keep(&self, mut made: Made) -> Made {
        if let Some((id, handle)) = made.handle.take() {
            self.insert(id, handle);
        }
        made
    }

    /// The device `id` is there.
    pub fn insert(&self, id: DeviceId, handle: DeviceHandle) {
        self.lock().push((id, handle));
    }

    /// It is gone.
    pub fn remove(&self, id: &DeviceId) {
        self.lock().retain(|(other, _)| other != id);
    }

    /// The disk of this name.
    pub fn drive(&self, name: &str) -> Option<Arc<Mutex<block::Handle>>> {
        let all = self.lock();
        let drives = all.iter().filter_map(|(id, handle)| match handle {
            DeviceHandle::Drive(drive) => Some((id, drive)),
            DeviceHandle::Net(_) => None,
        });
        let mut found = drives.filter(|(id, _)| id.name() == name);
        found.next().map(|(_, drive)| drive.clone())
    }

    /// The network interface of this name.
    pub fn net(&self, name: &str) -> Option<net::Handle> {
        let all = self.lock();
        let interfaces = all.iter().filter_map(|(id, handle)| match handle {
            DeviceHandle::Net(net) => Some((id, net)),
            DeviceHandle::Drive(_) => None,
        });
        let mut found = interfaces.filter(|(id, _)| id.name() == name);
        found.next().map(|(_, net)| net.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(DeviceId, DeviceHandle)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
