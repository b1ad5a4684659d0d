//! On this machine's KVM, with the test as the guest: it does by the buses what a guest's vCPU would.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread::sleep;

use devices::bus::{Bus, BusDevice};
use devices::legacy::acpi::GED_LEN;
use devices::pci::hotplug;
use tempfile::NamedTempFile;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::clock::StartTime;
use crate::config::{RateLimiterConfig, firecracker};
use crate::memory;
use crate::pci::{self, PciLayout, slot_limit};

const REGISTERS: u64 = 0x620;
const GED: u64 = 0x604;
/// Slots of the machine below: the host bridge, a root drive, a drive, an entropy device.
const PRESENT: usize = 4;

struct World {
    hotplug: Arc<Hotplug>,
    jobs: Receiver<Job>,
    ports: Bus,
    mmio: Bus,
    parent: BufReader<UnixStream>,
    _images: Vec<NamedTempFile>,
}

/// Whether there is a KVM. Without one the test fails, unless the user knows.
fn have_kvm() -> bool {
    if Path::new("/dev/kvm").exists() {
        return true;
    }
    let known = std::env::var("DARUMA_NO_KVM");
    assert_eq!(known.as_deref(), Ok("1"), "/dev/kvm does not exist");
    eprintln!("skipped: there is no /dev/kvm");
    false
}

fn image() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    file
}

fn drive(id: &str, image: &NamedTempFile) -> DriveConfig {
    let text = format!(
        r#"{{"drive_id": "{id}", "is_root_device": false, "path_on_host": "{}"}}"#,
        image.path().display()
    );
    firecracker::drive::check(&serde_json::from_str(&text).unwrap()).unwrap()
}

fn world() -> World {
    world_with(Vec::new())
}

/// With these network interfaces, which come behind the drives, and before the entropy device.
fn world_with(nets: Vec<NetConfig>) -> World {
    let present = PRESENT + nets.len();
    let images = vec![image(), image()];
    let text = format!(
        r#"{{"boot-source": {{"kernel_image_path": "k"}}, "machine-config": {{"vcpu_count": 1, "mem_size_mib": 2}},
            "entropy": {{}}, "drives": [
            {{"drive_id": "root", "is_root_device": true, "path_on_host": "{}"}},
            {{"drive_id": "data", "is_root_device": false, "path_on_host": "{}"}}]}}"#,
        images[0].path().display(),
        images[1].path().display()
    );
    let document = firecracker::parse(text.as_bytes(), Path::new("t")).unwrap();
    let mut config = firecracker::guest(&document, true).unwrap();
    config.net = nets;
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let events = Arc::new(Events::new(Some(theirs), StartTime::new(None, None)));
    let memory = Arc::new(memory::allocate(config.memory, false, false).unwrap());
    let vm = Arc::new(Vm::new(&memory, config.vcpus, false).unwrap());
    let (mut ports, mut mmio) = (Bus::new(), Bus::new());
    let layout = PciLayout::new(
        config.memory,
        slot_limit(present),
        0b10 | 1 << (present - 1),
    );
    let bus = pci::build(&layout, &mut ports, &mut mmio).unwrap();
    let output = crate::platform::output(&Seccomp::off()).unwrap();
    let (made, handles) = virtio::make(&config, &output, &events).unwrap();
    let placed = virtio::attach_pci(&vm, &memory, &bus, made, None).unwrap();
    let ged = Arc::new(Mutex::new(Ged::new(Arc::new(
        EventFd::new(EFD_NONBLOCK).unwrap(),
    ))));
    ports.insert(GED, GED_LEN, ged.clone()).unwrap();
    let latch = Arc::new(ExitLatch::new().unwrap());
    let connections = Connections {
        vm,
        memory,
        bus,
        ged,
        latch,
        events,
        handles: handles.devices,
    };
    let names = placed.iter().map(|at| Present {
        slot: at.slot,
        name: at.name.clone(),
        id: at.removable.clone(),
    });
    let bridge = Present {
        slot: 0,
        name: "bridge".into(),
        id: None,
    };
    let present: Vec<_> = [bridge].into_iter().chain(names).collect();
    let hotplug = Hotplug::new(connections, &config, present);
    let jobs = lock(&hotplug.receiver).take().unwrap();
    for at in placed
        .into_iter()
        .filter(|at| at.thread == virtio::Thread::Own)
    {
        let latch = hotplug.connections.latch.clone();
        let thread = DeviceThread::new(at.worker, latch).unwrap();
        hotplug.started(at.slot, thread.spawn(at.slot, Seccomp::off()).unwrap());
    }
    let registers = hotplug.registers();
    ports.insert(REGISTERS, hotplug::LEN, registers).unwrap();
    World {
        hotplug,
        jobs,
        ports,
        mmio,
        parent: BufReader::new(ours),
        _images: images,
    }
}

