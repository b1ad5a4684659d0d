//! The virtual machine generation ID: 16 random bytes in the guest's memory that change whenever the guest is not the
//! one it was before, because it was started from a snapshot or copied.
//!
//! As Microsoft's "Virtual Machine Generation ID" describes it: the guest finds the address by ACPI (`VMGENCTR`), and a
//! notification tells it to look again. Linux then reseeds its random number generator.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::acpi::{Ged, GedEvent};
use crate::memory::GuestMemory;

/// Bytes of the ID.
pub const LEN: usize = 16;

/// Why a guest has no new generation ID.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum GenerationIdError {
    #[error("Host gives no random bytes for the generation ID")]
    Random(#[source] getrandom::Error),
    #[error("Cannot write the generation ID at {address:#x} in guest memory")]
    Write {
        address: u64,
        #[source]
        source: GuestMemoryError,
    },
    #[error("Cannot tell the guest of its generation ID")]
    Notify(#[source] io::Error),
}

/// A guest's generation ID.
pub struct GenerationId {
    memory: Arc<GuestMemory>,
    address: GuestAddress,
    ged: Arc<Mutex<Ged>>,
}

impl GenerationId {
    /// Writes a first ID at `address`, which the memory map must not give away as RAM. Changes are told by `ged`.
    pub fn new(
        memory: Arc<GuestMemory>,
        address: GuestAddress,
        ged: Arc<Mutex<Ged>>,
    ) -> Result<Self, GenerationIdError> {
        let id = Self {
            memory,
            address,
            ged,
        };
        id.write()?;
        Ok(id)
    }

    /// Gives the guest another ID and tells it so.
    pub fn renew(&self) -> Result<(), GenerationIdError> {
        self.write()?;
        self.ged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .notify(GedEvent::GenerationId)
            .map_err(GenerationIdError::Notify)
    }

    fn write(&self) -> Result<(), GenerationIdError> {
        let mut id = [0; LEN];
        getrandom::fill(&mut id).map_err(GenerationIdError::Random)?;
        self.memory
            .write_slice(&id, self.address)
            .map_err(|source| GenerationIdError::Write {
                address: self.address.0,
                source,
            })
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::bus::MutBusDevice;
    use crate::memory::anonymous;

    const ADDRESS: GuestAddress = GuestAddress(0xff0);

    #[test]
    fn each_id_is_another_and_only_a_change_is_told() {
        let memory = Arc::new(anonymous(&[(GuestAddress(0), 0x1000)]).unwrap());
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let ged = Arc::new(Mutex::new(Ged::new(Arc::new(line.try_clone().unwrap()))));
        let current = || memory.read_obj::<u128>(ADDRESS).unwrap();

        let id = GenerationId::new(memory.clone(), ADDRESS, ged.clone()).unwrap();
        let first = current();
        assert_ne!(first, 0);
        assert!(line.read().is_err(), "a guest that starts is told nothing");

        id.renew().unwrap();
        assert_ne!(current(), first);
        assert_eq!(line.read().unwrap(), 1);
        let mut register = [0; 4];
        ged.lock().unwrap().read(0, &mut register);
        assert_eq!(u32::from_le_bytes(register), GedEvent::GenerationId as u32);
    }

    #[test]
    fn a_place_outside_of_memory_is_an_error() {
        let memory = Arc::new(anonymous(&[(GuestAddress(0), 0x1000)]).unwrap());
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let ged = Arc::new(Mutex::new(Ged::new(line)));
        let error = GenerationId::new(memory, GuestAddress(0xff8), ged).err();
        assert!(matches!(error, Some(GenerationIdError::Write { .. })));
    }
}
