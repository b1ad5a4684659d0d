//! ACPI tables of a hardware-reduced platform (ACPI 6.5), in guest memory.

mod dsdt;
mod fadt;
mod hotplug;
mod madt;
mod pci;
mod wdat;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress};

use crate::boot::cmdline::MmioDevice;
use crate::layout::{ACPI, ACPI_END};
use crate::memory::GuestMemory;
use crate::pci::PciLayout;

/// Who made the tables.
const OEM: [u8; 6] = *b"DARUMA";
/// Which tables.
const OEM_TABLE: [u8; 8] = *b"DARUMAVM";
/// Which version of them.
const OEM_REVISION: u32 = 1;
/// Tables start at multiples of this.
const TABLE_ALIGNMENT: usize = 16;

/// I/O port of sleep control, sleep status and reset.
pub const POWER_PORT: u16 = 0x600;
/// I/O port of the generic event device.
pub const GED_PORT: u16 = 0x604;

/// I/O ports of the watchdog.
pub const WATCHDOG_PORT: u16 = 0x610;

/// I/O ports of the PCI hot-plug registers.
pub const HOTPLUG_PORT: u16 = 0x620;

/// Why the tables could not be made.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant describes it and its values"
)]
pub enum AcpiError {
    #[error("The ACPI tables are {size} bytes, {room} are reserved for them")]
    TooLarge { size: usize, room: u64 },
    #[error("Cannot write the ACPI tables at {address:#x} in guest memory")]
    Write {
        address: u64,
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// Writes all tables and returns the address of their root, the RSDP. `devices` are those on MMIO.
pub fn write(
    memory: &GuestMemory,
    vcpus: u8,
    devices: &[MmioDevice],
    pci: Option<&PciLayout>,
) -> Result<u64, AcpiError> {
    let bytes = build(vcpus, devices, pci);
    let room = ACPI_END - ACPI;
    if bytes.len() as u64 > room {
        return Err(AcpiError::TooLarge {
            size: bytes.len(),
            room,
        });
    }
    memory
        .write_slice(&bytes, GuestAddress(ACPI))
        .map_err(|source| AcpiError::Write {
            address: ACPI,
            source,
        })?;
    Ok(ACPI)
}

/// The tables as they lie in memory from [`ACPI`] on: RSDP, DSDT, FADT, MADT, WDAT, MCFG, XSDT.
fn build(vcpus: u8, devices: &[MmioDevice], pci: Option<&PciLayout>) -> Vec<u8> {
    // The RSDP comes first and points to the XSDT, which comes last: its place is known when the rest is there.
    let mut bytes = vec![0; Rsdp::len()];
    let dsdt = append(&mut bytes, &dsdt::build(vcpus, devices, pci));
    let fadt = append(&mut bytes, &fadt::build(dsdt));
    let madt = append(&mut bytes, &madt::build(vcpus));
    let wdat = append(&mut bytes, &wdat::build());
    let mcfg = pci.map(|_| append(&mut bytes, &pci::mcfg()));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    xsdt.add_entry(wdat);
    if let Some(mcfg) = mcfg {
        xsdt.add_entry(mcfg);
    }
    let xsdt = append(&mut bytes, &xsdt);
    let mut rsdp = Vec::with_capacity(Rsdp::len());
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    bytes
}

/// Puts a table behind the others and returns its guest address.
fn append(bytes: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    bytes.resize(bytes.len().next_multiple_of(TABLE_ALIGNMENT), 0);
    let address = ACPI + bytes.len() as u64;
    table.to_aml_bytes(bytes);
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: [MmioDevice; 2] = [
        MmioDevice {
            address: 0xd000_1000,
            size: 4096,
            irq: 16,
        },
        MmioDevice {
            address: 0xd000_2000,
            size: 4096,
            irq: 17,
        },
    ];

    const LAYOUT: PciLayout = PciLayout {
        low: (0xd800_0000, 0xdfff_ffff),
        high: (0x1_0000_0000, 0x4_ffff_ffff),
        pluggable: !1,
    };

    fn u32_at(bytes: &[u8], offset: usize) -> usize {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap()) as usize
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    fn table(bytes: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - ACPI).unwrap();
        &bytes[start..start + u32_at(bytes, start + 4)]
    }

    /// Follows the pointers as a guest does.
    fn tables(bytes: &[u8]) -> Vec<&[u8]> {
        assert_eq!(&bytes[..8], b"RSD PTR ");
        let xsdt = table(bytes, u64_at(bytes, 24));
        let mut found = vec![xsdt];
        for entry in xsdt[36..].chunks_exact(8) {
            let child = table(bytes, u64_at(entry, 0));
            found.push(child);
            if &child[..4] == b"FACP" {
                found.push(table(bytes, u64_at(child, 140)));
            }
        }
        found
    }

    #[test]
    fn every_table_is_found_and_sums_to_zero() {
        for (vcpus, pci) in [(1, None), (2, Some(LAYOUT)), (32, Some(LAYOUT))] {
            let bytes = build(vcpus, &DEVICES, pci.as_ref());
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum(&bytes[..20]), 0);
            assert_eq!(sum(&bytes[..36]), 0);
            let tables = tables(&bytes);
            let names: Vec<_> = tables.iter().map(|table| &table[..4]).collect();
            let expected = [b"XSDT", b"FACP", b"DSDT", b"APIC", b"WDAT", b"MCFG"];
            assert_eq!(names, expected[..5 + usize::from(pci.is_some())]);
            for table in tables {
                assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(&table[..4]));
            }
        }
    }

    /// Runs one of ACPICA's tools, which are what Linux's own interpreter is built from.
    fn acpica(tool: &str, arguments: &[&str], folder: &std::path::Path) -> String {
        let mut command = std::process::Command::new(tool);
        let output = command.args(arguments).current_dir(folder).output();
        let output = output.unwrap_or_else(|error| {
            panic!("{tool} of Debian's package acpica-tools is needed for this test: {error}")
        });
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool} {arguments:?}: {text}");
        text
    }

    /// The DSDT of the largest guest as a file.
    fn dsdt_file() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let bytes = build(32, &DEVICES, Some(&LAYOUT));
        let dsdt = tables(&bytes).into_iter().find(|t| &t[..4] == b"DSDT");
        std::fs::write(folder.path().join("dsdt.aml"), dsdt.unwrap()).unwrap();
        folder
    }

    #[test]
    fn the_dsdt_can_be_taken_apart_and_put_together_again() {
        let folder = dsdt_file();
        acpica("iasl", &["-d", "dsdt.aml"], folder.path());
        // The name of the generation ID's device is older than the rule that it breaks (6035), and fixed.
        let text = acpica("iasl", &["-vw", "6035", "dsdt.dsl"], folder.path());
        assert!(text.contains(" 0 Errors, 0 Warnings"), "{text}");
        let source = std::fs::read_to_string(folder.path().join("dsdt.dsl")).unwrap();
        for slot in 1..32 {
            assert!(source.contains(&format!("Device (S{slot:03X})")), "{slot}");
        }
        // Whoever hands PCI Express's own hot-plug over gets no notifications from Linux's acpiphp.
        assert!(!source.contains("Device (S000)") && !source.contains("_OSC"));
    }

    #[test]
    fn the_handler_tells_each_slot_what_its_registers_say() {
        let folder = dsdt_file();
        // All registers read as ones: the generic event device's too.
        let text = acpica(
            "acpiexec",
            &["-fv", "255", "-b", "execute \\_SB.GED._EVT 5", "dsdt.aml"],
            folder.path(),
        );
        for slot in 1..32 {
            for value in ["0x01 (Device Check)", "0x03 (Eject Request)"] {
                let told = text.lines().any(|line| {
                    line.contains("Notify on")
                        && line.contains(&format!("S{slot:03X}"))
                        && line.contains(value)
                });
                assert!(told, "slot {slot} was not told {value}: {text}");
            }
        }
        let text = acpica(
            "acpiexec",
            &["-b", "execute \\_SB.PCI0.PHEV", "dsdt.aml"],
            folder.path(),
        );
        assert!(!text.contains("Notify on"), "{text}");
    }

    #[test]
    fn the_largest_guest_fits_into_the_reserved_area() {
        let devices = crate::layout::VIRTIO_IRQS
            .map(|irq| MmioDevice {
                address: 0xd000_1000,
                size: 4096,
                irq,
            })
            .to_vec();
        assert!((build(32, &devices, Some(&LAYOUT)).len() as u64) < ACPI_END - ACPI);
    }
}