impl World {
    fn register(&self, offset: u64) -> u32 {
        let mut value = [0; 4];
        self.ports.read(REGISTERS + offset, &mut value);
        u32::from_le_bytes(value)
    }

    fn write(&self, offset: u64, value: u32) {
        self.ports.write(REGISTERS + offset, &value.to_le_bytes());
    }

    /// The generic event device's register, which reading clears.
    fn events(&self) -> u32 {
        let mut value = [0; 4];
        self.ports.read(GED, &mut value);
        u32::from_le_bytes(value)
    }

    fn config(&self, slot: usize, register: u64) -> u32 {
        let mut value = [0; 4];
        let address = crate::layout::PCI_ECAM + ((slot as u64) << 15) + register;
        self.mmio.read(address, &mut value);
        u32::from_le_bytes(value)
    }

    /// As a driver: switches the memory on, which binds the doorbells, and one vector, which gets a route.
    fn drive(&self, slot: usize) {
        let ecam = crate::layout::PCI_ECAM + ((slot as u64) << 15);
        let bar = u64::from(self.config(slot, 0x10) & !0xf);
        self.mmio.write(ecam + 4, &[2, 0]);
        self.mmio
            .write(bar + 0x3000, &0xfee0_0000_u64.to_le_bytes());
        self.mmio.write(bar + 0x3008, &0x41_u64.to_le_bytes());
        self.mmio.write(ecam + 0x86, &0x8000_u16.to_le_bytes());
    }

    /// What the hot-plug thread does.
    fn step(&self) {
        let mut jobs: Vec<_> = self.jobs.try_iter().map(Some).collect();
        jobs.push(None);
        for job in jobs {
            self.hotplug.step(job, &Seccomp::off());
        }
    }

    fn attach(&self, drive: DriveConfig) -> Result<(), HotplugError> {
        let (sender, answer) = mpsc::channel();
        let reply = move |result| drop(sender.send(result));
        self.hotplug.attach_drive(drive, Box::new(reply));
        self.wait(&answer)
    }

    fn detach(&self, id: &DeviceId) -> Receiver<Result<(), HotplugError>> {
        let (sender, receiver) = mpsc::channel();
        let reply = move |result| drop(sender.send(result));
        self.hotplug.detach(id, Box::new(reply));
        receiver
    }

    /// What the hot-plug thread does, until there is an answer.
    fn wait(&self, answer: &Receiver<Result<(), HotplugError>>) -> Result<(), HotplugError> {
        loop {
            self.step();
            match answer.try_recv() {
                Ok(result) => return result,
                Err(_) => sleep(Duration::from_millis(1)),
            }
        }
    }

