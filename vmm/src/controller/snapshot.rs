//! Snapshots as the API asks for them, in Firecracker's words where it has some.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use api::model::{CreateSnapshot, Document, LoadSnapshot, MachineConfig, MemoryBackend};
use api::{Answer, Fault, Outcome};

use super::{Controller, fault};
use crate::clock::StartTime;
use crate::config::firecracker;
use crate::logger::chain;
use crate::machine::{Running, Snapshot};
use crate::metrics;
use crate::snapshot::state::DevicesState;
use crate::snapshot::{self, About, Kind, Order};

const CREATE: &str = "Create snapshot error";
const LOAD: &str = "Load snapshot error";

fn refused(what: &str, why: impl std::fmt::Display) -> Fault {
    Fault::new(format!("{what}: {why}"))
}

/// Writes a snapshot of the guest, which is to be paused and stays so. Returns when it is written: nothing else happens to
/// the guest meanwhile.
pub(super) fn create(guest: &Running, document: &Document, request: CreateSnapshot) -> Outcome {
    let kind = match request.snapshot_type.as_deref() {
        None | Some("Full") => Kind::Full,
        Some("Diff") => Kind::Diff,
        Some(other) => {
            let why = format!("snapshot_type \"{other}\" is unknown, permitted are Full and Diff");
            return Err(refused(CREATE, why));
        }
    };
    let Some((subject, watchdog)) = guest.subject() else {
        let why = "The microVM runs: pause it first (PATCH /vm, \"Paused\")";
        return Err(refused(CREATE, why));
    };
    let (done, result) = mpsc::channel();
    let document = document.clone();
    // This thread may open no files, and there is nothing that it may do until the snapshot is there.
    guest.opener.put(Box::new(move || {
        let order = Order {
            state: &request.snapshot_path,
            memory: &request.mem_file_path,
            about: About { document, watchdog },
            kind,
        };
        // Who asked waits.
        let _ = done.send(
            subject
                .take(order)
                .map_err(|error| fault::about(CREATE, &error)),
        );
    }));
    let ended = || refused(CREATE, "The thread that writes snapshots has ended");
    result.recv().unwrap_or_else(|_| Err(ended()))?;
    Ok(Answer::Done)
}

/// Where the guest's memory is.
fn memory_of(request: &LoadSnapshot) -> Result<PathBuf, Fault> {
    match (&request.mem_file_path, &request.mem_backend) {
        (Some(path), None) => Ok(path.clone()),
        (
            None,
            Some(MemoryBackend {
                backend_type,
                backend_path,
            }),
        ) => match backend_type.as_str() {
            "File" => Ok(backend_path.clone()),
            "Uffd" => Err(Fault::not_supported(
                "memory by userfaultfd (\"Uffd\"), use the back end \"File\"",
            )),
            other => Err(refused(
                LOAD,
                format!("backend_type \"{other}\" is unknown, permitted are File and Uffd"),
            )),
        },
        (None, None) => Err(refused(
            LOAD,
            "missing field: either `mem_backend` or `mem_file_path` is required",
        )),
        (Some(_), Some(_)) => Err(refused(
            LOAD,
            "too many fields: either `mem_backend` or `mem_file_path` exclusively is required",
        )),
    }
}

/// Puts what the request has in the place of what the guest had.
fn override_devices(document: &mut Document, request: &LoadSnapshot) -> Result<(), Fault> {
    for change in &request.network_overrides {
        let mut all = document.network_interfaces.iter_mut();
        let interface = all.find(|interface| interface.iface_id == change.iface_id);
        let interface = interface.ok_or_else(|| {
            let id = &change.iface_id;
            refused(LOAD, format!("Unknown Network Device: \"{id}\""))
        })?;
        interface.host_dev_name = Some(change.host_dev_name.clone());
        interface.host_dev_fd = None;
    }
    if let Some(change) = &request.vsock_override {
        let vsock = document.vsock.as_mut();
        let vsock = vsock.ok_or_else(|| refused(LOAD, "The guest has no vsock device"))?;
        vsock.uds_path.clone_from(&change.uds_path);
    }
    Ok(())
}

impl Controller {
    /// Whether nothing was said about the guest: how this process logs and counts is its own business.
    fn is_unconfigured(&self) -> bool {
        let ours = Document {
            logger: None,
            metrics: None,
            ..self.document.clone()
        };
        ours == Document {
            machine_config: Some(MachineConfig::default()),
            ..Document::default()
        }
    }

    /// Goes on from a snapshot. After an error there is no guest, and another snapshot can be tried.
    pub(super) fn load_snapshot(&mut self, request: &LoadSnapshot) -> Outcome {
        if !self.is_unconfigured() {
            return Err(refused(
                LOAD,
                "Loading a microVM snapshot not allowed after configuring boot-specific resources.",
            ));
        }
        let start = StartTime::new(None, None);
        let memory = memory_of(request)?;
        let state = self.read_state(&request.snapshot_path)?;
        let mut document = state.document.clone();
        override_devices(&mut document, request)?;
        // Whether changes are noted is for who goes on to say.
        let machine = document
            .machine_config
            .get_or_insert_with(MachineConfig::default);
        machine.track_dirty_pages = request.enable_diff_snapshots || request.track_dirty_pages;
        let Document {
            logger, metrics, ..
        } = self.document.clone();
        (document.logger, document.metrics) = (logger, metrics);
        let pci = matches!(state.devices, DevicesState::Pci(_));
        let failed = |error: &dyn std::error::Error| fault::about(LOAD, error);
        let config = firecracker::guest(&document, pci).map_err(|error| failed(&error))?;
        self.settings.events.restart(start);
        let snapshot = Snapshot {
            state,
            memory,
            advance_clock: request.clock_realtime,
        };
        self.resume_from(&config, &snapshot)
            .map_err(|error| failed(&error))?;
        self.settings.pci = pci;
        self.document = document;
        let guest = self.guest.as_mut();
        let guest = guest.ok_or_else(|| refused(LOAD, "There is no guest"))?;
        if let Err(error) = guest.targets.generation_id.renew() {
            log::error!("The guest keeps its generation ID: {}", chain(&error));
        }
        let latencies = &metrics::process().latencies;
        for gauge in [&latencies.load_snapshot, &latencies.vmm_load_snapshot] {
            gauge.set(start.elapsed_us());
        }
        log::info!("The guest goes on from a snapshot");
        if request.resume_vm {
            guest.resume();
        }
        Ok(Answer::Done)
    }

    fn read_state(&self, path: &Path) -> Result<snapshot::state::State, Fault> {
        snapshot::file::read(path).map_err(|error| fault::about(LOAD, &error))
    }
}
