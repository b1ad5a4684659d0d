//! A virtio function as a value, and from one.

use serde::{Deserialize, Serialize};

use super::VirtioPci;
use crate::pci::msix::MsixState;
use crate::virtio::saved::{RestoreError, SaveError, VirtioSaved};
use crate::virtio::state::VirtioState;

/// A device and its function's own registers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PciSaved {
    /// Configuration space.
    pub config: Vec<u8>,
    /// The MSI-X table.
    pub msix: MsixState,
    /// ISR status (virtio 1.2 §4.1.4.5).
    pub isr: u8,
    /// The vector of changes of the configuration.
    pub config_vector: u16,
    /// The vectors of the queues.
    pub queue_vectors: Vec<u16>,
    /// The device.
    pub virtio: VirtioSaved,
}

impl VirtioPci {
    /// All that a driver has set, here and in the device, whose lock `state` is.
    pub fn save(&self, state: &mut VirtioState) -> Result<PciSaved, SaveError> {
        let virtio = state.save()?;
        let queues = 0..u32::try_from(virtio.queues.len()).unwrap_or(0);
        Ok(PciSaved {
            config: self.config().space.bytes().to_vec(),
            // Behind the device's last interrupt.
            msix: self.interrupt.msix().state(),
            isr: self.interrupt.status(),
            config_vector: self.interrupt.vector(None),
            queue_vectors: queues
                .map(|index| self.interrupt.vector(Some(index)))
                .collect(),
            virtio,
        })
    }

    /// Goes on from `saved`, in place of a function that no driver has touched. Not on a bus yet: it answers where its
    /// driver has put it.
    pub fn restore(&self, saved: &PciSaved) -> Result<(), RestoreError> {
        let vectors = saved.queue_vectors.len();
        RestoreError::count("queue vectors", vectors, self.doorbells.len())?;
        let mut config = self.config();
        let expected = |register: usize| config.space.bytes().get(register).copied();
        if let Err(register) = config.space.clone().restore(&saved.config) {
            let (found, expected) = (saved.config.get(register).copied(), expected(register));
            return match (found, expected) {
                (Some(found), Some(expected)) => Err(RestoreError::ConfigSpace {
                    register,
                    found,
                    expected,
                }),
                _ => Err(RestoreError::Contradiction {
                    what: "its configuration space has another length",
                }),
            };
        }
        // Cannot fail any more: the copy took it.
        let _ = config.space.restore(&saved.config);
        self.follow(&mut config);
        // Message control is in configuration space, whatever else the state says.
        let msix = MsixState {
            control: config.space.u16_at(self.capabilities.msix_control()),
            entries: saved.msix.entries.clone(),
        };
        drop(config);
        self.interrupt.set_vector(None, saved.config_vector);
        for (index, vector) in (0..).zip(&saved.queue_vectors) {
            self.interrupt.set_vector(Some(index), *vector);
        }
        if !self.interrupt.msix().restore(&msix) {
            return Err(RestoreError::Count {
                what: "interrupt vectors",
                found: msix.entries.len(),
                expected: self.interrupt.msix().vectors().into(),
            });
        }
        let mut state = self.lock();
        state.restore(&saved.virtio)?;
        self.interrupt.set_status(saved.isr);
        Ok(())
    }
}
