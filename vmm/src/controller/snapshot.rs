//! Snapshots as the API asks for them, in Firecracker's words where it has some.

use std::sync::mpsc;

use api::model::{
    CreateSnapshot, Document, LoadSnapshot, MachineConfig, MemoryBackend, NetworkInterface,
};
use api::{Answer, Fault, Outcome};

use super::{Controller, StartError, fault, replace};
use crate::clock::StartTime;
use crate::config::{ConfigError, NetConfig, VmConfig};
use crate::exit::CODE_BAD_CONFIGURATION;
use crate::logger::chain;
use crate::machine::{MemorySource, Running, Snapshot};
use crate::metrics;
use crate::snapshot::state::DevicesState;
use crate::snapshot::{self, About, FileError, Kind, Order};

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

/// Why there is no guest that goes on.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant describes it and its values"
)]
pub enum LoadError {
    #[error("Loading a microVM snapshot not allowed after configuring boot-specific resources.")]
    Configured,
    #[error("missing field: either `mem_backend` or `mem_file_path` is required")]
    NoMemory,
    #[error("too many fields: either `mem_backend` or `mem_file_path` exclusively is required")]
    TwoMemories,
    #[error("backend_type \"{found}\" is unknown, permitted are File and Uffd")]
    BackendType { found: String },
    #[error("Unknown Network Device: \"{id}\"")]
    NoInterface { id: String },
    #[error("The guest has no drive \"{id}\"")]
    NoDrive { id: String },
    #[error("The guest has no persistent memory \"{id}\"")]
    NoPmem { id: String },
    #[error("The guest has no vsock device")]
    NoVsock,
    #[error("vsock_override has neither `uds_path` nor `guest_cid`: one of them is required")]
    EmptyVsock,
    #[error(
        "Network interface \"{id}\" is named twice in network_overrides and network_replacements: it can have one new tap"
    )]
    NamedTwice { id: String },
    #[error(
        "Network interface \"{id}\" cannot be replaced: the guest's virtio devices are on MMIO, where none come and go. \
         Give it another tap by network_overrides, which keeps its MAC address, or take the snapshot of a guest that was \
         started with --enable-pci"
    )]
    OnMmio { id: String },
    #[error(
        "Network interface \"{id}\" cannot be replaced: the guest knows no way to let go of what is where it is on the PCI \
         bus. Give it another tap by network_overrides"
    )]
    Fixed { id: String },
    #[error(transparent)]
    State(#[from] FileError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl LoadError {
    /// The process's exit code for it.
    pub fn code(&self) -> u8 {
        match self {
            Self::Start(error) => error.code(),
            _ => CODE_BAD_CONFIGURATION,
        }
    }
}

/// Where the guest's memory is.
fn memory_of(request: &LoadSnapshot) -> Result<MemorySource, LoadError> {
    match (&request.mem_file_path, &request.mem_backend) {
        (Some(path), None) => Ok(MemorySource::File(path.clone())),
        (
            None,
            Some(MemoryBackend {
                backend_type,
                backend_path,
            }),
        ) => match backend_type.as_str() {
            "File" => Ok(MemorySource::File(backend_path.clone())),
            "Uffd" => Ok(MemorySource::Program(backend_path.clone())),
            other => Err(LoadError::BackendType {
                found: other.into(),
            }),
        },
        (None, None) => Err(LoadError::NoMemory),
        (Some(_), Some(_)) => Err(LoadError::TwoMemories),
    }
}

/// Puts what the request has in the place of what the guest had.
fn override_devices(document: &mut Document, request: &LoadSnapshot) -> Result<(), LoadError> {
    for change in &request.network_overrides {
        let id = || change.iface_id.clone();
        let mut all = document.network_interfaces.iter_mut();
        let interface = all.find(|interface| interface.iface_id == change.iface_id);
        let interface = interface.ok_or_else(|| LoadError::NoInterface { id: id() })?;
        interface.host_dev_name.clone_from(&change.host_dev_name);
        interface.host_dev_fd = change.host_dev_fd;
    }
    for change in &request.drive_overrides {
        let mut all = document.drives.iter_mut();
        let drive = all.find(|drive| drive.drive_id == change.drive_id);
        let drive = drive.ok_or_else(|| LoadError::NoDrive {
            id: change.drive_id.clone(),
        })?;
        drive.path_on_host = Some(change.path_on_host.clone());
    }
    for change in &request.pmem_overrides {
        let mut all = document.pmem.iter_mut();
        let pmem = all.find(|pmem| pmem.id == change.id);
        let pmem = pmem.ok_or_else(|| LoadError::NoPmem {
            id: change.id.clone(),
        })?;
        pmem.path_on_host.clone_from(&change.path_on_host);
    }
    if let Some(change) = &request.vsock_override {
        let vsock = document.vsock.as_mut().ok_or(LoadError::NoVsock)?;
        if change.uds_path.is_none() && change.guest_cid.is_none() {
            return Err(LoadError::EmptyVsock);
        }
        if let Some(path) = &change.uds_path {
            vsock.uds_path.clone_from(path);
        }
        if let Some(cid) = change.guest_cid {
            vsock.guest_cid = cid;
        }
    }
    Ok(())
}

