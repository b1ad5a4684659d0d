//! The fixed ACPI description table: which hardware a PC's kernel need not look for.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use devices::legacy::acpi::{RESET, RESET_VALUE, SLEEP_CONTROL, SLEEP_STATUS};

use super::{OEM, OEM_REVISION, OEM_TABLE, POWER_PORT};

/// `IAPC_BOOT_ARCH` bit 0: there are devices on the legacy bus (the serial port, the RTC).
const LEGACY_DEVICES: u16 = 1 << 0;
// Bit 1 stays clear: there is no keyboard controller to probe, only its reset line.
/// `IAPC_BOOT_ARCH` bit 2: there is no VGA hardware.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// `IAPC_BOOT_ARCH` bit 4: there is no PCI Express whose power states to control.
const NO_PCIE_ASPM: u16 = 1 << 4;

/// Builds the table that points to the DSDT at `dsdt`.
pub(super) fn build(dsdt: u64) -> FADT {
    let register = |offset: u64| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(POWER_PORT) + offset,
        )
    };
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::ResetRegSup)
        // Set means: the buttons are devices of the DSDT, not fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    table.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT | NO_PCIE_ASPM).into();
    table.reset_reg = register(RESET);
    table.reset_value = RESET_VALUE;
    table.sleep_control_reg = register(SLEEP_CONTROL);
    table.sleep_status_reg = register(SLEEP_STATUS);
    table.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE).into();
    table.finalize()
}
