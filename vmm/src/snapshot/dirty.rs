//! Which pages of memory have changed since the last snapshot: by the guest, as KVM logs it, and by devices, as they note
//! it themselves.
//!
//! There is one such log, and there are two who take snapshots: who uses the API, and the store. Whoever takes one begins
//! a turn, and with it the log is theirs: what the other one knew of changes is void, and the other's next snapshot is of
//! all memory.

use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, PoisonError};

use devices::memory::{GuestMemory, GuestRegion};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::memory::Pages;
use crate::vm::{Vm, VmError};

/// Bytes of a page.
const PAGE: usize = 4096;

/// Who takes snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taker {
    /// Who asks by the API.
    Api,
    /// The store.
    Store,
}

/// The snapshot that changes count from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    /// None is known.
    Nothing,
    /// The one that the guest came from: everybody has it.
    Loaded,
    /// The last one of this taker's.
    Of(Taker),
}

/// The time in which one taker has the log.
#[derive(Debug)]
pub struct Turn {
    number: u64,
    taker: Taker,
    based: bool,
}

impl Turn {
    /// Whether a snapshot of changes alone says what memory is, together with those before.
    pub fn is_based(&self) -> bool {
        self.based
    }
}

#[derive(Debug)]
struct Inner {
    base: Base,
    turns: u64,
    /// KVM notes changes.
    logs: bool,
}

/// Pages that have changed, and who counts from where.
#[derive(Debug)]
pub struct Dirty(Mutex<Inner>);

/// Why the log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    /// By KVM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Somebody else's turn has begun.
    #[error(
        "Another snapshot was begun meanwhile, and what has changed since is known only to that one"
    )]
    Superseded,
}

impl Dirty {
    /// With `loaded`, memory is as in the snapshot that it came from. KVM notes changes of memory that is tracked already,
    /// if it `logs`; otherwise from the first turn on.
    pub fn new(loaded: bool, logs: bool) -> Self {
        Self(Mutex::new(Inner {
            base: if loaded { Base::Loaded } else { Base::Nothing },
            turns: 0,
            logs,
        }))
    }

    /// Whether changes of `memory` are noted, or can be.
    pub fn is_tracked(memory: &GuestMemory) -> bool {
        memory.iter().any(|region| bitmap(region).is_some())
    }

    /// The log is `taker`'s from now on.
    pub fn begin(&self, taker: Taker, vm: &Vm, memory: &GuestMemory) -> Result<Turn, VmError> {
        let mut inner = self.lock();
        if !inner.logs && Self::is_tracked(memory) {
            vm.log_changes(memory)?;
            inner.logs = true;
        }
        let based = inner.base == Base::Loaded || inner.base == Base::Of(taker);
        inner.base = if based {
            Base::Of(taker)
        } else {
            Base::Nothing
        };
        inner.turns += 1;
        Ok(Turn {
            number: inner.turns,
            taker,
            based,
        })
    }

    /// The pages of each region that have changed, which from now on have not. Nothing is known of memory that is not
    /// tracked.
    pub fn take(
        &self,
        turn: &Turn,
        vm: &Vm,
        memory: &GuestMemory,
    ) -> Result<Vec<Pages>, DirtyError> {
        let inner = self.of(turn)?;
        let all = look(vm, memory)?;
        for (slot, (region, pages)) in (0..).zip(memory.iter().zip(&all)) {
            if let Some(pages) = pages {
                vm.clear_changed(slot, len(region), 0, pages)?;
            }
        }
        drop(inner);
        Ok(all)
    }

    /// The pages of each region that have changed. Each has to be [cleared](Self::clear) before it is copied.
    pub fn look(
        &self,
        turn: &Turn,
        vm: &Vm,
        memory: &GuestMemory,
    ) -> Result<Vec<Pages>, DirtyError> {
        let _inner = self.of(turn)?;
        Ok(look(vm, memory)?)
    }

    /// The pages `words` of region number `region`, from word `first` on, have not changed from now on.
    pub fn clear(
        &self,
        turn: &Turn,
        vm: &Vm,
        memory: &GuestMemory,
        (region, first, words): (usize, usize, &[u64]),
    ) -> Result<(), DirtyError> {
        let _inner = self.of(turn)?;
        clear(vm, memory, (region, first, words))
    }

    /// The snapshot of `turn` was written: what changes, changes from there.
    pub fn settle(&self, turn: &Turn) {
        if let Ok(mut inner) = self.of(turn) {
            inner.base = Base::Of(turn.taker);
        }
    }

    /// The snapshot was not written: what has changed still has.
    pub fn put_back(memory: &GuestMemory, taken: &[Pages]) {
        for (region, pages) in memory.iter().zip(taken) {
            let (Some(own), Some(pages)) = (bitmap(region), pages) else {
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

    fn of(&self, turn: &Turn) -> Result<MutexGuard<'_, Inner>, DirtyError> {
        let inner = self.lock();
        if inner.turns == turn.number {
            Ok(inner)
        } else {
            Err(DirtyError::Superseded)
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bitmap(region: &GuestRegion) -> Option<&vm_memory::bitmap::AtomicBitmap> {
    region.deref().bitmap().as_ref()
}

fn len(region: &GuestRegion) -> usize {
    usize::try_from(region.len()).unwrap_or(usize::MAX)
}

fn look(vm: &Vm, memory: &GuestMemory) -> Result<Vec<Pages>, VmError> {
    let mut all = Vec::new();
    for (slot, region) in (0..).zip(memory.iter()) {
        let Some(own) = bitmap(region) else {
            all.push(None);
            continue;
        };
        let mut pages = vm.changed(slot, len(region))?;
        let own = own.get_and_reset();
        pages.resize(pages.len().max(own.len()), 0);
        for (word, own) in pages.iter_mut().zip(own) {
            *word |= own;
        }
        all.push(Some(pages));
    }
    Ok(all)
}

fn clear(
    vm: &Vm,
    memory: &GuestMemory,
    (region, first, words): (usize, usize, &[u64]),
) -> Result<(), DirtyError> {
    let slot = u32::try_from(region).unwrap_or(u32::MAX);
    let Some(region) = memory.iter().nth(region) else {
        return Ok(());
    };
    Ok(vm.clear_changed(slot, len(region), first, words)?)
}