/// A guest that is to go on from a snapshot: all that is known of it before anything is opened for it.
#[derive(Debug)]
pub struct Load {
    document: Document,
    config: VmConfig,
    successors: Vec<(NetworkInterface, NetConfig)>,
    snapshot: Snapshot,
    pci: bool,
    resume: bool,
}

impl Load {
    /// Reads the state that `request` names.
    ///
    /// # Errors
    /// It cannot be read, or the request does not fit it.
    pub fn read(request: &LoadSnapshot) -> Result<Self, LoadError> {
        let memory = memory_of(request)?;
        let state = snapshot::file::read(&request.snapshot_path)?;
        let mut document = state.document.clone();
        override_devices(&mut document, request)?;
        // Whether changes are noted is for who goes on to say.
        let machine = document
            .machine_config
            .get_or_insert_with(MachineConfig::default);
        machine.track_dirty_pages = request.enable_diff_snapshots || request.track_dirty_pages;
        // How a process logs and counts is its own business.
        (document.logger, document.metrics) = (None, None);
        let pci = matches!(state.devices, DevicesState::Pci(_));
        let new = &request.network_replacements;
        replace::check(request, &state.devices)?;
        let (config, successors) = replace::unplug(&document, new, pci)?;
        Ok(Self {
            config,
            successors,
            document,
            snapshot: Snapshot {
                state,
                memory,
                advance_clock: request.clock_realtime,
            },
            pci,
            resume: request.resume_vm,
        })
    }

    /// What the guest is made of.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// The network interfaces that it is given when it has let go of those of the same names.
    pub fn successors(&self) -> impl Iterator<Item = &NetConfig> {
        self.successors.iter().map(|(_, net)| net)
    }

    /// Where its memory is.
    pub fn memory(&self) -> &MemorySource {
        &self.snapshot.memory
    }

    /// Whether it goes on at once.
    pub fn resumes(&self) -> bool {
        self.resume
    }
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
        let start = StartTime::new(None, None);
        let loaded = match self.is_unconfigured() {
            true => Load::read(request).and_then(|load| {
                self.settings.events.restart(start);
                self.go_on(load)
            }),
            false => Err(LoadError::Configured),
        };
        loaded.map_err(|error| fault::about(LOAD, &error))?;
        let latencies = &metrics::process().latencies;
        for gauge in [&latencies.load_snapshot, &latencies.vmm_load_snapshot] {
            gauge.set(start.elapsed_us());
        }
        Ok(Answer::Done)
    }

    /// Goes on from a snapshot whose state was read.
    ///
    /// # Errors
    /// The guest cannot be built. There is none then, and another snapshot can be tried.
    pub fn go_on(&mut self, load: Load) -> Result<(), LoadError> {
        let Load {
            mut document,
            config,
            successors,
            snapshot,
            pci,
            resume,
        } = load;
        // Before this thread's filter closes, and in a jail what is not asked for now is let go of.
        let successors = replace::open(successors)?;
        self.resume_from(&config, &snapshot)?;
        self.settings.pci = pci;
        document.logger = self.document.logger.take();
        document.metrics = self.document.metrics.take();
        self.document = document;
        self.replace_nets(successors);
        let Some(guest) = &mut self.guest else {
            return Ok(());
        };
        if let Err(error) = guest.targets.generation_id.renew() {
            log::error!("The guest keeps its generation ID: {}", chain(&error));
        }
        self.settings.events.restored();
        log::info!("The guest goes on from a snapshot");
        if resume {
            guest.resume();
        }
        Ok(())
    }
}
