//! Going on from a snapshot: which one, and its memory, page by page as the guest asks for it.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use store::{Info, Object, PAGE, Store, WORKING_SET};
use vmm::userfault::handler::{Connection, Content, HandlerError, Page, Plan, Report};

use super::capture::{RAM, STATE};
use super::guest::GuestError;
use crate::errors::chain;

/// After this time a guest gets all the memory that it has not asked for, and needs the service no more.
const FILL_AFTER: Duration = Duration::from_secs(2);

/// A snapshot that a guest can go on from.
pub struct Candidate {
    /// What is known of it.
    pub info: Info,
    /// State of vCPUs and devices, as the VMM wrote it.
    pub state: Vec<u8>,
    /// Its memory.
    pub ram: Object,
}

/// Finds the snapshot `id` of a guest, or the one before it that is not damaged; `remarks` says so then. `damaged` are
/// those of which it is known.
pub fn candidate(
    store: &Store,
    guest: &str,
    id: u64,
    damaged: &[u64],
    remarks: &mut Vec<String>,
) -> Result<Candidate, GuestError> {
    let mut id = id;
    loop {
        let info = store.info(id)?;
        if info.guest != guest {
            return Err(GuestError::Other {
                snapshot: id,
                theirs: info.guest,
                guest: guest.to_owned(),
            });
        }
        let why = if damaged.contains(&id) {
            "its memory is damaged".to_owned()
        } else {
            match read(store, &info) {
                Err(error @ store::Error::Corrupt { .. }) => chain(&error),
                read => return Ok(read?),
            }
        };
        let Some(parent) = info.parent else {
            return Err(GuestError::NoneLeft { snapshot: id, why });
        };
        remarks.push(format!(
            "snapshot {id} cannot be used ({why}): {parent}, the one before it, is taken"
        ));
        id = parent;
    }
}

/// Reads what is needed first of a snapshot.
pub fn read(store: &Store, info: &Info) -> store::Result<Candidate> {
    let snapshot = store.snapshot(info.id)?;
    let object = snapshot.object(STATE)?;
    let len = usize::try_from(object.info().len).unwrap_or(usize::MAX);
    let mut state = vec![0; len.min(128 << 20)];
    object.read(0, &mut state)?;
    Ok(Candidate {
        info: info.clone(),
        state,
        ram: snapshot.object(RAM)?,
    })
}

/// Serves the memory of one guest.
pub struct Pager {
    listener: Arc<UnixListener>,
    snapshot: u64,
    /// Whether memory was found damaged.
    damaged: Arc<Mutex<bool>>,
}

impl Pager {
    /// Waits for the VMM at `socket`, and serves it: `first`, pages of the memory, before it asks for them.
    pub fn start(socket: &Path, candidate: Candidate, first: Vec<u64>) -> io::Result<Self> {
        let listener = Arc::new(UnixListener::bind(socket)?);
        let damaged = Arc::new(Mutex::new(false));
        let pager = Self {
            listener: Arc::clone(&listener),
            snapshot: candidate.info.id,
            damaged: Arc::clone(&damaged),
        };
        thread::Builder::new().name("pager".into()).spawn(move || {
            let Ok((stream, _)) = listener.accept() else {
                return;
            };
            match serve(stream, &candidate.ram, &first) {
                Ok(report) => keep(&candidate, &report, &first),
                Err(error) => {
                    let is_damage = matches!(error, HandlerError::Source { .. });
                    *damaged.lock().unwrap_or_else(PoisonError::into_inner) |= is_damage;
                    log(&candidate.info, "is not served any more", &error);
                }
            }
        })?;
        Ok(pager)
    }

    /// Ends it. Says which snapshot is damaged, if it was found to be.
    pub fn stop(&self) -> Option<u64> {
        // One that serves ends with its VMM; one that still waits ends now.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        damaged.then_some(self.snapshot)
    }
}

fn serve(stream: UnixStream, ram: &Object, first: &[u64]) -> Result<Report, HandlerError> {
    let offsets = first.iter().map(|page| page.checked_mul(PAGE as u64));
    let plan = Plan {
        prefetch: offsets.flatten().collect(),
        fill_after: Some(FILL_AFTER),
    };
    let mut source = |offset: u64, page: &mut Page| {
        let there = ram.page(offset / PAGE as u64, page)?;
        Ok(if there { Content::Data } else { Content::Zero })
    };
    let connection = Connection::accept(stream, ram.info().len)?;
    connection.serve(&plan, &mut source)
}

/// What the guest had to wait for comes first the next time, before what was there in time.
fn keep(candidate: &Candidate, report: &Report, first: &[u64]) {
    if report.faults.is_empty() {
        return;
    }
    let waited = report.faults.iter().map(|offset| offset / PAGE as u64);
    let mut known = HashSet::new();
    let pages: Vec<_> = waited
        .chain(first.iter().copied())
        .filter(|page| known.insert(*page))
        .take(WORKING_SET)
        .collect();
    if let Err(error) = candidate.ram.snapshot().set_working_set(&pages) {
        log(
            &candidate.info,
            "will not be there sooner the next time",
            &error,
        );
    }
}

#[expect(clippy::print_stderr, reason = "the log of a process of its own")]
fn log(info: &Info, what: &str, error: &dyn std::error::Error) {
    eprintln!(
        "{}: the memory of snapshot {} {what}: {}",
        info.guest,
        info.id,
        chain(error)
    );
}
