//! A device that goes on in another's place, by its state as a text.

use std::sync::Arc;

use event_manager::SubscriberOps;

use super::mmio::Mmio;
use super::pci::{BAR, Driver};
use super::{Registers, TestGuest, lock};
use crate::bus::BusDevice;
use crate::pci::PciBus;
use crate::virtio::device::VirtioDevice;
use crate::virtio::mmio::MmioTransport;
use crate::virtio::pci::VirtioPci;
use crate::virtio::saved::{RestoreError, SaveError};
use crate::virtio::worker::VirtioWorker;

/// The transport of a test's device.
pub(super) enum AnyTransport {
    Mmio(Arc<MmioTransport>),
    Pci(Arc<VirtioPci>, Driver),
}

impl TestGuest {
    /// The state of the device and its transport, as a snapshot has it.
    pub(crate) fn save(&self) -> Result<String, SaveError> {
        let mut state = self.state();
        let text = match &self.transport {
            AnyTransport::Mmio(mmio) => serde_json::to_string(&mmio.save(&mut state)?),
            AnyTransport::Pci(pci, _) => serde_json::to_string(&pci.save(&mut state)?),
        };
        Ok(text.expect("states are plain values"))
    }

    /// Puts `device`, which nobody has used, into the place of the guest's, and lets it go on from the state `text`.
    pub(crate) fn replace(
        &mut self,
        device: impl VirtioDevice + 'static,
        text: &str,
    ) -> Result<(), RestoreError> {
        let (device, memory) = (Box::new(device), self.memory.clone());
        let parse = "a text that is a state";
        let (state, bus_device, registers): (_, Arc<dyn BusDevice>, Box<dyn Registers + Send>) =
            match &self.transport {
                AnyTransport::Mmio(_) => {
                    let line = Arc::new(self.line.try_clone().expect("an eventfd"));
                    let new = MmioTransport::new(device, memory, line).expect("eventfds");
                    new.restore(&serde_json::from_str(text).expect(parse))?;
                    let new = Arc::new(new);
                    self.transport = AnyTransport::Mmio(new.clone());
                    (new.state().clone(), new.clone(), Box::new(Mmio(new)))
                }
                AnyTransport::Pci(_, driver) => {
                    let mut driver = driver.clone();
                    let sink = driver.vectors.clone();
                    let new = VirtioPci::new(device, memory, BAR, sink, None).expect("eventfds");
                    new.restore(&serde_json::from_str(text).expect(parse))?;
                    let (new, bus) = (Arc::new(new), PciBus::new());
                    bus.insert(1, new.clone()).expect("an empty bus");
                    (driver.config, driver.memory) = (bus.ecam(), bus.window(BAR));
                    self.transport = AnyTransport::Pci(new.clone(), driver.clone());
                    (new.state().clone(), bus.window(BAR), Box::new(driver))
                }
            };
        self.doorbells = lock(&state).doorbells();
        self.thread = event_manager::EventManager::new().expect("an epoll");
        let worker = VirtioWorker::new(state.clone()).expect("an eventfd");
        self.thread.add_subscriber(worker);
        (self.state, self.bus_device, self.registers) = (state, bus_device, registers);
        Ok(())
    }

    /// Puts the function's memory back where this driver looks for it, as firmware does after a reset: a state may have
    /// it anywhere, or switched off.
    pub(crate) fn place(&self) {
        if let AnyTransport::Pci(_, driver) = &self.transport {
            driver.place();
        }
    }
}
