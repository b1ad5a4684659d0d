//! Every legacy device and both buses: every address in and around a device's range, by every width, every byte a guest
//! can write. Checked against what each device says of itself: who answers where, and which accesses are heard.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::acpi::{self, AcpiPower, Ged, GedEvent};
use super::boot_timer::{self, BootTimer};
use super::i8042::{self, I8042};
use super::pvpanic::{self, PvPanic};
use super::rtc::{self, Rtc};
use super::serial::{self, Serial};
use super::watchdog::{self, Watchdog};
use crate::bus::{Bus, SharedDevice};
use crate::pci::{HostBridge, PciBus, bus};
use crate::platform::PlatformEvent::{self, BootTimer as Booted, PowerOff, Reset};
use crate::platform::testing::recording_sink;

const WIDTHS: [usize; 9] = [1, 2, 4, 8, 3, 5, 6, 7, 16];
const MARGIN: u64 = 16;

/// What a device makes of a write: the part of it that begins in its range at `offset`.
type Hears = fn(offset: u64, data: &[u8]) -> Vec<PlatformEvent>;

struct Case {
    name: &'static str,
    base: u64,
    len: u64,
    device: SharedDevice,
    /// What it should tell the platform.
    hears: Hears,
    events: Arc<Mutex<Vec<PlatformEvent>>>,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name, base, len, hears: Hears, make: &dyn Fn(_) -> SharedDevice| {
        let (sink, events) = recording_sink();
        cases.push(Case {
            name,
            base,
            len,
            device: make(sink),
            hears,
            events,
        });
    };
    let silent: Hears = |_, _| Vec::new();
    let line = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());

    add(
        "i8042",
        i8042::PORT,
        i8042::LEN,
        |offset, data| {
            // Commands F0 to FE pulse the lines whose bits are clear; bit 0 resets.
            let pulse = offset == 4 && data[0] >= 0xf0 && data[0] & 1 == 0;
            pulse.then_some(Reset).into_iter().collect()
        },
        &|sink| Arc::new(Mutex::new(I8042::new(sink))),
    );
    add(
        "ACPI power",
        0x1000,
        acpi::POWER_LEN,
        |offset, data| {
            match (offset, data) {
                // SLP_EN with SLP_TYP 5.
                (0, [value]) if value & 0x3c == 0x34 => vec![PowerOff],
                (2, [1]) => vec![Reset],
                _ => Vec::new(),
            }
        },
        &|sink| Arc::new(Mutex::new(AcpiPower::new(sink))),
    );
    add(
        "boot timer",
        boot_timer::PORT,
        boot_timer::LEN,
        |_, data| (data[0] == 123).then_some(Booted).into_iter().collect(),
        &|sink| Arc::new(Mutex::new(BootTimer::new(sink))),
    );
    add(
        "panic device",
        pvpanic::PORT,
        pvpanic::LEN,
        |_, data| {
            let bits = [
                (1, PlatformEvent::Panicked),
                (2, PlatformEvent::CrashLoaded),
            ];
            let told = bits.into_iter().filter(|(bit, _)| data[0] & bit != 0);
            told.map(|(_, event)| event).collect()
        },
        &|sink| Arc::new(Mutex::new(PvPanic::new(sink))),
    );
    add("RTC", rtc::PORT, rtc::LEN, silent, &|_| {
        Arc::new(Mutex::new(Rtc::with_clock(Box::new(|| {
            Duration::from_secs(1 << 33)
        }))))
    });
    add(
        "serial port",
        serial::COM1_PORT,
        serial::LEN,
        silent,
        &|_| {
            let mut serial = Serial::new(line(), Box::new(io::sink())).unwrap();
            serial.input(&[0x55; 2 * serial::INPUT_CAPACITY]);
            Arc::new(Mutex::new(serial))
        },
    );
    add("event device", 0xd000_2000, acpi::GED_LEN, silent, &|_| {
        let mut ged = Ged::new(line());
        ged.notify(GedEvent::PowerButton).unwrap();
        Arc::new(Mutex::new(ged))
    });
    add("watchdog", 0xd000_3000, watchdog::LEN, silent, &|sink| {
        Arc::new(Mutex::new(Watchdog::new(sink).unwrap()))
    });
    add("host bridge", 0xe000_0000, 0x1000, silent, &|_| {
        let bus = PciBus::new();
        bus.insert(0, Arc::new(HostBridge::new())).unwrap();
        bus.ecam()
    });
    add(
        "configuration ports",
        bus::CONFIG_PORTS,
        bus::CONFIG_PORTS_LEN,
        silent,
        &|_| {
            let bus = PciBus::new();
            bus.insert(0, Arc::new(HostBridge::new())).unwrap();
            bus.config_ports()
        },
    );
    cases
}

