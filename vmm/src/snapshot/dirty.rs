//! Which pages of memory have changed since the last snapshot: by the guest, as KVM logs it, and by devices, as they note
//! it themselves.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::memory::GuestMemory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::memory::Pages;
use crate::vm::{Vm, VmError};

/// Bytes of a page.
const PAGE: usize = 4096;

/// Whether there is a snapshot that changes count from.
#[derive(Debug)]
pub struct Dirty {
    based: AtomicBool,
}

impl Dirty {
    /// With `based`, memory is as in the snapshot that it came from.
    pub fn new(based: bool) -> Self {
        Self {
            based: AtomicBool::new(based),
        }
    }

    /// Whether changes of `memory` are noted.
    pub fn is_tracked(memory: &GuestMemory) -> bool {
        memory
            .iter()
            .any(|region| region.deref().bitmap().is_some())
    }

    /// The pages of each region that have changed, which from now on have not: for a snapshot that is being written.
    /// Nothing is noted of memory that is not tracked.
    pub fn take(&self, vm: &Vm, memory: &GuestMemory) -> Result<Vec<Pages>, VmError> {
        let mut all = Vec::new();
        for (slot, region) in (0..).zip(memory.iter()) {
            let Some(own) = region.deref().bitmap() else {
                all.push(None);
                continue;
            };
            let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
            let mut pages = vm.take_changed(slot, len)?;
            let own = own.get_and_reset();
            pages.resize(pages.len().max(own.len()), 0);
            for (word, own) in pages.iter_mut().zip(own) {
                *word |= own;
            }
            all.push(Some(pages));
        }
        Ok(all)
    }

    /// The snapshot was written: what changes, changes from there.
    pub fn settle(&self) {
        self.based.store(true, Ordering::SeqCst);
    }

    /// Whether a snapshot of changes alone says what memory is, together with those before.
    pub fn is_based(&self) -> bool {
        self.based.load(Ordering::SeqCst)
    }

    /// The snapshot was not written: what has changed still has.
    pub fn put_back(memory: &GuestMemory, taken: &[Pages]) {
        for (region, pages) in memory.iter().zip(taken) {
            let (Some(own), Some(pages)) = (region.deref().bitmap(), pages) else {
                continue;
            };
            for (index, word) in pages.iter().enumerate() {
                let bits = (0..64).filter(|bit| word & 1 << bit != 0);
                for page in bits.map(|bit| index * 64 + bit) {
                    own.set_addr_range(page.saturating_mul(PAGE), PAGE);
                }
            }
        }
    }
}
