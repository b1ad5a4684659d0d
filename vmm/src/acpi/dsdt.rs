//! The differentiated system description table: the devices that cannot be found by looking.

use acpi_tables::aml::{
    And, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, MethodCall, Name, Notify,
    ONE, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use devices::legacy::acpi::{GED_LEN, GedEvent, SLEEP_TYPE_S5};
use devices::legacy::{pvpanic, rtc, serial};

use super::{GED_PORT, OEM, OEM_REVISION, OEM_TABLE, hotplug, pci};
use crate::boot::cmdline::MmioDevice;
use crate::layout::{GED_IRQ, GENERATION_ID, RTC_IRQ};
use crate::pci::PciLayout;

/// Bytes of a table's header.
const HEADER_BYTES: u32 = 36;
/// Revision 2 and up: integers are 64 bits wide.
const REVISION: u8 = 2;
/// Notification of a pressed button (ACPI 6.5 §4.8.3.2).
const BUTTON_PRESSED: u8 = 0x80;
/// Notification of another generation ID.
const GENERATION_CHANGED: u8 = 0x80;

/// Builds the table.
pub(super) fn build(vcpus: u8, devices: &[MmioDevice], pci: Option<&PciLayout>) -> Sdt {
    let mut aml = Vec::new();
    sleep_state(&mut aml);
    processors(&mut aml, vcpus);
    serial_port(&mut aml);
    clock(&mut aml);
    for (index, device) in devices.iter().enumerate() {
        virtio(&mut aml, index, *device);
    }
    if let Some(layout) = pci {
        pci::host_bridge(&mut aml, layout);
    }
    panic_device(&mut aml);
    generation_id(&mut aml);
    events(&mut aml, pci.is_some());
    let mut table = Sdt::new(
        *b"DSDT",
        HEADER_BYTES,
        REVISION,
        OEM,
        OEM_TABLE,
        OEM_REVISION,
    );
    table.append_slice(&aml);
    table
}

/// A device of the system bus.
pub(super) fn device(sink: &mut dyn AmlSink, name: &str, children: &[&dyn Aml]) {
    let device = Device::new(name.into(), children.to_vec());
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(sink);
}

pub(super) fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(name.into(), value)
}

pub(super) fn resources(resources: &[&dyn Aml]) -> Name {
    name("_CRS", &ResourceTemplate::new(resources.to_vec()))
}

/// An interrupt as all devices here have it: edge-triggered, active high, not shared.
fn interrupt(line: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, line)
}

/// Ports below 64 Ki.
fn ports(first: u64, length: u64) -> IO {
    let first = u16::try_from(first).unwrap_or(u16::MAX);
    IO::new(first, first, 1, u8::try_from(length).unwrap_or(u8::MAX))
}

/// `\_S5`: the sleep type that means "off".
fn sleep_state(sink: &mut dyn AmlSink) {
    let package = Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    name("_S5_", &package).to_aml_bytes(sink);
}

/// One processor device for each local APIC of the MADT.
fn processors(sink: &mut dyn AmlSink, vcpus: u8) {
    for id in 0..vcpus {
        device(
            sink,
            &format!("C{id:03X}"),
            &[&name("_HID", &"ACPI0007"), &name("_UID", &id)],
        );
    }
}

fn serial_port(sink: &mut dyn AmlSink) {
    device(
        sink,
        "COM1",
        &[
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &ZERO),
            &resources(&[
                &ports(serial::COM1_PORT, serial::LEN),
                &interrupt(serial::COM1_IRQ),
            ]),
        ],
    );
}

fn clock(sink: &mut dyn AmlSink) {
    device(
        sink,
        "RTC_",
        &[
            &name("_HID", &EISAName::new("PNP0B00")),
            &resources(&[&ports(rtc::PORT, rtc::LEN), &interrupt(RTC_IRQ)]),
        ],
    );
}

fn virtio(sink: &mut dyn AmlSink, index: usize, place: MmioDevice) {
    let low = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    device(
        sink,
        &format!("V{index:03X}"),
        &[
            &name("_HID", &"LNRO0005"),
            &name("_UID", &index),
            // DMA is coherent with the caches.
            &name("_CCA", &ONE),
            &resources(&[
                &Memory32Fixed::new(true, low(place.address), low(place.size)),
                &interrupt(place.irq),
            ]),
        ],
    );
}

/// The panic device, by the name that QEMU gave it and every Linux knows.
fn panic_device(sink: &mut dyn AmlSink) {
    device(
        sink,
        "PVPN",
        &[
            &name("_HID", &"QEMU0001"),
            &name("_UID", &ZERO),
            &resources(&[&ports(pvpanic::PORT, pvpanic::LEN)]),
        ],
    );
}

/// The generation ID: the second name is the one that its specification gives, too long for ACPI but asked for.
fn generation_id(sink: &mut dyn AmlSink) {
    let (low, high) = (GENERATION_ID & 0xffff_ffff, GENERATION_ID >> 32);
    device(
        sink,
        "VGEN",
        &[
            &name("_HID", &"VMGENCTR"),
            &name("_CID", &"VM_Gen_Counter"),
            &name("_DDN", &"VM_Gen_Counter"),
            &name("_UID", &ZERO),
            &name("ADDR", &Package::new(vec![&low, &high])),
        ],
    );
}

/// The power button, and the generic event device (ACPI 6.5 §5.6.9) by which it is pressed, the generation ID is told to
/// have changed, and functions on PCI, if there is one, to come and go.
fn events(sink: &mut dyn AmlSink, has_pci: bool) {
    device(sink, "PWRB", &[&name("_HID", &EISAName::new("PNP0C0C"))]);
    let field = Field::new(
        "GEDR".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"GEVT", 32)],
    );
    // The register clears itself when it is read: once, into a local.
    let register = Path::new("GEVT");
    let take = Store::new(&Local(0), &register);

    let pressed = GedEvent::PowerButton as u32;
    let button = Path::new("\\_SB_.PWRB");
    let mask_button = And::new(&Local(1), &Local(0), &pressed);
    let is_pressed = Equal::new(&Local(1), &pressed);
    let press = Notify::new(&button, &BUTTON_PRESSED);
    let press = If::new(&is_pressed, vec![&press]);

    let renewed = GedEvent::GenerationId as u32;
    let id = Path::new("\\_SB_.VGEN");
    let mask_id = And::new(&Local(1), &Local(0), &renewed);
    let is_renewed = Equal::new(&Local(1), &renewed);
    let renew = Notify::new(&id, &GENERATION_CHANGED);
    let renew = If::new(&is_renewed, vec![&renew]);

    let plugged = GedEvent::PciSlots as u32;
    let mask_slots = And::new(&Local(1), &Local(0), &plugged);
    let is_plugged = Equal::new(&Local(1), &plugged);
    let handle = MethodCall::new(hotplug::HANDLER.into(), vec![]);
    let handle = If::new(&is_plugged, vec![&handle]);

    let mut parts: Vec<&dyn Aml> = vec![&take, &mask_button, &press, &mask_id, &renew];
    if has_pci {
        parts.extend([&mask_slots as &dyn Aml, &handle]);
    }
    let event = Method::new("_EVT".into(), 1, true, parts);
    device(
        sink,
        "GED_",
        &[
            &name("_HID", &"ACPI0013"),
            &name("_UID", &ZERO),
            &resources(&[&interrupt(GED_IRQ)]),
            &OpRegion::new("GEDR".into(), OpRegionSpace::SystemIO, &GED_PORT, &GED_LEN),
            &field,
            &event,
        ],
    );
}
