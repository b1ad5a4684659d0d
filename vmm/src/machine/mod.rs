//! One guest, from its configuration to the end of its run.

mod brake;
mod running;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use devices::bus::Bus;
use devices::legacy::watchdog::{Watchdog, WatchdogState, WatchdogTimer};
use devices::pci::hotplug as hotplug_registers;
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

pub use self::brake::{Brake, Holder, PauseError};
pub use self::running::Running;
use crate::acpi::{self, AcpiError};
use crate::boot::{self, BootError, Entry, cmdline};
use crate::config::VmConfig;
use crate::controller::{Opener, Targets};
use crate::cpu::cpuid::Place;
use crate::cpu::regs;
use crate::cpu::template::{self, TemplateError};
use crate::device_thread::{DeviceThread, ThreadError};
use crate::events::Events;
use crate::exit::ExitReason;
use crate::hotplug::{Connections, Hotplug, Present};
use crate::jail::opened;
use crate::jail::seccomp::Seccomp;
use crate::latch::ExitLatch;
use crate::memory::{self, GuestMemory, MemoryError};
use crate::metrics::{self, FlushTimer, VcpuMetrics};
use crate::output::Output;
use crate::pci::{self, PciError};
use crate::platform::{self, PlatformError};
use crate::snapshot::dirty::Dirty;
use crate::snapshot::lazy::{self, Lazy, LazyError, Mourners};
use crate::snapshot::state::{DevicesState, State};
use crate::snapshot::{self, Platform, Subject, Transports};
use crate::stats::VcpuStats;
use crate::vcpu::{self, Buses, Gate, Setting, VcpuError};
use crate::virtio::{self, Places, Thread, VirtioError};
use crate::vm::{self, Vm, VmError};

