//! One guest, from its configuration to the end of its run.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use devices::bus::Bus;
use devices::pci::hotplug as hotplug_registers;
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use crate::acpi::{self, AcpiError};
use crate::boot::{self, BootError, cmdline};
use crate::clock::StartTime;
use crate::config::VmConfig;
use crate::control::{Control, Targets};
use crate::cpu::cpuid::Place;
use crate::cpu::regs;
use crate::cpu::template::{self, TemplateError};
use crate::device_thread::{self, DeviceThread, EndWatch, ThreadError};
use crate::events::Events;
use crate::exit::ExitReason;
use crate::hotplug::{Connections, Hotplug};
use crate::jail::seccomp::{Seccomp, ThreadKind};
use crate::latch::ExitLatch;
use crate::logger::chain;
use crate::memory::{self, MemoryError};
use crate::metrics::{self, FlushTimer, VcpuMetrics};
use crate::output::Output;
use crate::pci::{self, PciError};
use crate::platform::{self, PlatformError};
use crate::stats::VcpuStats;
use crate::vcpu::{self, Buses, Gate, Setting, VcpuError, VcpuThread};
use crate::virtio::{self, Places, Thread, VirtioError};
use crate::vm::{Vm, VmError};

/// How long the vCPUs have to end after the run has: far more than a device's register access takes.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// How long a reader of the guest's console may take for some of its last words.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(1);

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
    #[error("Cannot use the control socket")]
    Control(#[source] io::Error),
}

impl MachineError {
    /// Whether another configuration would help (rather than another host).
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Boot(error) => !matches!(error, BootError::WriteMemory { .. }),
            Self::Memory(error) => matches!(error, MemoryError::MoreThanHost { .. }),
            Self::Virtio(error) => error.is_configuration(),
            Self::Template(error) => matches!(error, TemplateError::Missing { .. }),
            Self::Vm(error) => matches!(error, VmError::TooManyVcpus { .. }),
            _ => false,
        }
    }
}

/// What is not the guest's configuration but how this process runs it.
#[derive(Debug)]
pub struct Options {
    /// When the start was asked for.
    pub start: StartTime,
    /// The parent's control socket.
    pub control: Option<UnixStream>,
    /// What each thread's system calls are filtered by.
    pub seccomp: Seccomp,
    /// Log the time when the guest says that it has booted.
    pub report_boot_time: bool,
}

type EventLoop = EventManager<Box<dyn MutEventSubscriber>>;

/// A guest that is ready to run.
pub struct Machine {
    // Kept for the whole run; the order of dropping is free, since each vCPU keeps the VM alive in KVM.
    _vm: Arc<Vm>,
    vcpus: Vec<VcpuFd>,
    buses: Arc<Buses>,
    latch: Arc<ExitLatch>,
    events: Arc<Events>,
    event_loop: EventLoop,
    /// With the device's number on PCI, or on MMIO its place among the others.
    device_threads: Vec<(usize, DeviceThread)>,
    hotplug: Option<Arc<Hotplug>>,
    output: Output,
    seccomp: Seccomp,
}

