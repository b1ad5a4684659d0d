//! Hot-plug of PCI functions: what is inside the host bridge of the DSDT for it.
//!
//! Linux's `acpiphp` makes a slot of each device under the bridge that has `_ADR` and `_EJ0`. It does so only where the
//! platform keeps PCI Express's own hot-plug to itself: the bridge has no `_OSC` by which it would be handed over.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Arg, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If,
    Local, Method, MethodCall, Name, Notify, OpRegion, OpRegionSpace, Path, Store, ZERO,
};
use devices::pci::{SLOTS, hotplug};

use super::HOTPLUG_PORT;
use super::dsdt::name;

/// Notification: look whether there is another device now (ACPI 6.5 §5.6.6).
const DEVICE_CHECK: u8 = 1;
/// Notification: the host wants the device back.
const EJECT_REQUEST: u8 = 3;

/// The method that tells the guest what the registers say.
pub(super) const HANDLER: &str = "\\_SB_.PCI0.PHEV";

/// The objects of a bus whose device numbers in the bitmap `pluggable` can be empty one day and taken the next.
pub(super) fn objects(pluggable: u32) -> Vec<Box<dyn Aml>> {
    let slots: Vec<_> = (0..SLOTS)
        .filter(|slot| pluggable & mask(*slot) != 0)
        .collect();
    let mut objects = registers();
    objects.extend(slots.iter().map(|slot| slot_device(*slot)));
    objects.push(notifier(&slots));
    objects.push(handler());
    objects
}

fn mask(slot: usize) -> u32 {
    1 << slot
}

fn slot_name(slot: usize) -> String {
    format!("S{slot:03X}")
}

/// AML that was made of parts which do not live as long.
struct Made(Vec<u8>);

impl Made {
    fn boxed(object: &dyn Aml) -> Box<dyn Aml> {
        let mut bytes = Vec::new();
        object.to_aml_bytes(&mut bytes);
        Box::new(Self(bytes))
    }
}

impl Aml for Made {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// The registers of [`hotplug`].
fn registers() -> Vec<Box<dyn Aml>> {
    let region = OpRegion::new(
        "PHPR".into(),
        OpRegionSpace::SystemIO,
        &HOTPLUG_PORT,
        &hotplug::LEN,
    );
    let field = Field::new(
        "PHPR".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Named(*b"PHUP", 32),
            FieldEntry::Named(*b"PHDN", 32),
            FieldEntry::Named(*b"PHEJ", 32),
        ],
    );
    vec![Made::boxed(&region), Made::boxed(&field)]
}

/// A slot: there is no `_STA`, so a guest asks configuration space whether anything is in it.
fn slot_device(slot: usize) -> Box<dyn Aml> {
    let (register, mask) = (Path::new("PHEJ"), mask(slot));
    let eject = Store::new(&register, &mask);
    let eject = Method::new("_EJ0".into(), 1, false, vec![&eject]);
    // Device number above, function below (ACPI 6.5 §6.1.1).
    let address = name("_ADR", &(slot << 16));
    let number: Name = name("_SUN", &slot);
    let path = slot_name(slot).as_str().into();
    Made::boxed(&Device::new(path, vec![&address, &number, &eject]))
}

/// `PHNT(slots, notification)`.
fn notifier(slots: &[usize]) -> Box<dyn Aml> {
    let parts: Vec<_> = slots
        .iter()
        .map(|slot| {
            let device = slot_name(*slot).as_str().into();
            let device: Path = device;
            let notify = Made::boxed(&Notify::new(&device, &Arg(1)));
            let asked = Made::boxed(&And::new(&ZERO, &Arg(0), &mask(*slot)));
            Made::boxed(&If::new(&*asked, vec![&*notify]))
        })
        .collect();
    let parts = parts.iter().map(|part| &**part).collect();
    Made::boxed(&Method::new("PHNT".into(), 2, false, parts))
}

/// `PHEV()`: a register is written back as it was read, so that what comes in between is not lost.
fn handler() -> Box<dyn Aml> {
    let mut parts = Vec::new();
    for (register, notification) in [("PHUP", DEVICE_CHECK), ("PHDN", EJECT_REQUEST)] {
        let register = Path::new(register);
        parts.push(Made::boxed(&Store::new(&Local(0), &register)));
        parts.push(Made::boxed(&Store::new(&register, &Local(0))));
        let tell = MethodCall::new("PHNT".into(), vec![&Local(0), &notification]);
        parts.push(Made::boxed(&tell));
    }
    let parts = parts.iter().map(|part| &**part).collect();
    Made::boxed(&Method::new("PHEV".into(), 0, true, parts))
}
