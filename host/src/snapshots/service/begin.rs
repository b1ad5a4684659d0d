//! What a guest begins with: its disks as it left them, one of its snapshots, or its images; and what is kept of one that
//! has fallen.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use store::{Info, Spec, Store};

use super::super::protocol::{Begin, Lost};
use super::super::{FALLEN, LEFT, READY, SUSPENDED};
use super::capture::{DISK, now_ms};
use super::guest::{self, Errand, GuestError};
use super::restore::{self, Candidate};
use super::stored::Tell;
use crate::errors::chain;

/// Fallen guests' disks that are kept of each guest.
const MAX_FALLEN: usize = 3;
/// Milliseconds that they are kept at most: a day.
const MAX_AGE_MS: u64 = 24 * 3600 * 1000;

/// What a guest begins with.
pub enum Ground {
    /// Its disks as it left them.
    Left,
    /// A snapshot of its own, or of the guest that it is a fork of.
    Snapshot(Box<Candidate>),
    /// The disks of a snapshot that has no memory: what is kept of a fallen guest.
    Disks(Box<Info>),
    /// Its images.
    Images,
}

impl Ground {
    /// The snapshot whose disks it has.
    pub fn snapshot(&self) -> Option<&Info> {
        match self {
            Self::Snapshot(candidate) => Some(&candidate.info),
            Self::Disks(info) => Some(info),
            Self::Left | Self::Images => None,
        }
    }
}

/// Finds what the guest begins with.
pub fn choose(errand: &Errand<'_>, remarks: &mut Vec<String>) -> Result<Ground, GuestError> {
    let Errand { store, name, .. } = *errand;
    match &errand.begin {
        Begin::Left => Ok(Ground::Left),
        Begin::Factory { .. } => Ok(Ground::Images),
        Begin::From(origin) => {
            let owner = origin.fork_of.as_deref().unwrap_or(name);
            if let Some(info) = fallen(store, owner, origin.snapshot)? {
                return Ok(Ground::Disks(Box::new(info)));
            }
            restore::candidate(store, owner, origin.snapshot, errand.damaged, remarks)
                .map(|found| Ground::Snapshot(Box::new(found)))
        }
        Begin::Back { steps, .. } => back(errand, *steps, remarks),
        Begin::Resume => {
            let newest = own(store, name)?.pop();
            match newest {
                Some(info) if !info.labels.contains_key(LEFT) => back(errand, 0, remarks),
                _ => Ok(Ground::Left),
            }
        }
    }
}

/// The snapshot of that id, if it is one of a fallen guest's disks.
pub fn fallen(store: &Store, guest: &str, id: u64) -> store::Result<Option<Info>> {
    let info = store.info(id)?;
    Ok((info.guest == guest && info.labels.contains_key(FALLEN)).then_some(info))
}

