//! The multiple APIC description table: one local APIC for each vCPU, one I/O APIC.

use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::layout::{IOAPIC, LOCAL_APIC};

/// Both addresses are constants below 4 GiB.
const fn low(address: u64) -> u32 {
    assert!(address <= u32::MAX as u64);
    #[expect(clippy::cast_possible_truncation, reason = "checked on the line above")]
    let low = address as u32;
    low
}

/// Builds the table. Interrupt lines below 16 are edge-triggered and active high, as on a PC's ISA bus: no overrides.
pub(super) fn build(vcpus: u8) -> MADT {
    let mut table = MADT::new(
        OEM,
        OEM_TABLE,
        OEM_REVISION,
        LocalInterruptController::Address(const { low(LOCAL_APIC) }),
    );
    for id in 0..vcpus {
        table.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(0, const { low(IOAPIC) }, 0));
    table
}
