//! The guest's virtio devices: made from the configuration, placed on PCI or MMIO, connected to KVM.

pub mod balloon;
pub mod block;
mod console;
mod fs;
mod handles;
mod listener;
pub mod net;
pub mod pmem;
mod tap;
mod vsock;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use devices::bus::{Bus, BusError};
use devices::pci::{PciBus, SlotError};
use devices::rate_limiter::RateLimiter;
use devices::virtio::device::VirtioDevice;
use devices::virtio::mmio::{self, MmioTransport};
use devices::virtio::net::Backend;
use devices::virtio::pci::{self, DoorbellBinder, VirtioPci};
use devices::virtio::rng::Rng;
use devices::virtio::saved::RestoreError;
use devices::virtio::vhost_user::BackendError;
use devices::virtio::worker::VirtioWorker;

pub use self::handles::{DeviceHandle, DeviceHandles, Handles};
use self::listener::Listener;
pub(crate) use self::listener::reach;
use crate::boot::cmdline::{self, MmioDevice};
use crate::config::{DriveConfig, NetConfig, RateLimiterConfig, VcpuCount, VmConfig};
use crate::events::Events;
use crate::hotplug::DeviceId;
use crate::layout::{LEGACY_IRQS, PCI_WINDOW, VIRTIO_IRQS, VIRTIO_MMIO, VIRTIO_MMIO_STRIDE};
use crate::memory::GuestMemory;
use crate::output::Output;
use crate::pci::{PciLayout, slot_limit};
use crate::snapshot::state::{MmioDeviceState, PciFunctionState};
use crate::vm::{Vm, VmError};
use crate::{metrics, mmds};

/// Why a virtio device cannot be made or placed.
#[derive(Debug, thiserror::Error)]
pub enum VirtioError {
    #[error(
        "{devices} virtio devices on MMIO, permitted are {lines}, one for each interrupt line{hint}: use --enable-pci or \
         remove devices",
        hint = if *.lines < VIRTIO_IRQS.len() { " of a guest without ACPI" } else { "" }
    )]
    TooFewLines { devices: usize, lines: usize },
    #[error("Cannot open {path} for drive \"{id}\"", path = .path.display())]
    OpenDrive {
        id: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "Cannot reach the NBD server of drive \"{id}\" at {path}: start it before the guest",
        path = .path.display()
    )]
    DriveServer {
        id: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("Cannot use {path} for drive \"{id}\"", path = .path.display())]
    UseDrive {
        id: String,
        path: PathBuf,
        #[source]
        source: block::DiskError,
    },
    #[error("Cannot change drive \"{id}\"")]
    ChangeDrive {
        id: String,
        #[source]
        source: devices::virtio::block::control::ControlError,
    },
    #[error("Cannot make the events of drive \"{id}\"")]
    DriveEvents {
        id: String,
        #[source]
        source: io::Error,
    },
    #[error("Cannot open the tap of network interface \"{id}\"")]
    OpenTap {
        id: String,
        #[source]
        source: tap::TapError,
    },
    #[error("Cannot use the tap of network interface \"{id}\"")]
    UseTap {
        id: String,
        #[source]
        source: devices::virtio::net::tap::TapError,
    },
    #[error("Cannot make the end of network interface \"{id}\", which has no tap")]
    NoTap {
        id: String,
        #[source]
        source: io::Error,
    },
    #[error("Cannot serve metadata on network interface \"{id}\"")]
    Metadata {
        id: String,
        #[source]
        source: io::Error,
    },
    #[error("Cannot open the socket of the guest's vsock device")]
    Socket(#[source] listener::SocketError),
    #[error("Cannot make the events of the guest's vsock device")]
    SocketEvents(#[source] io::Error),
    #[error("Cannot map {path} for pmem device \"{id}\"", path = .path.display())]
    Pmem {
        id: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("Cannot make the events of the guest's balloon")]
    Balloon(#[source] io::Error),
    #[error(
        "Cannot reach the program that serves file system \"{tag}\" at {path}: start it before the guest",
        path = .path.display()
    )]
    FsSocket {
        tag: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "Cannot use the program that serves file system \"{tag}\" at {path}",
        path = .path.display()
    )]
    FsBackend {
        tag: String,
        path: PathBuf,
        #[source]
        source: BackendError,
    },
    #[error("Cannot make the console")]
    Console(#[source] io::Error),
    #[error("Cannot serve console port \"{name}\"")]
    PortSocket {
        name: String,
        #[source]
        source: listener::SocketError,
    },
    #[error("Cannot make the timer of a rate limiter")]
    RateLimiter(#[source] io::Error),
    #[error("Cannot make the events of virtio device {index}")]
    Events {
        index: usize,
        #[source]
        source: io::Error,
    },
    #[error("Cannot place virtio device {index}")]
    Bus {
        index: usize,
        #[source]
        source: BusError,
    },
    #[error("Cannot place virtio device {index}")]
    Slot {
        index: usize,
        #[source]
        source: SlotError,
    },
    #[error("Cannot connect virtio device {index}")]
    Connect {
        index: usize,
        #[source]
        source: VmError,
    },
    #[error("The snapshot has no state of the device \"{name}\"")]
    NoState { name: String },
    #[error("The snapshot has states of {found} devices, and its configuration has {expected}")]
    States { found: usize, expected: usize },
    #[error("The device \"{name}\" cannot go on from its state")]
    Restore {
        name: String,
        #[source]
        source: RestoreError,
    },
}

impl VirtioError {
    /// Whether another configuration would help (rather than another host).
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::OpenDrive { .. }
                | Self::DriveServer { .. }
                | Self::UseDrive { .. }
                | Self::Pmem { .. }
                | Self::FsSocket { .. }
                | Self::FsBackend { .. }
                | Self::OpenTap { .. }
                | Self::Socket(_)
                | Self::PortSocket { .. }
                | Self::TooFewLines { .. }
        )
    }
}

