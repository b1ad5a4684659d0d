//! What can be done with the devices of a guest that runs, whoever asks for it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use devices::legacy::acpi::{Ged, GedEvent};
use devices::legacy::generation_id::GenerationId;

use super::Action;
use crate::events::Events;
use crate::exit::ExitReason;
use crate::hotplug::Hotplug;
use crate::latch::ExitLatch;
use crate::logger::chain;
use crate::metrics;
use crate::stats::VcpuStats;
use crate::virtio::Handles;

/// What actions act on.
pub struct Targets {
    /// Presses the power button.
    pub ged: Arc<Mutex<Ged>>,
    /// Tells the guest that it is another one now.
    pub generation_id: GenerationId,
    /// What the host can do with virtio devices.
    pub handles: Handles,
    /// Plugs devices in and out, where they are on PCI.
    pub hotplug: Option<Arc<Hotplug>>,
    /// Ends the run.
    pub latch: Arc<ExitLatch>,
    /// Counters to answer with.
    pub vcpus: Vec<VcpuStats>,
    /// Where answers go.
    pub events: Arc<Events>,
}

impl Targets {
    /// Asks the guest to shut down.
    pub fn press_power_button(&self) -> io::Result<()> {
        let mut ged = self.ged.lock().unwrap_or_else(PoisonError::into_inner);
        ged.notify(GedEvent::PowerButton)
    }

    /// Carries out what came by the control socket. What goes wrong is logged: nobody waits for it.
    pub(super) fn act(&self, action: &Action) {
        match action {
            Action::PowerButton => {
                if let Err(error) = self.press_power_button() {
                    log::error!("The power button cannot be pressed: {error}");
                }
            }
            Action::Stop => self.latch.set(ExitReason::Stopped),
            Action::Stats => match self.vcpus.iter().map(VcpuStats::read).collect() {
                Ok(counters) => self.events.stats(counters),
                Err(error) => log::error!("KVM's counters cannot be read: {error}"),
            },
            Action::Metrics => self.events.metrics(&metrics::process().snapshot()),
            Action::FlushMetrics => drop(metrics::process().flush()),
            Action::RenewGenerationId => {
                if let Err(error) = self.generation_id.renew() {
                    log::error!("The guest keeps its generation ID: {}", chain(&error));
                }
            }
            Action::Resize { columns, rows } => match &self.handles.resizer {
                Some(resizer) => {
                    if let Err(error) = resizer.resize(*columns, *rows) {
                        log::error!("The console cannot be resized: {error}");
                    }
                }
                None => log::warn!("The guest has no virtio console to resize"),
            },
            Action::Balloon { amount_mib } => match &self.handles.balloon {
                Some(balloon) => {
                    if let Err(error) = balloon.set(*amount_mib) {
                        log::error!("The balloon keeps its size: {}", chain(&error));
                    }
                }
                None => log::warn!("The guest has no balloon"),
            },
            // Those that change what the guest is made of go another way.
            Action::AttachDrive { .. }
            | Action::AttachNet { .. }
            | Action::DetachDrive { .. }
            | Action::DetachNet { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests;
