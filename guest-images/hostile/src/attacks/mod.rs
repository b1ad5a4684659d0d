//! What is done to the VMM, and how it is seen that the rest of the machine did not notice.

mod addresses;
mod block;
mod chains;
mod machine;
mod net;
mod pci;
pub mod processor;
mod rings;
mod small;
mod status;
pub mod vsock;

use crate::command_line::CommandLine;
use crate::device::{Device, Devices, PciRegisters, Transport};
use crate::driver::{Driver, INDIRECT_DESC};
use crate::ring::WRITE;
use crate::text::Line;
use crate::witness::Witness;

/// Where the attacked device's rings are.
pub const ARENA: u64 = 0x100_0000;

/// One attack on a device.
pub enum Act {
    /// By its registers, from reset on.
    Registers(fn(&Device)),
    /// By one of its queues, all of which run.
    Queue(fn(&mut Driver, u16)),
    /// By requests of its kind.
    Once(fn(&mut Driver)),
    /// By requests of its kind, whose answers matter.
    Check(fn(&mut Driver) -> Result<(), &'static str>),
    /// On the machine as a whole.
    Machine(fn() -> Result<(), &'static str>),
    /// By what only PCI has.
    Pci(fn(&Device, &PciRegisters)),
}

/// An attack and its name.
pub struct Attack {
    pub name: &'static str,
    pub act: Act,
}

/// Shorter to write in tables.
pub const fn registers(name: &'static str, act: fn(&Device)) -> Attack {
    Attack {
        name,
        act: Act::Registers(act),
    }
}

/// As above.
pub const fn queue(name: &'static str, act: fn(&mut Driver, u16)) -> Attack {
    Attack {
        name,
        act: Act::Queue(act),
    }
}

/// As above.
pub const fn once(name: &'static str, act: fn(&mut Driver)) -> Attack {
    Attack {
        name,
        act: Act::Once(act),
    }
}

/// As above.
pub const fn check(name: &'static str, act: fn(&mut Driver) -> Result<(), &'static str>) -> Attack {
    Attack {
        name,
        act: Act::Check(act),
    }
}

/// As above.
pub const fn pci(name: &'static str, act: fn(&Device, &PciRegisters)) -> Attack {
    Attack {
        name,
        act: Act::Pci(act),
    }
}

/// As above.
pub const fn machine(name: &'static str, act: fn() -> Result<(), &'static str>) -> Attack {
    Attack {
        name,
        act: Act::Machine(act),
    }
}

/// For devices of every kind, and for those of this one.
fn attacks_on(device: &Device) -> [&'static [Attack]; 6] {
    let own = match device.kind {
        1 => net::ATTACKS,
        2 => block::ATTACKS,
        3 => small::CONSOLE,
        4 => small::RNG,
        5 => small::BALLOON,
        19 => vsock::ATTACKS,
        27 => small::PMEM,
        _ => &[],
    };
    [
        addresses::ATTACKS,
        chains::ATTACKS,
        rings::ATTACKS,
        status::ATTACKS,
        pci::ATTACKS,
        own,
    ]
}

/// Tallies, and says each.
pub struct Report<'a> {
    only: Option<&'a [u8]>,
    pub survived: u64,
    pub failed: u64,
}

impl<'a> Report<'a> {
    /// `only=` of the command line picks attacks by the start of their names.
    pub fn new(line: &'a CommandLine) -> Self {
        Self {
            only: line.value("only="),
            survived: 0,
            failed: 0,
        }
    }

    /// Whether the attack is to be run.
    pub fn wants(&self, name: &str) -> bool {
        self.only
            .is_none_or(|only| name.as_bytes().starts_with(only))
    }

