//! A guest that goes on from its snapshot: how long until its state is there, and until it says something.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use vmm::userfault::handler::{Connection, Content, Page, Plan, Report};

use crate::api;
use crate::system::monotonic_us;
use crate::vmm::{Guest, Vmm, event, keep_open};

const STATE: &str = "/run/state";
pub const MEMORY: &str = "/run/memory";
pub const REQUEST: &str = "/run/load.json";
const SOCKET: &str = "/run/pager";

/// Where the memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From its file, which is in the host's memory.
    File,
    /// From a program that has that file, as the guest asks for it.
    Demand,
    /// The same, and what the guest needed the last time is there first.
    WorkingSet,
}

/// Takes a snapshot of `guest`, which talks all the time. Both files are in memory.
pub fn save(guest: &Guest) -> Result<()> {
    let mut running = Vmm::DarumaByApi.start(guest, 0)?;
    running.event("running")?;
    running.event("boot-timer")?;
    running.wait_for_marker()?;
    let mut client = api::connect(0)?;
    api::ask(&mut client, "PATCH", "/vm", &json!({ "state": "Paused" }))?;
    let files = json!({ "snapshot_path": STATE, "mem_file_path": MEMORY });
    api::ask(&mut client, "PUT", "/snapshot/create", &files)?;
    running.end()
}

/// Writes what a VMM is told that goes on from the snapshot.
pub fn request(source: Source) -> Result<()> {
    let backend = match source {
        Source::File => json!({ "backend_type": "File", "backend_path": MEMORY }),
        Source::Demand | Source::WorkingSet => {
            json!({ "backend_type": "Uffd", "backend_path": SOCKET })
        }
    };
    let request = json!({ "snapshot_path": STATE, "mem_backend": backend, "resume_vm": true });
    Ok(fs::write(REQUEST, request.to_string())?)
}

/// Goes on from the snapshot, and ends; times in microseconds since the VMM's process start. `needed` are the offsets of
/// pages that are known to be needed, and those that were then.
pub fn start(source: Source, jail: bool, needed: &mut Vec<u64>) -> Result<Value> {
    let handler = match source {
        Source::File => None,
        Source::Demand => Some(serve(Vec::new())?),
        Source::WorkingSet => Some(serve(needed.clone())?),
    };
    request(source)?;
    let (ours, theirs) = UnixStream::pair()?;
    let start = monotonic_us();
    let mut command = Command::new("/bin/daruma-vmm");
    let descriptor = theirs.as_raw_fd();
    command
        .args(["--id", "lab0", "--no-api", "--load-file", REQUEST])
        .args(["--start-time-us", &start.to_string()])
        .args(["--control-fd", &descriptor.to_string()])
        .args(jail.then_some("--jail"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    keep_open(&mut command, descriptor);
    let mut child = command.spawn().context("Cannot start the VMM")?;
    drop(theirs);
    let mut output = child.stdout.take().context("No standard output")?;
    let mut byte = [0];
    output
        .read_exact(&mut byte)
        .context("The guest says nothing")?;
    let output_us = monotonic_us() - start;
    let mut events = BufReader::new(ours);
    let restored = event(&mut events, "restored")?;
    let running = event(&mut events, "running")?;
    child.kill()?;
    child.wait()?;
    let mut faults = Value::Null;
    if let Some(handler) = handler {
        let report = handler
            .join()
            .map_err(|_| anyhow!("The handler panicked"))??;
        faults = report.faults.len().into();
        if source == Source::Demand {
            *needed = report.faults;
        }
    }
    Ok(json!({
        "loaded_us": restored["us"],
        "running_us": running["us"],
        "output_us": output_us,
        "faults": faults,
    }))
}

/// Serves one VMM from the memory's file.
fn serve(prefetch: Vec<u64>) -> Result<JoinHandle<Result<Report>>> {
    if fs::exists(SOCKET)? {
        fs::remove_file(SOCKET)?;
    }
    let listener = UnixListener::bind(SOCKET)?;
    let memory = File::open(MEMORY)?;
    let len = memory.metadata()?.len();
    Ok(thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        let mut source = |offset, page: &mut Page| {
            memory.read_exact_at(page, offset)?;
            Ok(match page.iter().all(|byte| *byte == 0) {
                true => Content::Zero,
                false => Content::Data,
            })
        };
        let plan = Plan {
            prefetch,
            fill_after: None,
        };
        Ok(Connection::accept(stream, len)?.serve(&plan, &mut source)?)
    }))
}
