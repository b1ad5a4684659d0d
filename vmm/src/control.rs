//! What the VMM's parent asks for on the control socket: JSON lines.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use api::model::{Drive, NetworkInterface};
use devices::legacy::acpi::{Ged, GedEvent};
use devices::legacy::generation_id::GenerationId;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::Deserialize;

use crate::config::{ConfigError, firecracker};
use crate::events;
use crate::exit::ExitReason;
use crate::hotplug::{DeviceId, Hotplug, HotplugError};
use crate::latch::ExitLatch;
use crate::logger::chain;
use crate::metrics;
use crate::stats::VcpuStats;
use crate::virtio::Handles;

/// Most bytes of one line: a drive with a few paths of its backing files.
const MAX_LINE: usize = 16 << 10;
/// Most bytes that are taken at once: other events have their turn in between.
const READ_BYTES: usize = 4 << 10;

/// One line from the parent.
#[derive(Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
enum Action {
    PowerButton,
    Stop,
    Stats,
    Metrics,
    FlushMetrics,
    RenewGenerationId,
    Resize { columns: u16, rows: u16 },
    Balloon { amount_mib: u32 },
    AttachDrive { drive: Box<Drive> },
    AttachNet { interface: Box<NetworkInterface> },
    DetachDrive { drive_id: String },
    DetachNet { iface_id: String },
}

/// What actions act on.
pub struct Targets {
    /// Presses the power button.
    pub ged: Arc<Mutex<Ged>>,
    /// Tells the guest that it is another one now.
    pub generation_id: GenerationId,
    /// What the host can do with virtio devices.
    pub handles: Handles,
    /// Plugs devices in and out, where they are on PCI.
    pub hotplug: Option<Arc<Hotplug>>,
    /// Ends the run.
    pub latch: Arc<ExitLatch>,
    /// Counters to answer with.
    pub vcpus: Vec<VcpuStats>,
    /// Where answers go.
    pub events: Arc<events::Events>,
}

/// Reads actions and carries them out.
pub struct Control {
    socket: UnixStream,
    line: Vec<u8>,
    /// The rest of an overlong line is being skipped.
    skipping: bool,
    targets: Targets,
}

impl Control {
    /// Actions on `targets` come from `socket`, which does not block.
    pub fn new(socket: UnixStream, targets: Targets) -> Self {
        Self {
            socket,
            line: Vec::new(),
            skipping: false,
            targets,
        }
    }