/// The good snapshot that is `steps` back from the newest, or the next one that can be read.
///
/// One that fell before any snapshot of it could prove itself goes back as far among those that were taken while it was
/// ready: its disks alone may be what it fell by.
fn back(errand: &Errand<'_>, steps: u32, remarks: &mut Vec<String>) -> Result<Ground, GuestError> {
    let all = own(errand.store, errand.name)?;
    let newest = all.last().map(|info| info.id);
    let resumes = matches!(errand.begin, Begin::Resume);
    let whole = |info: &&Info| !errand.damaged.contains(&info.id);
    let good = |info: &&Info| {
        // A guest that was suspended has had no time to be healthy after that.
        let suspended = info.labels.contains_key(SUSPENDED) && Some(info.id) == newest;
        info.good || resumes && suspended
    };
    let proven = resumes || all.iter().filter(whole).any(|info| good(&info));
    let can = |info: &&Info| match proven {
        true => good(info),
        false => info.labels.contains_key(READY),
    };
    let steps = usize::try_from(steps).unwrap_or(usize::MAX);
    for info in all.iter().rev().filter(whole).filter(can).skip(steps) {
        match restore::read(errand.store, info) {
            Ok(candidate) => {
                if !proven {
                    remarks.push(format!(
                        "no snapshot is known to be good: snapshot {}, which was taken while the guest was ready, is tried",
                        info.id
                    ));
                }
                return Ok(Ground::Snapshot(Box::new(candidate)));
            }
            Err(error @ store::Error::Corrupt { .. }) => remarks.push(format!(
                "snapshot {} cannot be used ({}): an older one is taken",
                info.id,
                chain(&error)
            )),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Ground::Left)
}

/// The snapshots that a guest can go on from, oldest first.
pub fn own(store: &Store, guest: &str) -> store::Result<Vec<Info>> {
    let mut all = store.list()?;
    all.retain(|info| info.guest == guest && !info.labels.contains_key(FALLEN));
    Ok(all)
}

/// Keeps what a fallen guest's disks are, before they become what they were. Says what is lost by that.
///
/// That the guest stands up again matters more: what goes wrong here goes to the log.
#[expect(clippy::print_stderr, reason = "the log of a process of its own")]
pub fn keep_fallen(errand: &Errand<'_>, ground: &Ground, tell: &mut Tell<'_>) -> Option<Lost> {
    let reason = match (&errand.begin, ground) {
        (Begin::Back { reason, .. }, Ground::Snapshot(_)) | (Begin::Factory { reason }, _) => {
            reason.clone()
        }
        (Begin::Resume, Ground::Snapshot(found)) => {
            if found.info.labels.contains_key(SUSPENDED) {
                return None;
            }
            "the host went down while it ran".to_owned()
        }
        _ => return None,
    };
    let to = ground.snapshot();
    let mut lost = Lost {
        ms: to.map(|info| now_ms().saturating_sub(info.time_ms)),
        bytes: 0,
        evidence: None,
    };
    match keep(errand, reason, to, tell) {
        Ok(Some((id, bytes))) => {
            lost.evidence = Some(id);
            lost.bytes = bytes;
        }
        Ok(None) => {}
        Err(error) => eprintln!(
            "{}: what its disks were when it fell is not kept: {}",
            errand.name,
            chain(&error)
        ),
    }
    Some(lost)
}

fn keep(
    errand: &Errand<'_>,
    reason: String,
    to: Option<&Info>,
    tell: &mut Tell<'_>,
) -> Result<Option<(u64, u64)>, GuestError> {
    let Errand { store, name, .. } = *errand;
    let known = store.disks()?;
    let disks = errand.disks.iter().filter(|source| {
        let disk = guest::disk_name(name, source);
        known.iter().any(|known| known.name == disk)
    });
    let spec = Spec {
        guest: name.to_owned(),
        parent: to.map(|info| info.id),
        time_ms: now_ms(),
        labels: BTreeMap::from([(FALLEN.to_owned(), reason)]),
    };
    let _kept = (errand.tidying.read()).unwrap_or_else(PoisonError::into_inner);
    let mut writer = store.begin(spec)?;
    let mut any = false;
    for source in disks {
        let disk = guest::disk(store, name, source, None, tell)?;
        let frozen = Arc::new(disk.freeze()?);
        writer.disk(&format!("{DISK}{}", source.drive_id), &frozen)?;
        any = true;
    }
    if !any {
        return Ok(None);
    }
    let kept = writer.commit()?.id;
    let mut bytes = 0;
    if let Some(to) = to {
        let changed = store.diff(to.id, kept)?.into_iter();
        let on_disk = changed.filter(|changed| changed.object.starts_with(DISK));
        bytes = on_disk.map(|changed| changed.len).sum();
    }
    Ok(Some((kept, bytes)))
}

/// Deletes what was kept of earlier falls. For one who has the store alone.
pub fn forget_old(store: &Store, guest: &str) -> store::Result<()> {
    let mut kept = store.list()?;
    kept.retain(|info| info.guest == guest && info.labels.contains_key(FALLEN));
    let now = now_ms();
    let newest = kept.len().saturating_sub(MAX_FALLEN);
    for (index, info) in kept.iter().enumerate() {
        if index >= newest && now.saturating_sub(info.time_ms) < MAX_AGE_MS {
            continue;
        }
        match store.delete(info.id) {
            // A disk stands on it: next time.
            Ok(()) | Err(store::Error::Busy { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Notes that the guest ended in order after its newest snapshot.
pub fn left(store: &Store, guest: &str) -> store::Result<()> {
    let Some(newest) = own(store, guest)?.pop() else {
        return Ok(());
    };
    if newest.labels.contains_key(LEFT) {
        return Ok(());
    }
    store.mark(newest.id, |labels, _| {
        labels.insert(LEFT.to_owned(), "yes".to_owned());
    })
}

/// Notes that guests were healthy after these snapshots.
pub fn good(store: &Store, snapshots: &[u64]) -> store::Result<()> {
    for id in snapshots {
        match store.mark(*id, |_, good| *good = true) {
            // Deleted meanwhile.
            Ok(()) | Err(store::Error::NoSnapshot { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
