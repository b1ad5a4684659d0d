//! PCI: the host bridge of the DSDT, and where configuration space is (PCI Firmware Specification 3.2 §4).

use acpi_tables::aml::{AddressSpace, AddressSpaceCacheable, EISAName, IO, ZERO};
use acpi_tables::mcfg::MCFG;
use acpi_tables::{Aml, AmlSink};
use devices::pci::bus::{CONFIG_PORTS, CONFIG_PORTS_LEN};

use super::dsdt::{device, name, resources};
use super::{OEM, OEM_REVISION, OEM_TABLE, hotplug};
use crate::layout::PCI_ECAM;
use crate::pci::PciLayout;

/// Bus 0 of segment 0 is all there is: a guest looks no further.
const LAST_BUS: u8 = 0;

/// The table that says where ECAM is.
pub(super) fn mcfg() -> MCFG {
    let mut table = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    table.add_ecam(PCI_ECAM, 0, 0, LAST_BUS);
    table
}

/// The root of the bus. There is no interrupt routing: functions have messages only.
pub(super) fn host_bridge(sink: &mut dyn AmlSink, layout: &PciLayout) {
    let low = |address: u64| u32::try_from(address).unwrap_or(u32::MAX);
    let ports = u16::try_from(CONFIG_PORTS).unwrap_or(u16::MAX);
    let ports_len = u8::try_from(CONFIG_PORTS_LEN).unwrap_or(u8::MAX);
    let uncached = AddressSpaceCacheable::NotCacheable;
    let (first, last) = layout.low;
    let memory_low = AddressSpace::new_memory(uncached, true, low(first), low(last), None);
    let (first, last) = layout.high;
    let uncached = AddressSpaceCacheable::NotCacheable;
    let memory_high = AddressSpace::new_memory(uncached, true, first, last, None);
    let resources = resources(&[
        &AddressSpace::<u16>::new_bus_number(0, LAST_BUS.into()),
        &IO::new(ports, ports, 1, ports_len),
        &memory_low,
        &memory_high,
    ]);
    let (hardware, compatible) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
    let (hardware, compatible) = (name("_HID", &hardware), name("_CID", &compatible));
    let (segment, number) = (name("_SEG", &ZERO), name("_UID", &ZERO));
    let config = name("_CBA", &PCI_ECAM);
    let mut children: Vec<&dyn Aml> = vec![
        &hardware,
        &compatible,
        &segment,
        &number,
        &config,
        &resources,
    ];
    let slots = hotplug::objects(layout.pluggable);
    children.extend(slots.iter().map(|object| &**object));
    device(sink, "PCI0", &children);
}