impl Machine {
    /// Builds the guest. Nothing of it runs yet.
    pub fn new(config: &VmConfig, options: Options) -> Result<Self, MachineError> {
        let latch = Arc::new(ExitLatch::new().map_err(MachineError::Event)?);
        let (control, event_socket) = split(options.control).map_err(MachineError::Control)?;
        let events = Arc::new(Events::new(event_socket, options.start));
        let sink = platform::sink(latch.clone(), events.clone(), options.report_boot_time);

        // What needs no KVM comes first: a wrong path is found before anything is built.
        let places = virtio::places(config)?;
        let output = platform::output(&options.seccomp)?;
        let (devices, handles) = virtio::make(config, &output, &events)?;
        let line = cmdline::complete(config, places.mmio())?;
        let memory = Arc::new(memory::allocate(config.memory, config.shares_memory())?);
        let announced = if cmdline::acpi_is_off(&line) {
            &[][..]
        } else {
            places.mmio()
        };
        let rsdp = acpi::write(&memory, config.vcpus.get(), announced, places.pci())?;
        let entry = boot::load(&memory, &config.boot, &line, Some(rsdp))?;
        regs::write_tables(&memory, entry).map_err(MachineError::Descriptors)?;

        let vm = Arc::new(Vm::new(&memory, config.vcpus)?);
        let regions: Vec<_> = devices.iter().filter_map(|made| made.region).collect();
        vm.add_regions(&memory, &regions)?;
        let (mut ports, mut mmio) = (Bus::new(), Bus::new());
        let taken = config.console.as_ref().is_some_and(|console| console.stdio);
        let input = platform::serial_input(taken)?;
        let platform = platform::build(&vm, &memory, &mut ports, &mut mmio, &sink, &output, input)?;
        let mut hotplug = None;
        let workers: Vec<_> = match &places {
            Places::Mmio(places) => virtio::attach_mmio(&vm, &memory, &mut mmio, devices, places)?
                .into_iter()
                .enumerate()
                .map(|(index, (worker, thread))| (index, worker, thread))
                .collect(),
            Places::Pci(layout) => {
                let bus = pci::build(layout, &mut ports, &mut mmio)?;
                let placed = virtio::attach_pci(&vm, &memory, &bus, devices)?;
                let names = placed.iter().map(|at| (at.slot, at.removable.clone()));
                let present = [(pci::HOST_BRIDGE, None)].into_iter().chain(names);
                let connections = Connections {
                    vm: vm.clone(),
                    memory: memory.clone(),
                    bus,
                    ged: platform.ged.clone(),
                    latch: latch.clone(),
                    events: events.clone(),
                };
                let plugs = Hotplug::new(connections, config, present.collect());
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
        let cpuid = template::apply(config.cpu.template, vm.supported_cpuid())?;
        let count = config.vcpus.get();
        let threads = config.cpu.threads_per_core();
        let vcpus = (0..count)
            .map(|id| vcpu::create(&vm, &cpuid, Place { id, count, threads }, entry))
            .collect::<Result<Vec<_>, _>>()?;

        let mut event_loop = EventLoop::new().map_err(MachineError::EventLoop)?;
        event_loop.add_subscriber(Box::new(EndWatch::new(latch.clone())));
        event_loop.add_subscriber(Box::new(platform.serial_input));
        event_loop.add_subscriber(Box::new(platform.watchdog));
        let timer = FlushTimer::new(metrics::process()).map_err(MachineError::Event)?;
        event_loop.add_subscriber(Box::new(timer));
        let mut device_threads = Vec::new();
        for (number, worker, thread) in workers {
            match thread {
                Thread::Shared => drop(event_loop.add_subscriber(Box::new(worker))),
                Thread::Own => {
                    device_threads.push((number, DeviceThread::new(worker, latch.clone())?));
                }
            }
        }
        if let Some(socket) = control {
            event_loop.add_subscriber(Box::new(Control::new(
                socket,
                Targets {
                    ged: platform.ged,
                    generation_id: platform.generation_id,
                    handles,
                    hotplug: hotplug.clone(),
                    latch: latch.clone(),
                    // A kernel before 5.14 has none to offer.
                    vcpus: vcpus
                        .iter()
                        .filter_map(|vcpu| VcpuStats::open(vcpu).ok())
                        .collect(),
                    events: events.clone(),
                },
            )));
        }
        let exits = Arc::<VcpuMetrics>::default();
        metrics::process().add("vcpu", None, exits.clone());
        let buses = Arc::new(Buses {
            ports,
            mmio,
            metrics: exits,
        });
        Ok(Self {
            _vm: vm,
            vcpus,
            buses,
            latch,
            events,
            event_loop,
            device_threads,
            hotplug,
            output,
            seccomp: options.seccomp,
        })
    }

    /// What tells the parent about this guest.
    pub fn events(&self) -> Arc<Events> {
        self.events.clone()
    }

    /// Runs the guest to its end, on this thread (events) and one thread for each vCPU.
    pub fn run(mut self) -> Result<ExitReason, MachineError> {
        vcpu::install_handler().map_err(MachineError::Signal)?;
        let mut devices = Vec::new();
        if let Some(hotplug) = &self.hotplug {
            hotplug
                .start(&self.seccomp)
                .map_err(|error| MachineError::Thread(ThreadError::Spawn(error)))?;
        }
        for (number, thread) in std::mem::take(&mut self.device_threads) {
            let thread = thread.spawn(number, self.seccomp.clone())?;
            match &self.hotplug {
                Some(hotplug) => hotplug.started(number, thread),
                None => devices.push(thread),
            }
        }
        let mut threads = Vec::with_capacity(self.vcpus.len());
        let setting = Setting {
            buses: self.buses.clone(),
            latch: self.latch.clone(),
            gate: Arc::new(Gate::default()),
            seccomp: self.seccomp.clone(),
        };
        // The boot vCPU comes last: when it runs, all others are there to be started.
        let vcpus: Vec<_> = (0u8..).zip(std::mem::take(&mut self.vcpus)).collect();
        for (id, fd) in vcpus.into_iter().rev() {
            let events = (id == 0).then(|| self.events.clone());
            let before = move || {
                if let Some(events) = events {
                    events.running();
                }
            };
            match vcpu::spawn(id, fd, setting.clone(), before) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    // Those that run already must not be left behind.
                    self.latch.set(ExitReason::Error(error.to_string()));
                    end(&threads);
                    return Err(error.into());
                }
            }
        }
        if let Err(error) = self.seccomp.enter(ThreadKind::Event) {
            self.latch.set(ExitReason::Error(chain(&error)));
        }
        while !self.latch.is_set() {
            match self.event_loop.run() {
                Ok(events) => metrics::process().vmm.device_events.add(events as u64),
                Err(error) => self
                    .latch
                    .set(ExitReason::Error(format!("The event loop failed: {error}"))),
            }
        }
        end(&threads);
        if let Some(hotplug) = &self.hotplug {
            devices.extend(hotplug.end());
        }
        device_thread::join(devices);
        self.output.finish(OUTPUT_PATIENCE);
        let unknown = || ExitReason::Error("The run ended without a reason".into());
        Ok(self.latch.reason().cloned().unwrap_or_else(unknown))
    }
}

/// Gets all vCPUs out of the guest and waits for their threads.
fn end(threads: &[VcpuThread]) {
    let mut pause = Duration::from_micros(50);
    let mut waited = Duration::ZERO;
    loop {
        let running: Vec<_> = threads
            .iter()
            .filter(|thread| !thread.is_finished())
            .collect();
        if running.is_empty() {
            return;
        }
        if waited >= END_PATIENCE {
            // One that waits for somebody to read the guest's output, for example. The process ends without it.
            let ids: Vec<_> = running.iter().map(|thread| thread.id()).collect();
            log::warn!("vCPUs {ids:?} do not end, they are abandoned");
            return;
        }
        for thread in running {
            thread.kick();
        }
        thread::sleep(pause);
        waited += pause;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// The control socket's two directions, neither of which blocks.
fn split(socket: Option<UnixStream>) -> io::Result<(Option<UnixStream>, Option<UnixStream>)> {
    match socket {
        Some(socket) => {
            socket.set_nonblocking(true)?;
            let other = socket.try_clone()?;
            Ok((Some(socket), Some(other)))
        }
        None => Ok((None, None)),
    }
}