    /// Notes how an attack ended.
    pub fn note(&mut self, what: Line, outcome: Result<(), &'static str>) {
        match outcome {
            Ok(()) => {
                self.survived += 1;
                what.text(": survived").say();
            }
            Err(why) => {
                self.failed += 1;
                what.text(": FAILED: ").text(why).say();
            }
        }
    }
}

/// Attacks every virtio device, but for the witness.
pub fn on_devices(devices: &Devices, witness: &mut Witness, report: &mut Report) {
    for device in devices.iter() {
        if witness.is_disk(device) {
            continue;
        }
        for attack in attacks_on(device).into_iter().flatten() {
            if report.wants(attack.name) {
                on_device(device, attack, witness, report);
            }
        }
        // Its rings are the next one's: it must not work on them any more.
        device.set_status(0);
        if let Err(why) = witness.take_back(device) {
            report.note(target("afterwards", device), Err(why));
        }
    }
}

/// Lets go of every PCI device but the witnesses while its requests are in flight.
pub fn let_go(devices: &Devices, witness: &mut Witness, report: &mut Report) {
    for device in devices.iter() {
        let Transport::Pci(registers) = device.transport else {
            return;
        };
        if witness.has(device) {
            continue;
        }
        let outcome = Driver::start(device, ARENA, INDIRECT_DESC).and_then(|mut driver| {
            for queue in (0_u16..).take(driver.queues) {
                for head in 0..8 {
                    let ring = driver.rings[usize::from(queue)];
                    ring.describe(head, ring.buffers(), 4096, WRITE, 0);
                    driver.rings[usize::from(queue)].offer(head);
                }
                device.notify(queue);
            }
            pci::let_go(&registers);
            for queue in 0..8 {
                device.notify(queue);
            }
            device.set_status(0);
            witness.ask(None)
        });
        report.note(target("let-go-with-requests-in-flight", device), outcome);
    }
}

/// Leaves every device at work with all its features, as a guest does that falls.
pub fn leave_at_work(devices: &Devices) {
    for device in devices.iter() {
        // One that was let go is no device any more.
        let _ = Driver::start(device, ARENA, u32::MAX);
    }
}

/// Attacks what is no virtio device; `group` picks the attacks.
pub fn on_machine(group: &[u8], witness: &mut Witness, report: &mut Report) {
    let attacks = match group {
        b"ports" => machine::PORTS,
        // Those at which there is something.
        b"low-ports" => &machine::PORTS[..1],
        b"machine" => machine::ATTACKS,
        b"processor" => processor::ATTACKS,
        _ => &[],
    };
    for attack in attacks {
        if let Act::Machine(act) = attack.act
            && report.wants(attack.name)
        {
            let outcome = act().and_then(|()| witness.ask(None));
            let what = Line::new().text("attack ").text(attack.name);
            report.note(
                what.text(" on machine0/").text(witness.transport()),
                outcome,
            );
        }
    }
}

fn on_device(device: &Device, attack: &Attack, witness: &mut Witness, report: &mut Report) {
    match attack.act {
        Act::Machine(_) => {}
        Act::Registers(act) => {
            device.set_status(0);
            act(device);
            let outcome = still_serving(device, witness);
            report.note(target(attack.name, device), outcome);
        }
        Act::Pci(act) => {
            let Transport::Pci(pci) = device.transport else {
                return;
            };
            act(device, &pci);
            pci::restore(&pci);
            let outcome = still_serving(device, witness);
            report.note(target(attack.name, device), outcome);
        }
        Act::Once(act) => {
            let outcome = Driver::start(device, ARENA, u32::MAX).and_then(|mut driver| {
                act(&mut driver);
                still_serving(device, witness)
            });
            report.note(target(attack.name, device), outcome);
        }
        Act::Check(act) => {
            let outcome = Driver::start(device, ARENA, u32::MAX)
                .and_then(|mut driver| act(&mut driver))
                .and_then(|()| still_serving(device, witness));
            report.note(target(attack.name, device), outcome);
        }
        Act::Queue(act) => {
            let mut index = 0;
            loop {
                let mut driver = match Driver::start(device, ARENA, INDIRECT_DESC) {
                    Ok(driver) => driver,
                    Err(why) => return report.note(target(attack.name, device), Err(why)),
                };
                if usize::from(index) >= driver.queues {
                    return;
                }
                act(&mut driver, index);
                let outcome = still_serving(device, witness);
                let what = target(attack.name, device).text(" queue ");
                report.note(what.number(index.into()), outcome);
                index += 1;
            }
        }
    }
}

/// The others serve while this one is as it was left; then this one serves after a reset.
fn still_serving(device: &Device, witness: &mut Witness) -> Result<(), &'static str> {
    witness.ask(Some(device))?;
    Driver::start(device, ARENA, INDIRECT_DESC)?.serve_once()
}

fn target(name: &str, device: &Device) -> Line {
    Line::new()
        .text("attack ")
        .text(name)
        .text(" on ")
        .text(device.name())
        .number(device.ordinal.into())
        .text("/")
        .text(device.transport_name())
}
