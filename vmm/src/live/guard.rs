//! Write protection of what is not copied yet, and who waits for it.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryBackend;

use super::changes::{BLOCK, Changes, Place};
use super::error::CaptureError;
use super::frames::{Frames, Zeroes};
use crate::snapshot::Subject;
use crate::userfault::{Event, Features, Modes, Userfault, UserfaultError, Wake, place_of};

/// Most bytes of copies that wait to be sent.
const MAX_WAITING: usize = 8 << 20;
/// How many blocks are protected for a moment together: who writes to one waits for all of them.
const REHEARSED: usize = 8;
/// How long anything is protected at most, whatever the store does.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why nothing is protected.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// There is no device.
    #[error("There is no {device}", device = crate::userfault::DEVICE)]
    NoDevice,
    /// The kernel gives no control.
    #[error(transparent)]
    Userfault(#[from] UserfaultError),
    /// The kernel does not do it.
    #[error("Cannot {what} {bytes:#x} bytes at {start:#x}")]
    Protect {
        /// What was to be done.
        what: &'static str,
        /// Where.
        start: u64,
        /// How much.
        bytes: u64,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Faults cannot be read.
    #[error("Cannot read which protected pages are waited for")]
    Read(#[source] io::Error),
    /// It took too long.
    #[error("{blocks} blocks of 2 MiB were not sent within {seconds} s")]
    TooLong {
        /// How many are left.
        blocks: usize,
        /// The limit.
        seconds: u64,
    },
}

/// Blocks that are write-protected. All protection ends with this.
pub(super) struct Guard {
    userfault: Userfault,
    /// Start and bytes of each region.
    regions: Vec<(u64, u64)>,
    registered: usize,
    since: Instant,
    /// What is protected.
    blocks: BTreeSet<Place>,
    /// What somebody waits for.
    wanted: BTreeSet<Place>,
    /// Copies that wait to be sent.
    copies: VecDeque<Frames>,
    /// Bytes of them.
    waiting: usize,
}

impl Guard {
    /// Can protect the memory of `subject`, and has protected nothing yet.
    pub fn new(device: Option<&File>, subject: &Subject) -> Result<Self, GuardError> {
        const FEATURES: Features = Features::WRITE_PROTECT
            .and(Features::WRITE_PROTECT_SHARED)
            .and(Features::WRITE_PROTECT_UNPOPULATED);
        let userfault = Userfault::from_device(device.ok_or(GuardError::NoDevice)?, FEATURES)?;
        let mut guard = Self {
            userfault,
            regions: subject.memory.iter().map(place_of).collect(),
            registered: 0,
            since: Instant::now(),
            blocks: BTreeSet::new(),
            wanted: BTreeSet::new(),
            copies: VecDeque::new(),
            waiting: 0,
        };
        for region in subject.memory.iter() {
            let modes = Modes {
                missing: false,
                write_protect: true,
            };
            guard.userfault.register(region, modes)?;
            guard.registered += 1;
        }
        Ok(guard)
    }

    /// Protects the blocks at `places` for a moment each, while the guest runs: what costs most, taking thousands of pages
    /// out of KVM's page tables, is done then, and when the guest stands still only for those that it has touched since.
    pub fn rehearse(&self, places: &[Place]) -> Result<(), GuardError> {
        for places in places.chunks(REHEARSED) {
            for (start, bytes) in self.runs(places) {
                self.switch("write-protect", start, bytes, true)?;
                self.switch("let go of", start, bytes, false)?;
            }
        }
        Ok(())
    }

    /// Protects the blocks at `places`, all of them or, after an error, none.
    pub fn protect(&mut self, places: &[Place]) -> Result<(), GuardError> {
        self.since = Instant::now();
        for (start, bytes) in self.runs(places) {
            if let Err(error) = self.switch("write-protect", start, bytes, true) {
                self.end();
                return Err(error);
            }
        }
        self.blocks.extend(places);
        Ok(())
    }

    /// First address and bytes of the blocks at `places`, of those that are next to each other together.
    fn runs(&self, places: &[Place]) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for place in places {
            let (start, bytes) = self.place(*place);
            match runs.last_mut() {
                Some((from, len)) if *from + *len == start => *len += bytes,
                _ => runs.push((start, bytes)),
            }
        }
        runs
    }

    /// Readable when somebody waits.
    pub fn fd(&self) -> RawFd {
        self.userfault.as_raw_fd()
    }

    /// How many blocks are protected.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// First address and bytes of a block.
    fn place(&self, (region, block): Place) -> (u64, u64) {
        let (start, len) = self.regions.get(region).copied().unwrap_or_default();
        let offset = (block as u64).saturating_mul(BLOCK).min(len);
        (start + offset, BLOCK.min(len - offset))
    }

    /// The block with the address.
    fn find(&self, address: u64) -> Option<Place> {
        let mut regions = self.regions.iter().enumerate();
        let inside = |start: u64, len: u64| address.checked_sub(start).filter(|at| *at < len);
        let found = regions.find_map(|(index, (start, len))| Some((index, inside(*start, *len)?)));
        let (region, offset) = found?;
        Some((region, usize::try_from(offset / BLOCK).ok()?))
    }

    fn switch(
        &self,
        what: &'static str,
        start: u64,
        bytes: u64,
        on: bool,
    ) -> Result<(), GuardError> {
        let done = self.userfault.write_protect(start, bytes, on, Wake::Yes);
        done.map_err(|source| GuardError::Protect {
            what,
            start,
            bytes,
            source,
        })
    }

    /// Copies what somebody waits for, as far as there is room, and lets them go on.
    pub fn serve(&mut self, changes: &mut Changes) -> Result<(), CaptureError> {
        if self.since.elapsed() > PATIENCE && !self.blocks.is_empty() {
            let (blocks, seconds) = (self.blocks.len(), PATIENCE.as_secs());
            return Err(GuardError::TooLong { blocks, seconds }.into());
        }
        let mut events = Vec::new();
        while self.userfault.read(&mut events).map_err(GuardError::Read)? {
            for event in events.drain(..) {
                let Event::Fault(fault) = event else { continue };
                let Some(place) = self.find(fault.address) else {
                    continue;
                };
                if self.blocks.contains(&place) {
                    self.wanted.insert(place);
                } else {
                    // It came while the block was copied.
                    let (start, bytes) = self.place(place);
                    self.switch("let go of", start, bytes, false)?;
                }
            }
        }
        while self.waiting < MAX_WAITING
            && let Some(place) = self.wanted.pop_first()
        {
            self.lift(place, changes)?;
        }
        Ok(())
    }

    /// Ends all protection. What was not copied can change from now on.
    pub fn end(&mut self) {
        let registered = std::mem::take(&mut self.registered);
        for (start, bytes) in self.regions.iter().take(registered) {
            if let Err(error) = self.userfault.unregister(*start, *bytes) {
                log::error!("Memory at {start:#x} may stay protected: {error}");
            }
        }
        self.blocks.clear();
        self.wanted.clear();
    }

    /// Copies a block and ends its protection.
    fn lift(&mut self, place: Place, changes: &mut Changes) -> Result<(), CaptureError> {
        let mut frames = Frames::default();
        changes.copy(place, &mut frames, Zeroes::Send)?;
        self.wanted.remove(&place);
        self.blocks.remove(&place);
        let (start, bytes) = self.place(place);
        self.switch("let go of", start, bytes, false)?;
        self.waiting += frames.bytes().len();
        self.copies.push_back(frames);
        Ok(())
    }

    /// What is to be sent next, if there is anything left.
    pub fn next(&mut self, changes: &mut Changes) -> Result<Option<Frames>, CaptureError> {
        self.serve(changes)?;
        if self.copies.is_empty()
            && let Some(place) = self.blocks.first().copied()
        {
            self.lift(place, changes)?;
        }
        let frames = self.copies.pop_front();
        let bytes = frames.as_ref().map_or(0, |frames| frames.bytes().len());
        self.waiting = self.waiting.saturating_sub(bytes);
        Ok(frames)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.end();
    }
}