    /// Takes what is there; `false` at the end of the stream.
    fn pump(&mut self) -> bool {
        let mut buffer = [0; READ_BYTES];
        match self.socket.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.take(&buffer[..length]);
                true
            }
            Err(error) => {
                matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                )
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    if !std::mem::take(&mut self.skipping) {
                        self.act(&line);
                    }
                }
                _ if self.skipping => {}
                _ if self.line.len() == MAX_LINE => {
                    log::warn!("A control line of more than {MAX_LINE} bytes is ignored");
                    self.skipping = true;
                    self.line.clear();
                }
                byte => self.line.push(*byte),
            }
        }
    }

    fn act(&self, line: &[u8]) {
        let Targets {
            ged,
            generation_id,
            handles,
            hotplug: _,
            latch,
            vcpus,
            events,
        } = &self.targets;
        match serde_json::from_slice(line) {
            Ok(Action::PowerButton) => {
                let mut ged = ged.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = ged.notify(GedEvent::PowerButton) {
                    log::error!("The power button cannot be pressed: {error}");
                }
            }
            Ok(Action::Stop) => latch.set(ExitReason::Stopped),
            Ok(Action::Stats) => match vcpus.iter().map(VcpuStats::read).collect() {
                Ok(counters) => events.stats(counters),
                Err(error) => log::error!("KVM's counters cannot be read: {error}"),
            },
            Ok(Action::Metrics) => events.metrics(&metrics::process().snapshot()),
            Ok(Action::FlushMetrics) => drop(metrics::process().flush()),
            Ok(Action::RenewGenerationId) => {
                if let Err(error) = generation_id.renew() {
                    log::error!("The guest keeps its generation ID: {}", chain(&error));
                }
            }
            Ok(Action::Resize { columns, rows }) => match &handles.resizer {
                Some(resizer) => {
                    if let Err(error) = resizer.resize(columns, rows) {
                        log::error!("The console cannot be resized: {error}");
                    }
                }
                None => log::warn!("The guest has no virtio console to resize"),
            },
            Ok(Action::Balloon { amount_mib }) => match &handles.inflater {
                Some(inflater) => {
                    if let Err(error) = inflater.set(amount_mib) {
                        log::error!("The balloon keeps its size: {}", chain(&error));
                    }
                }
                None => log::warn!("The guest has no balloon"),
            },
            Ok(Action::AttachDrive { drive }) => self.attach_drive(&drive),
            Ok(Action::AttachNet { interface }) => self.attach_net(&interface),
            Ok(Action::DetachDrive { drive_id }) => self.detach(&DeviceId::Drive(drive_id)),
            Ok(Action::DetachNet { iface_id }) => self.detach(&DeviceId::Net(iface_id)),
            Err(error) => log::warn!("A control line is ignored: {error}"),
        }
    }

    fn attach_drive(&self, drive: &Drive) {
        let id = || DeviceId::Drive(drive.drive_id.clone());
        match (self.hotplug(), firecracker::drive::check(drive)) {
            // How it ends is an event.
            (Ok(hotplug), Ok(drive)) => hotplug.attach_drive(drive, Box::new(drop)),
            (Err(error), _) => self.targets.events.attach_failed(&id(), &error),
            (_, Err(error)) => self.refuse(&id(), error),
        }
    }

    fn attach_net(&self, interface: &NetworkInterface) {
        let id = || DeviceId::Net(interface.iface_id.clone());
        let checked = firecracker::network_interfaces::check(interface);
        match (self.hotplug(), checked) {
            (Ok(hotplug), Ok(net)) => hotplug.attach_net(net, Box::new(drop)),
            (Err(error), _) => self.targets.events.attach_failed(&id(), &error),
            (_, Err(error)) => self.refuse(&id(), error),
        }
    }

    fn refuse(&self, id: &DeviceId, error: ConfigError) {
        let source = Box::new(error);
        let error = HotplugError::Config {
            id: id.clone(),
            source,
        };
        self.targets.events.attach_failed(id, &error);
    }

    fn detach(&self, id: &DeviceId) {
        match self.hotplug() {
            Ok(hotplug) => hotplug.detach(id, Box::new(drop)),
            Err(error) => self.targets.events.detach_failed(id, &error),
        }
    }

    fn hotplug(&self) -> Result<&Arc<Hotplug>, HotplugError> {
        self.targets.hotplug.as_ref().ok_or(HotplugError::NoPci)
    }
}

