//! The watchdog action table: how the guest drives the watchdog's registers (Microsoft, "Hardware Watchdog Timers Design
//! Specification").

use acpi_tables::Aml;
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;
use devices::legacy::watchdog::{
    CONTROL, COUNTDOWN, MAX_TICKS, MIN_TICKS, PERIOD, RUNNING, STOPPED, TICK_MS,
};

use super::{OEM, OEM_REVISION, OEM_TABLE, WATCHDOG_PORT};

/// Bytes of a table's header.
const HEADER_BYTES: u32 = 36;
/// Bytes of what is between that and the entries.
const WATCHDOG_HEADER_BYTES: u32 = 32;
const REVISION: u8 = 1;
/// "Not a PCI device", for segment, bus, device and function.
const NO_PCI: u16 = 0xff;
/// Flags: the watchdog is enabled, and stops while the machine sleeps.
const FLAGS: u8 = 1 << 0 | 1 << 7;
/// The width of every register.
const MASK: u32 = u32::MAX;

/// What the guest can do.
#[derive(Clone, Copy)]
enum Action {
    Reset = 0x1,
    QueryCountdown = 0x4,
    QueryPeriod = 0x5,
    SetPeriod = 0x6,
    QueryRunning = 0x8,
    SetRunning = 0x9,
    QueryStopped = 0xa,
    SetStopped = 0xb,
}

/// How it does that.
#[derive(Clone, Copy)]
enum Instruction {
    /// Whether the register has this value.
    ReadValue = 0,
    /// The register's value in ticks.
    ReadCountdown = 1,
    /// This value into the register.
    WriteValue = 2,
    /// A number of ticks into the register.
    WriteCountdown = 3,
}

/// Action, instruction, register, value.
const ENTRIES: [(Action, Instruction, u64, u32); 8] = [
    (Action::Reset, Instruction::WriteValue, COUNTDOWN, 0),
    (
        Action::QueryCountdown,
        Instruction::ReadCountdown,
        COUNTDOWN,
        0,
    ),
    (Action::QueryPeriod, Instruction::ReadCountdown, PERIOD, 0),
    (Action::SetPeriod, Instruction::WriteCountdown, PERIOD, 0),
    (
        Action::QueryRunning,
        Instruction::ReadValue,
        CONTROL,
        RUNNING,
    ),
    (
        Action::SetRunning,
        Instruction::WriteValue,
        CONTROL,
        RUNNING,
    ),
    (
        Action::QueryStopped,
        Instruction::ReadValue,
        CONTROL,
        STOPPED,
    ),
    (
        Action::SetStopped,
        Instruction::WriteValue,
        CONTROL,
        STOPPED,
    ),
];

/// Builds the table.
pub(super) fn build() -> Sdt {
    let mut body = Vec::new();
    body.extend(WATCHDOG_HEADER_BYTES.to_le_bytes());
    body.extend(NO_PCI.to_le_bytes());
    let [no_pci, _] = NO_PCI.to_le_bytes();
    body.extend([no_pci, no_pci, no_pci, 0, 0, 0]);
    for number in [TICK_MS, MAX_TICKS, MIN_TICKS] {
        body.extend(number.to_le_bytes());
    }
    body.extend([FLAGS, 0, 0, 0]);
    body.extend(u32::try_from(ENTRIES.len()).unwrap_or(0).to_le_bytes());
    for (action, instruction, register, value) in ENTRIES {
        body.extend([action as u8, instruction as u8, 0, 0]);
        GAS::new(
            AddressSpace::SystemIo,
            32,
            0,
            AccessSize::DwordAccess,
            u64::from(WATCHDOG_PORT) + register,
        )
        .to_aml_bytes(&mut body);
        body.extend(value.to_le_bytes());
        body.extend(MASK.to_le_bytes());
    }
    let mut table = Sdt::new(
        *b"WDAT",
        HEADER_BYTES,
        REVISION,
        OEM,
        OEM_TABLE,
        OEM_REVISION,
    );
    table.append_slice(&body);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_laid_out_as_specified() {
        let table = build();
        let bytes = table.as_slice();
        assert_eq!(bytes.len(), 36 + 32 + ENTRIES.len() * 24);
        assert_eq!(bytes[36..40], [32, 0, 0, 0]);
        assert_eq!(bytes[40..45], [0xff, 0, 0xff, 0xff, 0xff]);
        assert_eq!(bytes[48..52], TICK_MS.to_le_bytes());
        assert_eq!(bytes[64..68], [8, 0, 0, 0]);
        // The last entry stops the watchdog: a 32-bit port, the value 0, all bits.
        let stop = &bytes[bytes.len() - 24..];
        assert_eq!(stop[..4], [0xb, 2, 0, 0]);
        assert_eq!(stop[4..8], [1, 32, 0, 3]);
        assert_eq!(stop[8..10], WATCHDOG_PORT.to_le_bytes());
        assert_eq!(stop[16..], [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    }
}
