//! Snapshots of a guest that goes on: what the store asks for, and what it gets.
//!
//! ```text
//!   the store ──TAKE──► thread "live" ── while the guest runs: what has changed is sent, until little is left
//!             ◄─pages─        │
//!             ◄FREEZE─        ├── the guest stands still, for milliseconds: devices parked, state saved, the few pages
//!             ─FROZEN►        │   that are left copied; those of a guest that changes too many write-protected
//!             ◄─pages─        └── the guest runs: what was copied is sent; what is protected is sent before it changes
//! ```
//!
//! How long the guest stands still does not depend on how much memory it has, and how much memory this takes does not
//! either: of pages that are not sent yet there are copies of a few megabytes at most. A guest that writes to a protected
//! page waits until that page is copied, and so never longer than the store may take.

mod backlog;
mod capture;
mod changes;
mod error;
mod frames;
mod guard;
pub mod protocol;
mod wire;

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use self::capture::Live;
use self::wire::Wire;
use crate::controller::Desk;
use crate::jail::opened::{self, Kind};
use crate::jail::seccomp::{Seccomp, ThreadKind};
use crate::latch::ExitLatch;
use crate::logger::chain;
use crate::machine::Brake;
use crate::snapshot::Subject;
use crate::userfault;

/// Bytes of stack: its deepest use is a device's end of its work, and JSON.
const STACK_BYTES: usize = 512 << 10;

/// The channel to the store, until there is a guest.
pub struct Channel {
    socket: UnixStream,
    /// Makes userfaultfds.
    device: Option<File>,
}

impl Channel {
    /// Over `socket`.
    pub fn new(socket: UnixStream) -> Self {
        // What was opened ahead is for a jail, and may be wanted by others.
        let device = userfault::open_device();
        let kept = || opened::take(Kind::Write, userfault::DEVICE).map(File::from);
        let device = device.ok().or_else(kept);
        Self { socket, device }
    }
}

/// What the thread works on.
pub struct Parts {
    /// What snapshots are of.
    pub subject: Arc<Subject>,
    /// What stops the guest.
    pub brake: Arc<Brake>,
    /// Who knows what the guest is made of.
    pub desk: Desk,
    /// The end of the run.
    pub latch: Arc<ExitLatch>,
}

/// Opens what a [`Channel`] will look for. A host without it can do without.
pub fn open_ahead() {
    if let Err(error) = opened::keep_file(Path::new(userfault::DEVICE), true) {
        log::debug!("Cannot open {}: {error}", userfault::DEVICE);
    }
}

/// Starts the thread that takes snapshots for the store. It ends with the channel or with the run.
pub fn start(channel: Channel, parts: Parts, seccomp: Seccomp) -> io::Result<()> {
    let Channel { socket, device } = channel;
    let Parts {
        subject,
        brake,
        desk,
        latch,
    } = parts;
    let wire = Wire::new(socket, latch)?;
    let mut live = Live::new(wire, subject, brake, desk, device);
    let body = move || {
        if let Err(error) = seccomp.enter(ThreadKind::Live) {
            return log::error!("The store gets no snapshots: {}", chain(&error));
        }
        let end = live.run();
        if !end.is_end_of_run() {
            log::warn!("The store gets no more snapshots: {}", chain(&end));
        }
    };
    let thread = thread::Builder::new().name("live".into());
    thread.stack_size(STACK_BYTES).spawn(body)?;
    Ok(())
}
