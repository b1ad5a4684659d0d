//! Snapshots of a guest that stands still: its state and its memory as two files, and going on from them.
//!
//! ```text
//!   guest paused ─► device states, under their locks ─► interrupt controller, clock ─► vCPUs, each on its own thread
//!                └► memory file ─► state file, which is empty until then ─► answer
//! ```
//!
//! As long as the files are written the devices are locked: nothing but the snapshot touches the guest's memory, and it is
//! as old as the state. Afterwards all of them go on. An interrupt that was on its way through the host's kernel is in no
//! state: a device that is restored interrupts again.

pub mod blob;
pub mod cpu;
pub mod dirty;
pub mod file;
pub mod lazy;
pub mod memory;
pub mod state;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use api::model::Document;
use devices::legacy::acpi::Ged;
use devices::legacy::rtc::Rtc;
use devices::legacy::serial::Serial;
use devices::legacy::watchdog::WatchdogState;
use devices::memory::GuestMemory;
use devices::pci::PciBus;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::saved::SaveError;
use devices::virtio::state::{SharedState, VirtioState};
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;

use self::dirty::{Dirty, DirtyError, Taker};
pub use self::file::FileError;
pub use self::memory::MemoryFileError;
use self::state::{
    DevicesState, MmioDeviceState, PciFunctionState, PciState, PlatformState, State,
};
use crate::hotplug::Hotplug;
use crate::vcpu::Gate;
use crate::vcpu::state::{self as vcpu_state, VcpuState, VcpuStateError};
use crate::vm::{Vm, VmError};

/// How long the parked vCPUs have to give their states.
const VCPU_PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant describes it and its values"
)]
pub enum SnapshotError {
    #[error(transparent)]
    Device(#[from] SaveError),
    #[error("A device comes or goes just now: try again when it has")]
    HotplugBusy,
    #[error(
        "It is not known what has changed: set track_dirty_pages of machine-config, or of the request that loads a snapshot"
    )]
    NotTracked,
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    #[error(transparent)]
    Vcpu(#[from] VcpuStateError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("Cannot write {path}", path = .path.display())]
    Memory {
        path: std::path::PathBuf,
        #[source]
        source: MemoryFileError,
    },
}

/// The devices that every guest has, as far as they remember something.
pub struct Platform {
    /// The serial port.
    pub serial: Arc<Mutex<Serial>>,
    /// The real-time clock.
    pub rtc: Arc<Mutex<Rtc>>,
    /// Power button and the like.
    pub ged: Arc<Mutex<Ged>>,
}

/// Where virtio devices are.
pub enum Transports {
    /// On MMIO, in the order of their places, with what they are called.
    Mmio(Vec<(String, Arc<MmioTransport>)>),
    /// On PCI, where they come and go.
    Pci(Arc<PciBus>, Arc<Hotplug>),
}

/// All that a snapshot is taken of.
pub struct Subject {
    /// The guest in KVM.
    pub vm: Arc<Vm>,
    /// Its memory.
    pub memory: Arc<GuestMemory>,
    /// Where its vCPUs stand.
    pub gate: Arc<Gate>,
    /// The CPUID of each vCPU.
    pub cpuids: Vec<Vec<kvm_cpuid_entry2>>,
    /// What of its memory has changed.
    pub dirty: Dirty,
    /// Held by who has it stand still for a snapshot.
    pub standing: Mutex<()>,
    /// The devices that every guest has.
    pub platform: Platform,
    /// Its virtio devices.
    pub transports: Transports,
}

/// What a state says beside what the guest itself knows.
pub struct About {
    /// What the guest is made of.
    pub document: Document,
    /// What its watchdog had left when it was paused.
    pub watchdog: WatchdogState,
}

/// What is to be written.
pub struct Order<'a> {
    /// Where the state goes.
    pub state: &'a Path,
    /// Where the memory goes.
    pub memory: &'a Path,
    /// What the state says beside.
    pub about: About,
    /// What of the memory.
    pub kind: Kind,
}