/// Device number on PCI of the first virtio device; number 0 is the host bridge.
const FIRST_SLOT: usize = 1;

/// Which thread does a device's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The event thread, with the serial port and the control socket: for devices with little to do that never wait.
    Shared,
    /// One of its own: for devices that move data, so that a slow disk holds up neither a network nor the console.
    Own,
}

/// A device, not yet placed anywhere.
pub struct Made {
    /// What it is called in a snapshot: no other device of the guest is.
    pub name: String,
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// Who does its work.
    pub thread: Thread,
    /// Memory that it brings into the guest's address space.
    pub region: Option<pmem::Region>,
    /// Its name, if it can be removed while the guest runs.
    pub removable: Option<DeviceId>,
    /// What can be done with it, by its name, until somebody keeps that.
    pub handle: Option<(DeviceId, DeviceHandle)>,
}

impl Made {
    fn new(name: impl Into<String>, device: impl VirtioDevice + 'static, thread: Thread) -> Self {
        let device = Box::new(device);
        Self {
            name: name.into(),
            device,
            thread,
            region: None,
            removable: None,
            handle: None,
        }
    }

    fn with_handle(self, id: DeviceId, handle: DeviceHandle) -> Self {
        Self {
            handle: Some((id, handle)),
            ..self
        }
    }

    fn removable(self, id: DeviceId) -> Self {
        let removable = Some(id);
        Self { removable, ..self }
    }
}

/// Makes the disk `drive` of a guest with `vcpus`.
pub fn make_drive(drive: &DriveConfig, vcpus: VcpuCount) -> Result<Made, VirtioError> {
    let (device, handle) = block::make(drive, vcpus)?;
    let id = DeviceId::Drive(drive.id.to_string());
    let handle = DeviceHandle::Drive(Arc::new(Mutex::new(handle)));
    let name = format!("drive/{}", drive.id);
    let made = Made::new(name, device, Thread::Own).with_handle(id.clone(), handle);
    Ok(if drive.is_root {
        made
    } else {
        made.removable(id)
    })
}

/// Makes the network interface `interface`, whose host's end is `backend`.
pub fn make_net(interface: &NetConfig, backend: Box<dyn Backend>) -> Result<Made, VirtioError> {
    let (device, handle) = net::make(interface, backend)?;
    let id = DeviceId::Net(interface.id.clone());
    let made = Made::new(format!("net/{}", interface.id), device, Thread::Own);
    Ok(made
        .with_handle(id.clone(), DeviceHandle::Net(handle))
        .removable(id))
}