/// Why a guest cannot be built.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant describes it and its values"
)]
pub enum MachineError {
    #[error("Cannot provide the guest's memory")]
    Memory(#[from] MemoryError),
    #[error("Cannot use KVM")]
    Vm(#[from] VmError),
    #[error("Cannot boot the guest")]
    Boot(#[from] BootError),
    #[error("Cannot describe the machine to the guest")]
    Acpi(#[from] AcpiError),
    #[error("Cannot put the machine together")]
    Platform(#[from] PlatformError),
    #[error("Cannot give the guest its PCI bus")]
    Pci(#[from] PciError),
    #[error("Cannot give the guest its virtio devices")]
    Virtio(#[from] VirtioError),
    #[error("Cannot give the guest the processor it asks for")]
    Template(#[from] TemplateError),
    #[error("Cannot give the guest its vCPUs")]
    Vcpu(#[from] VcpuError),
    #[error("Cannot write the boot descriptors into guest memory")]
    Descriptors(#[source] vm_memory::GuestMemoryError),
    #[error("Cannot create the event loop")]
    EventLoop(#[source] event_manager::Error),
    #[error(transparent)]
    Thread(#[from] ThreadError),
    #[error("Cannot create an event")]
    Event(#[source] io::Error),
    #[error("Cannot install the signal handler for vCPUs")]
    Signal(#[source] errno::Error),
    #[error(
        "The snapshot is of a guest on a processor with {missing}, which this host lacks: choose another host, or a \
         cpu_template before the guest is started"
    )]
    MissingFeatures { missing: String },
    #[error("The snapshot has states of {found} vCPUs, its configuration has {count}")]
    VcpuStates { found: usize, count: u8 },
    #[error("The snapshot's devices are not where its configuration has them")]
    OtherTransport,
    #[error(transparent)]
    Lazy(#[from] LazyError),
    #[error("Cannot use the control socket")]
    Control(#[source] io::Error),
}

impl MachineError {
    /// Whether another configuration would help (rather than another host).
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Boot(error) => !matches!(error, BootError::WriteMemory { .. }),
            Self::Memory(error) => matches!(
                error,
                MemoryError::MoreThanHost { .. }
                    | MemoryError::Open { .. }
                    | MemoryError::FileLength { .. }
            ),
            Self::Lazy(error) => matches!(error, LazyError::Connect { .. }),
            Self::Virtio(error) => error.is_configuration(),
            Self::Template(error) => matches!(error, TemplateError::Missing { .. }),
            Self::Vm(error) => matches!(error, VmError::TooManyVcpus { .. }),
            _ => false,
        }
    }
}

/// What is not the guest's configuration but how this process runs it.
#[derive(Clone, Debug)]
pub struct Context {
    /// Ends the run.
    pub latch: Arc<ExitLatch>,
    /// What tells the parent.
    pub events: Arc<Events>,
    /// What each thread's system calls are filtered by.
    pub seccomp: Seccomp,
    /// Log the time when the guest says that it has booted.
    pub report_boot_time: bool,
    /// The store takes snapshots while the guest runs.
    pub live: bool,
}

/// The loop of the main thread.
pub type EventLoop = EventManager<Box<dyn MutEventSubscriber>>;

/// A guest that is ready to run.
pub struct Machine {
    // Kept for the whole run; the order of dropping is free, since each vCPU keeps the VM alive in KVM.
    vm: Arc<Vm>,
    vcpus: Vec<VcpuFd>,
    buses: Arc<Buses>,
    context: Context,
    /// What the main thread serves.
    subscribers: Vec<Box<dyn MutEventSubscriber>>,
    /// With the device's number on PCI, or on MMIO its place among the others.
    device_threads: Vec<(usize, DeviceThread)>,
    /// Of the console on standard output, and of the serial port: mostly the same.
    outputs: [Output; 2],
    watchdog: Arc<Mutex<Watchdog>>,
    targets: Targets,
    subject: Arc<Subject>,
    /// For one that begins paused: what its watchdog has left.
    paused: Option<WatchdogState>,
    /// Its memory is served by a program.
    lazy: Option<Lazy>,
}

/// Where a snapshot's memory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemorySource {
    /// In a file.
    File(PathBuf),
    /// A program serves it that listens at this socket.
    Program(PathBuf),
}

/// A snapshot to go on from.
#[derive(Debug)]
pub struct Snapshot {
    /// Its state.
    pub state: State,
    /// Where its memory is.
    pub memory: MemorySource,
    /// Lets the guest's clock go on as much later as it is in the world.
    pub advance_clock: bool,
}

/// How vCPUs begin.
enum Begin<'a> {
    Boot(Entry),
    Resume(&'a Snapshot),
}

/// Memory with a kernel, and where that begins.
fn load(
    config: &VmConfig,
    places: &Places,
    tracked: bool,
) -> Result<(Arc<GuestMemory>, Entry), MachineError> {
    let line = cmdline::complete(config, places.mmio())?;
    let shared = config.shares_memory();
    let memory = Arc::new(memory::allocate(config.memory, shared, tracked)?);
    let announced = if cmdline::acpi_is_off(&line) {
        &[][..]
    } else {
        places.mmio()
    };
    let rsdp = acpi::write(&memory, config.vcpus.get(), announced, places.pci())?;
    let entry = boot::load(&memory, &config.boot, &line, Some(rsdp))?;
    regs::write_tables(&memory, entry).map_err(MachineError::Descriptors)?;
    Ok((memory, entry))
}

/// Memory that is as it was, or becomes so as it is needed.
fn memory_of(
    config: &VmConfig,
    context: &Context,
    source: &MemorySource,
    tracked: bool,
) -> Result<(GuestMemory, Option<Lazy>), MachineError> {
    match source {
        MemorySource::File(path) => {
            let memory = memory::from_file(config.memory, path, tracked)?;
            Ok((memory, None))
        }
        MemorySource::Program(path) => {
            // Nobody shares it: guests whose devices other processes serve cannot be saved.
            let memory = memory::allocate(config.memory, false, tracked)?;
            let mourners = Mourners {
                seccomp: context.seccomp.clone(),
                latch: context.latch.clone(),
                events: context.events.clone(),
            };
            let lazy = lazy::begin(&memory, path, mourners)?;
            Ok((memory, Some(lazy)))
        }
    }
}

/// A vCPU with its CPUID.
type Vcpu = (VcpuFd, Vec<kvm_cpuid_entry2>);

fn make_vcpus(vm: &Vm, config: &VmConfig, begin: &Begin<'_>) -> Result<Vec<Vcpu>, MachineError> {
    let count = config.vcpus.get();
    match begin {
        Begin::Boot(entry) => {
            let cpuid = template::apply(config.cpu.template, vm.supported_cpuid())?;
            let threads = config.cpu.threads_per_core();
            let make = |id| {
                let place = Place { id, count, threads };
                let (vcpu, cpuid) = vcpu::create(vm, &cpuid, place, *entry)?;
                Ok((vcpu, cpuid.as_slice().to_vec()))
            };
            (0..count).map(make).collect()
        }
        Begin::Resume(Snapshot {
            state,
            advance_clock,
            ..
        }) => {
            let found = state.vcpus.len();
            if found != usize::from(count) {
                return Err(MachineError::VcpuStates { found, count });
            }
            let supported = vm.supported_cpuid().as_slice();
            let mut vcpus = Vec::with_capacity(found);
            for (id, state) in (0..).zip(&state.vcpus) {
                if let Some(missing) = snapshot::cpu::missing(&state.cpuid, supported) {
                    return Err(MachineError::MissingFeatures { missing });
                }
                vcpus.push((vcpu::restore(vm, id, state)?, state.cpuid.clone()));
            }
            vm.restore(&state.vm, *advance_clock)?;
            Ok(vcpus)
        }
    }
}

/// Opens what the host has for every guest: for a jail that closes before it is known what runs there.
pub fn open_host_ahead() -> Result<(), MachineError> {
    // A static program has its random numbers from /dev/urandom, which is kept open from the first time on. Where that
    // fails, who needs them says so.
    let _ = getrandom::fill(&mut [0]);
    vm::open_ahead()?;
    memory::open_ahead();
    Ok(platform::open_ahead()?)
}

/// Opens all that `config` names, for a jail that closes before [`Machine::build`]. What is hostile is not looked into.
pub fn open_ahead(config: &VmConfig) -> Result<(), MachineError> {
    open_devices_ahead(config)?;
    Ok(boot::open_ahead(&config.boot)?)
}

/// As [`open_ahead`], for a jail that closes before [`Machine::restore`].
pub fn open_ahead_of_restore(config: &VmConfig, memory: &MemorySource) -> Result<(), MachineError> {
    match memory {
        MemorySource::File(path) => memory::open_file_ahead(path)?,
        MemorySource::Program(path) => lazy::open_ahead(path)?,
    }
    open_devices_ahead(config)
}

fn open_devices_ahead(config: &VmConfig) -> Result<(), MachineError> {
    virtio::open_ahead(config)?;
    if let Some(path) = &config.serial_output {
        platform::open_output_ahead(path)?;
    }
    Ok(())
}

impl Machine {
    /// Builds the guest. Nothing of it runs yet.
    pub fn build(config: &VmConfig, context: &Context) -> Result<Self, MachineError> {
        Self::assemble(config, context, None)
    }

    /// Builds the guest as it was when its `snapshot` was taken. It begins paused.
    pub fn restore(
        config: &VmConfig,
        context: &Context,
        snapshot: &Snapshot,
    ) -> Result<Self, MachineError> {
        Self::assemble(config, context, Some(snapshot))
    }

    fn assemble(
        config: &VmConfig,
        context: &Context,
        snapshot: Option<&Snapshot>,
    ) -> Result<Self, MachineError> {
        let Context {
            latch,
            events,
            seccomp,
            report_boot_time,
            live,
        } = context;
        let tracked = config.track_dirty || *live;
        let sink = platform::sink(latch.clone(), events.clone(), *report_boot_time);

        // What needs no KVM comes first: a wrong path is found before anything is built.
        let places = virtio::places(config)?;
        let output = platform::output(seccomp)?;
        let serial = match &config.serial_output {
            Some(path) => platform::output_to(path, seccomp)?,
            None => output.clone(),
        };
        let (devices, handles) = virtio::make(config, &output, events)?;
        let (memory, begin, lazy) = match snapshot {
            None => {
                let (memory, entry) = load(config, &places, tracked)?;
                (memory, Begin::Boot(entry), None)
            }
            Some(snapshot) => {
                let (memory, lazy) = memory_of(config, context, &snapshot.memory, tracked)?;
                (Arc::new(memory), Begin::Resume(snapshot), lazy)
            }
        };
        let vm = Arc::new(Vm::new(&memory, config.vcpus, config.track_dirty)?);
        let regions: Vec<_> = devices.iter().filter_map(|made| made.region).collect();
        vm.add_regions(&memory, &regions)?;
        // Before all devices: what they interrupt for when they go on must find the processors as they were.
        let (vcpus, cpuids): (Vec<_>, _) = make_vcpus(&vm, config, &begin)?.into_iter().unzip();
        let states = snapshot.map(|snapshot| &snapshot.state);
        let (mut ports, mut mmio) = (Bus::new(), Bus::new());
        let taken = config.console.as_ref().is_some_and(|console| console.stdio);
        let input = platform::serial_input(taken)?;
        let platform = platform::build(&vm, &memory, &mut ports, &mut mmio, &sink, &serial, input)?;
        if let Some(state) = states {
            platform.restore(&state.platform, &serial)?;
        }
        let mut hotplug = None;
        let transports;
        let workers: Vec<_> = match &places {
            Places::Mmio(places) => {
                let saved = match states.map(|state| &state.devices) {
                    Some(DevicesState::Mmio(saved)) => Some(&saved[..]),
                    Some(DevicesState::Pci(_)) => return Err(MachineError::OtherTransport),
                    None => None,
                };
                let attached =
                    virtio::attach_mmio(&vm, &memory, &mut mmio, devices, places, saved)?;
                let all = attached.iter();
                let all = all.map(|at| (at.name.clone(), at.transport.clone()));
                transports = Transports::Mmio(all.collect());
                let workers = attached.into_iter().enumerate();
                workers
                    .map(|(index, at)| (index, at.worker, at.thread))
                    .collect()
            }
            Places::Pci(layout) => {
                let saved = match states.map(|state| &state.devices) {
                    Some(DevicesState::Pci(saved)) => Some(saved),
                    Some(DevicesState::Mmio(_)) => return Err(MachineError::OtherTransport),
                    None => None,
                };
                let bus = pci::build(layout, &mut ports, &mut mmio)?;
                let functions = saved.map(|saved| &saved.functions[..]);
                let placed = virtio::attach_pci(&vm, &memory, &bus, devices, functions)?;
                let names = placed.iter().map(|at| Present {
                    slot: at.slot,
                    name: at.name.clone(),
                    id: at.removable.clone(),
                });
                let bridge = Present {
                    slot: pci::HOST_BRIDGE,
                    name: "bridge".into(),
                    id: None,
                };
                let present = [bridge].into_iter().chain(names);
                let connections = Connections {
                    vm: vm.clone(),
                    memory: memory.clone(),
                    bus: bus.clone(),
                    ged: platform.ged.clone(),
                    latch: latch.clone(),
                    events: events.clone(),
                    handles: handles.devices.clone(),
                };
                let plugs = Hotplug::new(connections, config, present.collect());
                if let Some(saved) = saved {
                    bus.set_port_address(saved.port_address);
                    plugs.restore(saved.slot_limit, &saved.hotplug);
                }
                transports = Transports::Pci(bus, plugs.clone());
                let registers = plugs.registers();
                ports
                    .insert(acpi::HOTPLUG_PORT.into(), hotplug_registers::LEN, registers)
                    .map_err(PciError::Bus)?;
                hotplug = Some(plugs);
                placed
                    .into_iter()
                    .map(|at| (at.slot, at.worker, at.thread))
                    .collect()
            }
        };
        let mut subscribers: Vec<Box<dyn MutEventSubscriber>> = vec![
            Box::new(platform.serial_input),
            Box::new(WatchdogTimer::new(platform.watchdog.clone())),
            Box::new(FlushTimer::new(metrics::process()).map_err(MachineError::Event)?),
        ];
        let mut device_threads = Vec::new();
        for (number, worker, thread) in workers {
            match thread {
                Thread::Shared => subscribers.push(Box::new(worker)),
                Thread::Own => {
                    device_threads.push((number, DeviceThread::new(worker, latch.clone())?));
                }
            }
        }
        let subject = Arc::new(Subject {
            vm: vm.clone(),
            memory,
            gate: Arc::new(Gate::default()),
            cpuids,
            standing: Mutex::new(()),
            // What nobody has noted is not known.
            dirty: Dirty::new(snapshot.is_some() && config.track_dirty, config.track_dirty),
            platform: Platform {
                serial: platform.serial,
                rtc: platform.rtc,
                ged: platform.ged.clone(),
            },
            transports,
        });
        let targets = Targets {
            ged: platform.ged,
            generation_id: platform.generation_id,
            handles,
            hotplug,
            latch: latch.clone(),
            // A kernel before 5.14 has none to offer.
            vcpus: vcpus
                .iter()
                .filter_map(|vcpu| VcpuStats::open(vcpu).ok())
                .collect(),
            events: events.clone(),
        };
        let exits = Arc::<VcpuMetrics>::default();
        metrics::process().add("vcpu", None, exits.clone());
        // What was opened for nothing must not stay.
        opened::forget();
        Ok(Self {
            vm,
            vcpus,
            buses: Arc::new(Buses {
                ports,
                mmio,
                metrics: exits,
            }),
            context: context.clone(),
            subscribers,
            device_threads,
            outputs: [output, serial],
            watchdog: platform.watchdog,
            targets,
            subject,
            paused: states.map(|state| state.platform.watchdog),
            lazy,
        })
    }

    /// Lets the guest run, on one thread for each vCPU, one for each device that moves data, and `event_loop`.
    pub fn start(self, event_loop: &mut EventLoop) -> Result<Running, MachineError> {
        let Self {
            vm,
            vcpus,
            buses,
            context,
            subscribers,
            device_threads,
            outputs,
            watchdog,
            targets,
            subject,
            paused,
            lazy,
        } = self;
        let Context {
            latch,
            events,
            seccomp,
            ..
        } = context;
        vcpu::install_handler().map_err(MachineError::Signal)?;
        if let Some(lazy) = lazy {
            lazy.keep();
        }
        for subscriber in subscribers {
            event_loop.add_subscriber(subscriber);
        }
        let hotplug = &targets.hotplug;
        if let Some(hotplug) = hotplug {
            hotplug
                .start(&seccomp)
                .map_err(|error| MachineError::Thread(ThreadError::Spawn(error)))?;
        }
        let mut devices = Vec::new();
        for (number, thread) in device_threads {
            let thread = thread.spawn(number, seccomp.clone())?;
            match hotplug {
                Some(hotplug) => hotplug.started(number, thread),
                None => devices.push(thread),
            }
        }
        let opener = Opener::start(seccomp.clone());
        let opener = opener.map_err(|error| MachineError::Thread(ThreadError::Spawn(error)))?;
        let gate = subject.gate.clone();
        if paused.is_some() {
            gate.close();
        }
        let setting = Setting {
            buses,
            latch: latch.clone(),
            gate: gate.clone(),
            seccomp,
        };
        let mut threads = Vec::with_capacity(vcpus.len());
        // The boot vCPU comes last: when it runs, all others are there to be started.
        let vcpus: Vec<_> = (0u8..).zip(vcpus).collect();
        for (id, fd) in vcpus.into_iter().rev() {
            let events = (id == 0).then(|| events.clone());
            let before = move || {
                if let Some(events) = events {
                    events.running();
                }
            };
            match vcpu::spawn(id, fd, setting.clone(), before) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    // Those that run already must not be left behind.
                    latch.set(ExitReason::Error(error.to_string()));
                    running::end(&threads);
                    return Err(error.into());
                }
            }
        }
        let brake = Brake::new(gate, latch, watchdog, threads, paused);
        Ok(Running {
            _vm: vm,
            brake: Arc::new(brake),
            devices,
            outputs,
            subject,
            opener,
            targets,
            successors: Vec::new(),
        })
    }
}