/// What of the memory is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All of it.
    Full,
    /// What has changed since the last snapshot; all else is a hole in the file.
    Diff,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Subject {
    /// Takes a snapshot of the guest, which is paused, and returns when it is on its medium. The guest stays paused.
    pub fn take(self: &Arc<Self>, order: Order<'_>) -> Result<(), SnapshotError> {
        let Order {
            state: state_path,
            memory: memory_path,
            about,
            kind,
        } = order;
        if kind == Kind::Diff && !Dirty::is_tracked(&self.memory) {
            return Err(SnapshotError::NotTracked);
        }
        let _standing = lock(&self.standing);
        let write = |state: State| {
            let bytes = file::encode(&state)?;
            // An older state must not meet a newer memory, whatever happens in between.
            let state_file = file::create(state_path)?;
            file::sync(&state_file, state_path)?;
            let memory_file = file::create(memory_path)?;
            let turn = self.dirty.begin(Taker::Api, &self.vm, &self.memory)?;
            let changed = self.dirty.take(&turn, &self.vm, &self.memory)?;
            let whole: Vec<_> = changed.iter().map(|_| None).collect();
            // Without a snapshot to count from, everything has changed.
            let pages = match kind {
                Kind::Diff if turn.is_based() => &changed,
                Kind::Diff | Kind::Full => &whole,
            };
            let written = memory::write(&self.memory, pages, &memory_file);
            let written = written.map_err(|source| SnapshotError::Memory {
                path: memory_path.into(),
                source,
            });
            Ok((written, turn, changed, memory_file, state_file, bytes))
        };
        let (written, turn, changed, memory_file, state_file, bytes) =
            self.with_state(about, || Ok::<_, SnapshotError>(()), write)?;
        let finish = || {
            written?;
            file::sync(&memory_file, memory_path)?;
            Ok(file::write(&state_file, state_path, &bytes)?)
        };
        match finish() {
            Ok(()) => {
                self.dirty.settle(&turn);
                Ok(())
            }
            Err(error) => {
                Dirty::put_back(&self.memory, &changed);
                Err(error)
            }
        }
    }

    /// The state of the guest, whose vCPUs stand still. Its devices are parked: `parked` is called as soon as they are, and
    /// `then` does with the state what has to be done while they still are. Then they go on.
    ///
    /// # Errors
    /// There is no state, or `parked` or `then` has failed.
    pub fn with_state<T, E: From<SnapshotError>>(
        self: &Arc<Self>,
        about: About,
        parked: impl FnOnce() -> Result<(), E>,
        then: impl FnOnce(State) -> Result<T, E>,
    ) -> Result<T, E> {
        let states = self.states()?;
        let mut locked: Vec<_> = states.iter().map(|(_, _, state)| lock(state)).collect();
        let devices = self.devices(&states, &mut locked)?;
        parked()?;
        let state = State {
            vmm_version: env!("CARGO_PKG_VERSION").into(),
            document: about.document,
            vm: self.vm.state().map_err(SnapshotError::from)?,
            vcpus: self.vcpus()?,
            platform: PlatformState {
                serial: lock(&self.platform.serial).state(),
                rtc: lock(&self.platform.rtc).state(),
                ged: lock(&self.platform.ged).pending(),
                watchdog: about.watchdog,
            },
            devices,
        };
        then(state)
    }

    /// Device number or place, name and state of each virtio device.
    fn states(&self) -> Result<Vec<(usize, String, SharedState)>, SnapshotError> {
        match &self.transports {
            Transports::Mmio(all) => Ok(all
                .iter()
                .enumerate()
                .map(|(place, (name, transport))| (place, name.clone(), transport.state().clone()))
                .collect()),
            Transports::Pci(bus, hotplug) => {
                let plugs = hotplug.state().ok_or(SnapshotError::HotplugBusy)?;
                let functions = bus.functions().into_iter();
                Ok(functions
                    .filter_map(|(slot, function)| {
                        let state = function.as_virtio()?.state().clone();
                        let mut names = plugs.names.iter();
                        let name = names.find(|name| name.0 == slot)?.1.clone();
                        Some((slot, name, state))
                    })
                    .collect())
            }
        }
    }

    /// The devices, whose locks are `parked`, in the order of `states`.
    fn devices(
        &self,
        states: &[(usize, String, SharedState)],
        parked: &mut [MutexGuard<'_, VirtioState>],
    ) -> Result<DevicesState, SnapshotError> {
        let places = states.iter().zip(parked);
        match &self.transports {
            Transports::Mmio(all) => {
                let devices = places
                    .zip(all)
                    .map(|(((_, name, _), state), (_, transport))| {
                        Ok(MmioDeviceState {
                            name: name.clone(),
                            transport: transport.save(state)?,
                        })
                    });
                let devices = devices.collect::<Result<_, SaveError>>()?;
                Ok(DevicesState::Mmio(devices))
            }
            Transports::Pci(bus, hotplug) => {
                let plugs = hotplug.state().ok_or(SnapshotError::HotplugBusy)?;
                let functions = bus.functions();
                let mut saved = Vec::with_capacity(states.len());
                for ((slot, name, _), state) in places {
                    let mut functions = functions.iter();
                    let function = functions.find(|function| function.0 == *slot);
                    let function = function.and_then(|function| function.1.as_virtio());
                    let function = function.ok_or(SnapshotError::HotplugBusy)?;
                    saved.push(PciFunctionState {
                        slot: *slot,
                        name: name.clone(),
                        function: function.save(state)?,
                    });
                }
                Ok(DevicesState::Pci(PciState {
                    port_address: bus.port_address(),
                    slot_limit: plugs.limit,
                    hotplug: plugs.registers,
                    functions: saved,
                }))
            }
        }
    }

    /// The vCPUs, each of which tells its own thread.
    fn vcpus(self: &Arc<Self>) -> Result<Vec<VcpuState>, SnapshotError> {
        let (sender, receiver) = mpsc::channel();
        let sender = Mutex::new(sender);
        let subject = self.clone();
        let errand = move |id, vcpu: &VcpuFd| {
            let cpuid = subject.cpuids.get(usize::from(id));
            let cpuid = cpuid.map(Vec::as_slice).unwrap_or_default();
            let state = vcpu_state::save(id, vcpu, cpuid, subject.vm.msrs());
            // Nobody listens any more if it took too long.
            let _ = lock(&sender).send((id, state));
        };
        let all = self.cpuids.len();
        self.gate.send(all, Arc::new(errand), VCPU_PATIENCE);
        let mut states: Vec<_> = (0..all).map(|_| None).collect();
        for (id, state) in receiver.try_iter() {
            if let Some(place) = states.get_mut(usize::from(id)) {
                *place = Some(state?);
            }
        }
        let states = (0..).zip(states);
        states
            .map(|(id, state)| Ok(state.ok_or(VcpuStateError::Late { id })?))
            .collect()
    }
}