    fn event(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.parent.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

fn data() -> DeviceId {
    DeviceId::Drive("data".into())
}

#[test]
fn a_drive_comes_and_goes_and_both_sides_are_told() {
    if !have_kvm() {
        return;
    }
    let (mut world, image) = (world(), image());
    world.attach(drive("new", &image)).unwrap();
    assert_eq!(world.events(), GedEvent::PciSlots as u32);
    assert_eq!(world.register(hotplug::UP), 1 << PRESENT);
    world.write(hotplug::UP, u32::MAX);
    assert_eq!(world.config(PRESENT, 0), 0x1042_1af4);
    world.drive(PRESENT);
    let event = world.event();
    assert_eq!(
        (&event["event"], &event["id"]),
        (&"attached".into(), &"new".into())
    );
    assert_eq!(event["slot"], PRESENT);

    let answer = world.detach(&DeviceId::Drive("new".into()));
    assert_eq!(world.events(), GedEvent::PciSlots as u32);
    assert_eq!(world.register(hotplug::DOWN), 1 << PRESENT);
    world.step();
    assert!(answer.try_recv().is_err(), "the guest has it still");
    world.write(hotplug::DOWN, 1 << PRESENT);
    world.write(hotplug::EJECT, 1 << PRESENT);
    assert_eq!(world.config(PRESENT, 0), u32::MAX, "gone at once");
    world.wait(&answer).unwrap();
    let event = world.event();
    assert_eq!(
        (&event["event"], &event["requested"]),
        (&"detached".into(), &true.into())
    );
    // Its name, its place and the lock of its image are free.
    world.attach(drive("new", &image)).unwrap();
    assert_eq!(world.register(hotplug::UP), 1 << PRESENT);
}

#[test]
fn a_guest_may_let_go_of_what_nobody_asked_for() {
    if !have_kvm() {
        return;
    }
    let mut world = world();
    world.drive(2);
    // Of the bridge, the root drive and the entropy device it may not.
    assert_eq!(world.register(hotplug::EJECT), 1 << 2);
    world.write(hotplug::EJECT, u32::MAX);
    while world.hotplug.config().drives.len() == 2 {
        world.step();
    }
    let event = world.event();
    assert_eq!(
        (&event["id"], &event["requested"]),
        (&"data".into(), &false.into())
    );
    for (slot, there) in [(0, true), (1, true), (2, false), (3, true)] {
        assert_eq!(world.config(slot, 0) != u32::MAX, there, "{slot}");
    }
    let error = world.wait(&world.detach(&data())).unwrap_err();
    assert_eq!(error.to_string(), r#"There is no drive "data""#);
}

#[test]
fn a_guest_that_does_not_let_go_keeps_the_device() {
    if !have_kvm() {
        return;
    }
    let mut world = world();
    lock(&world.hotplug.inner).patience = Duration::ZERO;
    let error = world.wait(&world.detach(&data())).unwrap_err();
    assert!(matches!(error, HotplugError::TimedOut { .. }), "{error}");
    assert_eq!(world.event()["event"], "detach-failed");
    assert_eq!(
        world.register(hotplug::DOWN),
        0,
        "it is not asked any longer"
    );
    assert_ne!(world.config(2, 0), u32::MAX);
    // It may change its mind, and the host may ask again.
    lock(&world.hotplug.inner).patience = PATIENCE;
    let answer = world.detach(&data());
    let twice = world.wait(&world.detach(&data())).unwrap_err();
    assert!(
        matches!(twice, HotplugError::AlreadyAsked { .. }),
        "{twice}"
    );
    world.write(hotplug::EJECT, 1 << 2);
    world.wait(&answer).unwrap();
}

#[test]
fn a_guest_that_has_not_listened_is_reminded() {
    if !have_kvm() {
        return;
    }
    let (world, image) = (world(), image());
    world.attach(drive("new", &image)).unwrap();
    for _ in 0..3 {
        assert_eq!(world.events(), GedEvent::PciSlots as u32);
        world.step();
    }
    world.events();
    world.write(hotplug::UP, u32::MAX);
    world.step();
    assert_eq!(world.events(), 0, "it knows");
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing_behind() {
    if !have_kvm() {
        return;
    }
    let (world, image) = (world(), image());
    let before = lock(&world.hotplug.inner).config.clone();
    let attach = |drive| world.attach(drive).unwrap_err();
    let error = attach(drive("data", &image));
    assert!(matches!(error, HotplugError::Config { .. }), "{error}");
    let mut root = drive("new", &image);
    root.is_root = true;
    assert!(matches!(attach(root), HotplugError::RootDevice { .. }));
    let mut missing = drive("new", &image);
    missing.path = "/nonexistent".into();
    let error = attach(missing);
    assert!(
        matches!(error, HotplugError::Make { .. }) && error.is_request(),
        "{error}"
    );
    let root = DeviceId::Drive("root".into());
    let error = world.wait(&world.detach(&root)).unwrap_err();
    assert!(matches!(error, HotplugError::RootInUse { .. }), "{error}");
    let entropy = world.wait(&world.detach(&DeviceId::Net("entropy".into())));
    assert!(matches!(entropy, Err(HotplugError::Unknown { .. })));
    assert_eq!(
        world.register(hotplug::UP) | world.register(hotplug::DOWN),
        0
    );
    assert_eq!(world.hotplug.config(), before);
}

#[test]
fn a_full_bus_takes_nothing_more_until_something_has_gone() {
    if !have_kvm() {
        return;
    }
    let (world, last) = (world(), slot_limit(PRESENT));
    let images: Vec<_> = (PRESENT..=last).map(|_| image()).collect();
    for (slot, image) in (PRESENT..last).zip(&images) {
        let new = drive(&format!("d{slot}"), image);
        world.attach(new).unwrap();
        world.drive(slot);
    }
    let one_more = || drive("more", images.last().unwrap());
    let error = world.attach(one_more()).unwrap_err();
    assert!(matches!(error, HotplugError::NoFreeSlot { .. }), "{error}");
    world.write(hotplug::EJECT, 1 << (last - 1));
    world
        .wait(&world.detach(&DeviceId::Drive(format!("d{}", last - 1))))
        .unwrap();
    world.attach(one_more()).unwrap();
    assert_ne!(world.config(last - 1, 0), u32::MAX);
}

#[test]
fn the_end_of_the_run_ends_every_thread_and_every_wait() {
    if !have_kvm() {
        return;
    }
    let (world, image) = (world(), image());
    world.attach(drive("new", &image)).unwrap();
    let answer = world.detach(&data());
    let end = crate::exit::ExitReason::PowerOff;
    world.hotplug.connections.latch.set(end);
    let threads = world.hotplug.end();
    assert_eq!(threads.len(), 3);
    crate::device_thread::join(threads);
    let error = answer.recv().unwrap().unwrap_err();
    assert!(matches!(error, HotplugError::Ended { .. }), "{error}");
    let late = world.attach(drive("late", &image));
    assert!(matches!(late, Err(HotplugError::Ended { .. })));
}

#[test]
fn a_device_in_use_by_a_vcpu_leaves_when_that_is_done() {
    if !have_kvm() {
        return;
    }
    let world = world();
    world.drive(2);
    let bus = &world.hotplug.connections.bus;
    // A vCPU in the middle of an access has a clone, as the one that is taken and put back here.
    let function = bus.remove(2).unwrap();
    bus.insert(2, function.clone()).unwrap();
    let answer = world.detach(&data());
    world.write(hotplug::EJECT, 1 << 2);
    for _ in 0..5 {
        world.step();
    }
    assert!(answer.try_recv().is_err());
    assert!(
        lock(&world.hotplug.inner).slots.places[2].is_some(),
        "its place is not free yet"
    );
    drop(function);
    world.wait(&answer).unwrap();
}

/// The registers are what a guest sees of it: any access from any vCPU at any time is harmless.
#[test]
fn vcpus_that_write_junk_meet_a_host_that_plugs() {
    if !have_kvm() {
        return;
    }
    let (world, image) = (world(), image());
    let registers: Arc<dyn BusDevice> = world.hotplug.registers();
    std::thread::scope(|scope| {
        let junk: Vec<_> = (1..3_u32)
            .map(|seed| {
                let registers = registers.clone();
                scope.spawn(move || {
                    let mut state = seed;
                    for _ in 0..20_000 {
                        // xorshift32.
                        state ^= state << 13;
                        state ^= state >> 17;
                        state ^= state << 5;
                        registers.write(u64::from(state % 12), &state.to_le_bytes());
                        registers.read(u64::from(state % 12), &mut [0; 4]);
                    }
                })
            })
            .collect();
        while junk.iter().any(|thread| !thread.is_finished()) {
            // Refused while the last one is still on its way out.
            let _ = world.attach(drive("new", &image));
            let _ = world.detach(&DeviceId::Drive("new".into()));
            world.step();
        }
    });
    world.write(hotplug::EJECT, u32::MAX);
    while lock(&world.hotplug.inner).slots.any_leaving() || world.hotplug.config().drives.len() > 1
    {
        world.step();
    }
    assert_eq!(world.register(hotplug::EJECT), 0);
    world.attach(drive("new", &image)).unwrap();
}

fn net(mac: &str) -> NetConfig {
    NetConfig {
        id: "eth0".into(),
        tap: TapSource::Unplugged,
        mac: Some(mac.parse().unwrap()),
        mtu: None,
        rx_rate_limiter: RateLimiterConfig::default(),
        tx_rate_limiter: RateLimiterConfig::default(),
    }
}

const OLD: &str = "02:00:00:00:00:01";
const NEW: &str = "02:00:00:00:00:02";

fn eth0() -> DeviceId {
    DeviceId::Net("eth0".into())
}

impl World {
    /// Has the guest's interface replaced.
    fn replace(&self) -> Receiver<Result<(), HotplugError>> {
        let (sender, receiver) = mpsc::channel();
        let reply = move |result| drop(sender.send(result));
        let new = net(NEW);
        let end = virtio::net::open(&new).unwrap();
        self.hotplug
            .replace_net(Successor { net: new, end }, Box::new(reply));
        receiver
    }

    /// The address of the interface at `slot`, as a driver reads it.
    fn mac(&self, slot: usize) -> Vec<u8> {
        let mut mac = [0; 6];
        let bar = u64::from(self.config(slot, 0x10) & !0xf);
        self.mmio.read(bar + 0x2000, &mut mac);
        mac.to_vec()
    }
}

#[test]
fn an_interface_takes_the_place_of_another_when_the_guest_has_let_go_of_that() {
    if !have_kvm() {
        return;
    }
    let mut world = world_with(vec![net(OLD)]);
    world.drive(3);
    assert_eq!(world.mac(3), [2, 0, 0, 0, 0, 1]);
    // A lower device number is free: the guest knows the interface by its own.
    world.write(hotplug::EJECT, 1 << 2);
    while world.hotplug.config().drives.len() == 2 {
        world.step();
    }
    assert_eq!(world.event()["id"], "data");
    let answer = world.replace();
    assert_eq!(world.register(hotplug::DOWN), 1 << 3);
    assert!(world.hotplug.state().is_none(), "no snapshot in between");
    world.write(hotplug::DOWN, 1 << 3);
    world.write(hotplug::EJECT, 1 << 3);
    assert_eq!(world.config(3, 0), u32::MAX);
    world.wait(&answer).unwrap();
    assert_eq!(world.register(hotplug::UP), 1 << 3);
    world.drive(3);
    assert_eq!(world.mac(3), [2, 0, 0, 0, 0, 2]);
    for (name, slot) in [("detached", None), ("attached", Some(3))] {
        let event = world.event();
        assert_eq!(
            (&event["event"], &event["id"]),
            (&name.into(), &"eth0".into())
        );
        assert_eq!(event["slot"].as_u64(), slot, "{event}");
    }
    assert!(world.hotplug.state().is_some());
    assert_eq!(world.hotplug.config().net, [net(NEW)]);
}

#[test]
fn a_guest_that_lets_go_late_gets_its_interface_late() {
    if !have_kvm() {
        return;
    }
    let mut world = world_with(vec![net(OLD)]);
    lock(&world.hotplug.inner).patience = Duration::ZERO;
    let answer = world.replace();
    world.step();
    assert_eq!(world.event()["event"], "detach-failed");
    assert!(world.hotplug.state().is_some(), "it can be saved as it is");
    for _ in 0..3 {
        world.step();
    }
    assert!(answer.try_recv().is_err());
    assert_eq!(world.hotplug.config().net, [net(OLD)]);
    world.write(hotplug::EJECT, 1 << 3);
    world.wait(&answer).unwrap();
    assert_eq!(world.event()["requested"], false);
    assert_eq!(world.event()["event"], "attached");
    assert_eq!(world.hotplug.config().net, [net(NEW)]);
}

#[test]
fn who_asks_for_an_interface_back_wants_none_in_its_place() {
    if !have_kvm() {
        return;
    }
    let world = world_with(vec![net(OLD)]);
    lock(&world.hotplug.inner).patience = Duration::ZERO;
    let _never = world.replace();
    world.step();
    lock(&world.hotplug.inner).patience = PATIENCE;
    let answer = world.detach(&eth0());
    world.write(hotplug::EJECT, 1 << 3);
    world.wait(&answer).unwrap();
    for _ in 0..3 {
        world.step();
    }
    assert_eq!(world.hotplug.config().net, []);
    assert_eq!(world.register(hotplug::UP), 0);
}

#[test]
fn the_end_of_the_run_is_told_to_who_waits_for_an_interface() {
    if !have_kvm() {
        return;
    }
    let world = world_with(vec![net(OLD)]);
    let answer = world.replace();
    world
        .hotplug
        .connections
        .latch
        .set(crate::exit::ExitReason::PowerOff);
    crate::device_thread::join(world.hotplug.end());
    let error = answer.recv().unwrap().unwrap_err();
    assert!(matches!(error, HotplugError::Ended { .. }), "{error}");
    let late = world.wait(&world.replace());
    assert!(matches!(late, Err(HotplugError::Ended { .. })));
}