impl MutEventSubscriber for Control {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.socket, EventSet::IN)) {
            log::error!("The control socket cannot be served: {error}");
        }
    }

    fn process(&mut self, _events: Events, ops: &mut EventOps<'_>) {
        // A parent that is gone takes nothing with it: the guest goes on.
        if !self.pump()
            && let Err(error) = ops.remove(Events::empty(&self.socket))
        {
            log::error!("The control socket cannot be given up: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::StartTime;
    use crate::config::{BalloonConfig, MemorySize};
    use crate::memory::testing::ram;
    use crate::virtio::balloon;
    use devices::bus::MutBusDevice;
    use devices::virtio::device::VirtioDevice;
    use std::io::{BufRead, BufReader, Write};
    use vm_memory::GuestAddress;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    const ID: u64 = 0x1000;

    struct World {
        control: Control,
        parent: UnixStream,
    }

    fn world() -> World {
        let (ours, parent) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let ged = Arc::new(Mutex::new(Ged::new(line)));
        let latch = Arc::new(ExitLatch::new().unwrap());
        let events = Arc::new(events::Events::new(
            Some(ours.try_clone().unwrap()),
            StartTime::new(None, None),
        ));
        World {
            control: Control::new(
                ours,
                Targets {
                    generation_id: GenerationId::new(
                        Arc::new(ram(1)),
                        GuestAddress(ID),
                        ged.clone(),
                    )
                    .unwrap(),
                    ged,
                    handles: Handles::default(),
                    hotplug: None,
                    latch,
                    vcpus: Vec::new(),
                    events,
                },
            ),
            parent,
        }
    }

    fn event_register(world: &World) -> u8 {
        let mut register = [0; 4];
        let ged = &world.control.targets.ged;
        ged.lock().unwrap().read(0, &mut register);
        register[0]
    }

    fn pressed(world: &World) -> bool {
        event_register(world) == GedEvent::PowerButton as u8
    }

    #[test]
    fn the_power_button_reaches_the_guest() {
        let mut world = world();
        world
            .parent
            .write_all(b"{\"action\":\"power-button\"}\n")
            .unwrap();
        assert!(world.control.pump());
        assert!(pressed(&world));
        assert!(!world.control.targets.latch.is_set());
    }

    #[test]
    fn stop_ends_the_run() {
        let mut world = world();
        world.parent.write_all(b"{\"action\":").unwrap();
        world.control.pump();
        assert!(
            !world.control.targets.latch.is_set(),
            "half a line is no action"
        );
        world.parent.write_all(b"\"stop\"}\n").unwrap();
        world.control.pump();
        assert_eq!(
            world.control.targets.latch.reason(),
            Some(&ExitReason::Stopped)
        );
    }

    #[test]
    fn stats_are_answered_with_one_line() {
        let mut world = world();
        world.parent.write_all(b"{\"action\":\"stats\"}\n").unwrap();
        world.control.pump();
        let mut answer = [0; 64];
        let length = world.parent.read(&mut answer).unwrap();
        assert_eq!(&answer[..length], b"{\"event\":\"stats\",\"vcpus\":[]}\n");
    }

    #[test]
    fn metrics_are_answered_with_one_line() {
        let mut world = world();
        let action = b"{\"action\":\"metrics\"}\n";
        world.parent.write_all(action).unwrap();
        world.control.pump();
        let mut line = String::new();
        let mut parent = BufReader::new(&world.parent);
        parent.read_line(&mut line).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(answer["event"], "metrics");
        assert!(answer["metrics"]["block"]["read_count"].is_u64());
    }

    #[test]
    fn another_generation_id_reaches_the_guest() {
        let mut world = world();
        let action = b"{\"action\":\"renew-generation-id\"}\n";
        world.parent.write_all(action).unwrap();
        world.control.pump();
        assert_eq!(event_register(&world), GedEvent::GenerationId as u8);
    }

    #[test]
    fn the_balloon_gets_the_size_that_fits_into_the_guest() {
        let mut world = world();
        let config = BalloonConfig::default();
        let memory = MemorySize::from_mib("m", 64).unwrap();
        let events = &world.control.targets.events;
        let (mut device, inflater) = balloon::make(&config, memory, events).unwrap();
        world.control.targets.handles.inflater = Some(inflater);
        for (amount, expected) in [(64, 64), (65, 64), (3, 3)] {
            let action = format!("{{\"action\":\"balloon\",\"amount_mib\":{amount}}}\n");
            world.parent.write_all(action.as_bytes()).unwrap();
            world.control.pump();
            let _ = device.wake(0).unwrap();
            let mut pages = [0; 4];
            device.read_config(0, &mut pages);
            assert_eq!(u32::from_le_bytes(pages), expected * 256);
        }
    }

    #[test]
    fn nonsense_and_overlong_lines_are_skipped() {
        let mut world = world();
        let mut text = b"nonsense\n{\"action\":\"explode\"}\n".to_vec();
        text.extend(vec![b'x'; 3 * MAX_LINE]);
        text.extend(b"{\"action\":\"stop\"}\n{\"action\":\"power-button\"}\n");
        world.parent.write_all(&text).unwrap();
        for _ in 0..4 * MAX_LINE / READ_BYTES {
            world.control.pump();
        }
        assert!(
            !world.control.targets.latch.is_set(),
            "the end of an overlong line is no action"
        );
        assert!(pressed(&world));
    }

    #[test]
    fn a_parent_that_is_gone_does_not_end_the_run() {
        let mut world = world();
        drop(world.parent);
        assert!(!world.control.pump());
        assert!(!world.control.targets.latch.is_set());
    }
}