/// Every byte, in every place of the access in turn, with the others all clear or all set.
fn values(width: usize) -> Vec<Vec<u8>> {
    let mut list = Vec::new();
    for fill in [0, 0xff] {
        // First and last byte: what is in between reaches no register that these do not.
        for place in [0, width - 1] {
            for byte in 0..=u8::MAX {
                let mut data = vec![fill; width];
                data[place] = byte;
                list.push(data);
            }
        }
    }
    list
}

/// The part of an access that reaches the range.
fn part(case: &Case, address: u64, width: usize) -> Option<(u64, std::ops::Range<usize>)> {
    let end = address + width as u64;
    let (first, last) = (address.max(case.base), end.min(case.base + case.len));
    let index = |at: u64| usize::try_from(at - address).unwrap();
    (first < last).then(|| (first - case.base, index(first)..index(last)))
}

fn sweep(case: &Case) -> u64 {
    let mut bus = Bus::new();
    bus.insert(case.base, case.len, case.device.clone())
        .unwrap();
    let mut count = 0;
    // Of a long range the ends and the start of what is in it.
    let places = (case.base - MARGIN..case.base + case.len.min(0x140))
        .chain(case.base + case.len - MARGIN.min(case.len)..case.base + case.len + MARGIN);
    for address in places {
        for width in WIDTHS {
            let reached = part(case, address, width);
            let mut data = [0x5a; 16];
            let answered = bus.read(address, &mut data[..width]);
            let name = case.name;
            let what = format!("{name}: {width} bytes at {address:#x}");
            assert_eq!(answered, reached.is_some(), "{what}");
            let reached = reached.unwrap_or((0, 0..0));
            for at in (0..width).filter(|at| !reached.1.contains(at)) {
                assert_eq!(data[at], 0xff, "{what}: nobody is there");
            }
            assert!(case.events.lock().unwrap().is_empty(), "{what}: a read");
            count += 1;
            for data in values(width) {
                bus.write(address, &data);
                let expected = if reached.1.is_empty() {
                    Vec::new()
                } else {
                    (case.hears)(reached.0, &data[reached.1.clone()])
                };
                let heard = std::mem::take(&mut *case.events.lock().unwrap());
                assert_eq!(heard, expected, "{what}: {data:x?}");
                count += 1;
            }
        }
    }
    count
}

#[test]
fn every_legacy_device_answers_every_access_in_its_range_and_no_other() {
    let count: u64 = cases().iter().map(sweep).sum();
    // Past libtest's capture: the number is for whoever runs the tests.
    writeln!(io::stdout(), "counted: {count} accesses to legacy devices").unwrap();
}

#[test]
fn reads_of_what_has_no_side_effect_repeat() {
    // All but the event device, which forgets what it has told, and the serial port, whose data are read once.
    for case in cases() {
        if matches!(case.name, "event device" | "serial port") {
            continue;
        }
        for address in case.base..case.base + case.len.min(0x200) {
            for width in WIDTHS {
                let read = || {
                    let mut bus = Bus::new();
                    bus.insert(case.base, case.len, case.device.clone())
                        .unwrap();
                    let mut data = vec![0; width];
                    bus.read(address, &mut data);
                    data
                };
                assert_eq!(read(), read(), "{}: {address:#x}", case.name);
            }
        }
    }
}

#[test]
fn a_serial_port_with_a_broken_output_goes_on() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let interrupt = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let serial = Serial::new(interrupt, Box::new(full)).unwrap();
    let mut bus = Bus::new();
    bus.insert(serial::COM1_PORT, serial::LEN, Arc::new(Mutex::new(serial)))
        .unwrap();
    for _ in 0..1000 {
        bus.write(serial::COM1_PORT, b"x");
    }
    // Line status: ready for more.
    let mut status = [0];
    bus.read(serial::COM1_PORT + 5, &mut status);
    assert_eq!(status[0] & 0x60, 0x60);
}