/// The device numbers on PCI, as a bitmap, at which a device stays as long as the guest runs: all but drives and network
/// interfaces, which come first, and the drive of the guest's root file system.
fn fixed_slots(config: &VmConfig) -> u32 {
    let drives = config.drives.iter().map(|drive| drive.is_root);
    let kinds = drives.chain(config.net.iter().map(|_| false));
    let kinds = kinds.chain(std::iter::repeat(true));
    (FIRST_SLOT..)
        .zip(kinds.take(config.virtio_devices()))
        .filter(|(_, fixed)| *fixed)
        .fold(0, |slots, (slot, _)| slots | 1 << slot)
}

/// Opens what [`make`] will look for, for who has no paths then.
pub fn open_ahead(config: &VmConfig) -> Result<(), VirtioError> {
    config.drives.iter().try_for_each(block::open_ahead)?;
    config.net.iter().try_for_each(net::open_ahead)?;
    config.pmem.iter().try_for_each(pmem::open_ahead)?;
    config.fs.iter().try_for_each(fs::open_ahead)?;
    if let Some(vsock) = &config.vsock {
        Listener::open_ahead(&vsock.uds_path).map_err(VirtioError::Socket)?;
    }
    let ports = config.console.iter().flat_map(|console| &console.ports);
    for port in ports {
        Listener::open_ahead(&port.path).map_err(|source| VirtioError::PortSocket {
            name: port.name.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Makes the devices of `config`, drives first: the order in which the guest numbers them. A terminal prints to `output`;
/// what a device says by itself goes to `events`.
pub fn make(
    config: &VmConfig,
    output: &Output,
    events: &Arc<Events>,
) -> Result<(Vec<Made>, Handles), VirtioError> {
    let mut devices = Vec::new();
    let mut handles = Handles::default();
    if let Some(config) = &config.mmds {
        mmds::process().configure(config.clone());
    }
    for drive in &config.drives {
        let made = make_drive(drive, config.vcpus)?;
        devices.push(handles.devices.keep(made));
    }
    for interface in &config.net {
        let made = make_net(interface, net::open(interface)?)?;
        devices.push(handles.devices.keep(made));
    }
    if let Some(config) = &config.vsock {
        devices.push(Made::new("vsock", vsock::make(config)?, Thread::Own));
    }
    let mut places = pmem::Places::new(config.memory);
    for pmem in &config.pmem {
        let (device, region) = pmem::make(pmem, &mut places)?;
        devices.push(Made {
            region: Some(region),
            // A flush waits for the medium.
            ..Made::new(format!("pmem/{}", pmem.id), device, Thread::Own)
        });
    }
    for fs in &config.fs {
        devices.push(Made::new(
            format!("fs/{}", fs.tag),
            fs::make(fs)?,
            Thread::Own,
        ));
    }
    if let Some(limits) = config.entropy {
        let rng = Rng::limited(rate_limiter(limits)?);
        metrics::process().watch("entropy", None, &rng);
        devices.push(Made::new("entropy", rng, Thread::Shared));
    }
    if let Some(config) = &config.console {
        let console = console::make(config, output)?;
        handles.resizer = Some(console.resizer());
        devices.push(Made::new("console", console, Thread::Shared));
    }
    if let Some(balloon) = &config.balloon {
        let (device, handle) = balloon::make(balloon, config.memory, events)?;
        handles.balloon = Some(handle);
        // Freeing gigabytes takes the host a while.
        devices.push(Made::new("balloon", device, Thread::Own));
    }
    debug_assert_eq!(devices.len(), config.virtio_devices());
    Ok((devices, handles))
}

fn rate_limiter(limits: RateLimiterConfig) -> Result<RateLimiter, VirtioError> {
    RateLimiter::new(limits.into()).map_err(VirtioError::RateLimiter)
}

/// Where virtio devices are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Places {
    /// At these places; the guest is told of each.
    Mmio(Vec<MmioDevice>),
    /// On this PCI bus, where the guest finds them by itself: in their order, from device number 1 on.
    Pci(PciLayout),
}

impl Places {
    /// The devices that the guest must be told of.
    pub fn mmio(&self) -> &[MmioDevice] {
        match self {
            Self::Mmio(places) => places,
            Self::Pci(_) => &[],
        }
    }

    /// The PCI bus, if there is one.
    pub fn pci(&self) -> Option<&PciLayout> {
        match self {
            Self::Mmio(_) => None,
            Self::Pci(layout) => Some(layout),
        }
    }
}

/// Where the devices of `config` are: known before they exist, for ACPI and the command line.
pub fn places(config: &VmConfig) -> Result<Places, VirtioError> {
    if config.pci {
        let layout = PciLayout::new(
            config.memory,
            slot_limit(1 + config.virtio_devices()),
            fixed_slots(config),
        );
        return Ok(Places::Pci(layout));
    }
    mmio_places(config).map(Places::Mmio)
}

fn mmio_places(config: &VmConfig) -> Result<Vec<MmioDevice>, VirtioError> {
    let devices = config.virtio_devices();
    // Without ACPI a guest knows of no I/O APIC and has only the 16 lines of the PC's first interrupt controller.
    let without_ioapic = cmdline::acpi_is_off(&config.boot.cmdline);
    let lines = VIRTIO_IRQS
        .into_iter()
        .filter(|line| *line < LEGACY_IRQS || !without_ioapic);
    let places: Vec<_> = (VIRTIO_MMIO..)
        .step_by(usize::try_from(VIRTIO_MMIO_STRIDE).unwrap_or(usize::MAX))
        .zip(lines)
        .map(|(address, irq)| MmioDevice {
            address,
            size: VIRTIO_MMIO_STRIDE,
            irq,
        })
        .take(devices)
        .collect();
    if places.len() < devices {
        return Err(VirtioError::TooFewLines {
            devices,
            lines: places.len(),
        });
    }
    Ok(places)
}

/// What is on the PCI bus at one device number, apart from the function itself.
pub struct Placed {
    /// The device number.
    pub slot: usize,
    /// What it is called in a snapshot.
    pub name: String,
    /// Does the device's work.
    pub worker: VirtioWorker,
    /// On which thread.
    pub thread: Thread,
    /// Its name, if it can be removed while the guest runs.
    pub removable: Option<DeviceId>,
}

/// Connects `made` to KVM, as the function that will be at device number `slot`.
pub fn connect_pci(
    vm: &Vm,
    memory: &Arc<GuestMemory>,
    slot: usize,
    made: Made,
) -> io::Result<(VirtioPci, Placed)> {
    // Where firmware would have put it; a guest is free to move it.
    let base = PCI_WINDOW + slot as u64 * pci::BAR_LEN;
    let vectors = vm.interrupt_vectors(pci::vectors(&*made.device));
    let binder = Some(Arc::new(vm.doorbells()) as Arc<dyn DoorbellBinder>);
    let function = VirtioPci::new(made.device, memory.clone(), base, Arc::new(vectors), binder)?;
    let placed = Placed {
        slot,
        name: made.name,
        worker: function.worker()?,
        thread: made.thread,
        removable: made.removable,
    };
    Ok((function, placed))
}

/// Puts `devices` on the PCI bus and returns what does their work. With `saved`, each goes on from its state, at the device
/// number where it was.
pub fn attach_pci(
    vm: &Vm,
    memory: &Arc<GuestMemory>,
    bus: &PciBus,
    devices: Vec<Made>,
    saved: Option<&[PciFunctionState]>,
) -> Result<Vec<Placed>, VirtioError> {
    check_count(saved.map(<[_]>::len), devices.len())?;
    let mut all = Vec::with_capacity(devices.len());
    for (index, (slot, made)) in (FIRST_SLOT..).zip(devices).enumerate() {
        let state = saved.map(|saved| {
            let mut states = saved.iter();
            let found = states.find(|state| state.name == made.name);
            found.ok_or_else(|| VirtioError::NoState {
                name: made.name.clone(),
            })
        });
        let state = state.transpose()?;
        let slot = state.map_or(slot, |state| state.slot);
        let (function, placed) = connect_pci(vm, memory, slot, made)
            .map_err(|source| VirtioError::Events { index, source })?;
        if let Some(state) = state {
            let restored = function.restore(&state.function);
            restored.map_err(|source| VirtioError::Restore {
                name: placed.name.clone(),
                source,
            })?;
        }
        bus.insert(slot, Arc::new(function))
            .map_err(|source| VirtioError::Slot { index, source })?;
        all.push(placed);
    }
    Ok(all)
}

/// Whether there are as many states as devices, if there are any.
fn check_count(found: Option<usize>, expected: usize) -> Result<(), VirtioError> {
    match found {
        Some(found) if found != expected => Err(VirtioError::States { found, expected }),
        _ => Ok(()),
    }
}

/// A device on MMIO.
pub struct Attached {
    /// What it is called in a snapshot.
    pub name: String,
    /// Its registers.
    pub transport: Arc<MmioTransport>,
    /// Does the device's work.
    pub worker: VirtioWorker,
    /// On which thread.
    pub thread: Thread,
}

/// Puts `devices` at `places`. With `saved`, each goes on from its state.
pub fn attach_mmio(
    vm: &Vm,
    memory: &Arc<GuestMemory>,
    bus: &mut Bus,
    devices: Vec<Made>,
    places: &[MmioDevice],
    saved: Option<&[MmioDeviceState]>,
) -> Result<Vec<Attached>, VirtioError> {
    check_count(saved.map(<[_]>::len), devices.len())?;
    let mut all = Vec::with_capacity(devices.len());
    for (index, (made, place)) in devices.into_iter().zip(places).enumerate() {
        let connect = |source| VirtioError::Connect { index, source };
        let line = vm.interrupt_line(place.irq).map_err(connect)?;
        let transport = MmioTransport::new(made.device, memory.clone(), Arc::new(line))
            .map_err(|source| VirtioError::Events { index, source })?;
        for (queue, doorbell) in (0..).zip(transport.doorbells()) {
            vm.watch_write(doorbell, place.address + mmio::QUEUE_NOTIFY, queue)
                .map_err(connect)?;
        }
        let name = made.name;
        match saved.map(|saved| &saved[index]) {
            Some(state) if state.name == name => {
                let restored = transport.restore(&state.transport);
                restored.map_err(|source| VirtioError::Restore {
                    name: name.clone(),
                    source,
                })?;
            }
            Some(_) => return Err(VirtioError::NoState { name }),
            None => {}
        }
        let worker = transport
            .worker()
            .map_err(|source| VirtioError::Events { index, source })?;
        let transport = Arc::new(transport);
        bus.insert(place.address, mmio::LEN, transport.clone())
            .map_err(|source| VirtioError::Bus { index, source })?;
        all.push(Attached {
            name,
            transport,
            worker,
            thread: made.thread,
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MAX_VIRTIO_DEVICES, firecracker};
    use crate::layout::PCI_WINDOW_END;
    use std::path::Path;

    fn config(drives: usize, boot_args: &str) -> VmConfig {
        let drives: Vec<_> = (0..drives)
            .map(|i| {
                format!(r#"{{"drive_id": "d{i}", "is_root_device": false, "path_on_host": "{i}"}}"#)
            })
            .collect();
        let text = format!(
            r#"{{"boot-source": {{"kernel_image_path": "k", "boot_args": "{boot_args}"}}, "drives": [{}]}}"#,
            drives.join(",")
        );
        let document = firecracker::parse(text.as_bytes(), Path::new("t")).unwrap();
        firecracker::guest(&document, false).unwrap()
    }

    #[test]
    fn the_most_devices_have_places_of_their_own_outside_of_ram() {
        let places = mmio_places(&config(VIRTIO_IRQS.len(), "")).unwrap();
        assert_eq!(places.len(), VIRTIO_IRQS.len());
        for pair in places.windows(2) {
            assert!(pair[0].address + mmio::LEN <= pair[1].address);
            assert_ne!(pair[0].irq, pair[1].irq);
        }
        assert!(places[0].address > crate::layout::BOOT_TIMER);
        assert!(places.last().unwrap().address + mmio::LEN < crate::layout::IOAPIC);
    }

    #[test]
    fn without_acpi_only_legacy_lines_are_used() {
        let few = mmio_places(&config(10, "acpi=off")).unwrap();
        assert!(few.iter().all(|place| place.irq < LEGACY_IRQS));
        let error = mmio_places(&config(11, "acpi=off")).unwrap_err();
        assert!(matches!(
            error,
            VirtioError::TooFewLines {
                devices: 11,
                lines: 10
            }
        ));
    }

    #[test]
    fn more_devices_than_interrupt_lines_need_pci() {
        let mut config = config(MAX_VIRTIO_DEVICES, "");
        let text = places(&config).unwrap_err().to_string();
        assert_eq!(
            text,
            "31 virtio devices on MMIO, permitted are 18, one for each interrupt line: use --enable-pci or remove devices"
        );
        config.pci = true;
        assert_eq!(places(&config).unwrap().mmio(), []);
        let end = PCI_WINDOW + (MAX_VIRTIO_DEVICES as u64 + 1) * pci::BAR_LEN;
        assert!(end <= PCI_WINDOW_END);
    }
}
