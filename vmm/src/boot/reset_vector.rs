//! The instructions at the reset vector, where a PC has its firmware.
//!
//! A kernel that finds no better way to reboot goes back to real mode and jumps there. Linux does so first of all if it
//! could speak EFI and ACPI says that the hardware is reduced: it takes the machine for one whose EFI firmware does the
//! reset, and finds none. What a PC's firmware would begin with is all that is needed: a reset.

use devices::legacy::i8042;
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::layout::RESET_VECTOR;
use crate::memory::GuestMemory;

/// Pulses the reset line at the keyboard controller, in 16-bit code: every PC since the AT takes it, with ACPI or without.
const CODE: [u8; 7] = [
    0xb0,
    i8042::PULSE_RESET,
    0xe6,
    i8042::COMMAND_PORT,
    // A halt that is repeated, should anything end it before the machine is reset.
    0xf4,
    0xeb,
    0xfd,
];

/// Writes the instructions.
pub fn write(memory: &GuestMemory) -> Result<(), BootError> {
    memory
        .write_slice(&CODE, GuestAddress(RESET_VECTOR))
        .map_err(|source| BootError::WriteMemory {
            what: "the reset vector",
            address: RESET_VECTOR,
            source,
        })
}
