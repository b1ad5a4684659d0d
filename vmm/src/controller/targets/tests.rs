use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;

use devices::bus::MutBusDevice;
use devices::virtio::device::VirtioDevice;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::clock::StartTime;
use crate::config::{BalloonConfig, MemorySize};
use crate::memory::testing::ram;
use crate::virtio::balloon;

const ID: u64 = 0x1000;

struct World {
    targets: Targets,
    parent: UnixStream,
}

fn world() -> World {
    let (ours, parent) = UnixStream::pair().unwrap();
    let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let ged = Arc::new(Mutex::new(Ged::new(line)));
    let memory = Arc::new(ram(1));
    let targets = Targets {
        generation_id: GenerationId::new(memory, GuestAddress(ID), ged.clone()).unwrap(),
        ged,
        handles: Handles::default(),
        hotplug: None,
        latch: Arc::new(ExitLatch::new().unwrap()),
        vcpus: Vec::new(),
        events: Arc::new(Events::new(Some(ours), StartTime::new(None, None))),
    };
    World { targets, parent }
}

fn event_register(world: &World) -> u8 {
    let mut register = [0; 4];
    world.targets.ged.lock().unwrap().read(0, &mut register);
    register[0]
}

#[test]
fn the_power_button_reaches_the_guest() {
    let world = world();
    world.targets.act(&Action::PowerButton);
    assert_eq!(event_register(&world), GedEvent::PowerButton as u8);
    assert!(!world.targets.latch.is_set());
}

#[test]
fn stop_ends_the_run() {
    let world = world();
    world.targets.act(&Action::Stop);
    assert_eq!(world.targets.latch.reason(), Some(&ExitReason::Stopped));
}

#[test]
fn stats_are_answered_with_one_line() {
    let mut world = world();
    world.targets.act(&Action::Stats);
    let mut answer = [0; 64];
    let length = world.parent.read(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"{\"event\":\"stats\",\"vcpus\":[]}\n");
}

#[test]
fn another_generation_id_reaches_the_guest() {
    let world = world();
    world.targets.act(&Action::RenewGenerationId);
    assert_eq!(event_register(&world), GedEvent::GenerationId as u8);
}

#[test]
fn the_balloon_gets_the_size_that_fits_into_the_guest() {
    let mut world = world();
    let config = BalloonConfig::default();
    let memory = MemorySize::from_mib("m", 64).unwrap();
    let (mut device, handle) = balloon::make(&config, memory, &world.targets.events).unwrap();
    world.targets.handles.balloon = Some(handle);
    for (amount_mib, expected) in [(64, 64), (65, 64), (3, 3)] {
        world.targets.act(&Action::Balloon { amount_mib });
        let _ = device.wake(0).unwrap();
        let mut pages = [0; 4];
        device.read_config(0, &mut pages);
        assert_eq!(u32::from_le_bytes(pages), expected * 256);
    }
}

#[test]
fn metrics_are_answered_with_one_line() {
    let world = world();
    world.targets.act(&Action::Metrics);
    let mut line = String::new();
    BufReader::new(&world.parent).read_line(&mut line).unwrap();
    let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(answer["event"], "metrics");
    assert!(answer["metrics"]["block"]["read_count"].is_u64());
}
