//! Common configuration (virtio 1.2 §4.1.4.3): where the registers of the state machine are.

use super::interrupt::PciInterrupt;
use crate::virtio::state::{Register, VirtioState};

/// Bytes of the structure. What 1.2 adds behind them needs features that are not offered.
pub(super) const LEN: u32 = 0x38;

/// What is at an offset.
enum Field {
    /// A register of the state machine, and whether the driver may write it.
    State(Register, bool),
    QueueEnable,
    ConfigVector,
    QueueVector,
    QueueCount,
    QueueNotifyOffset,
}

/// The field that starts at `offset`, and its width in bytes.
fn field(offset: u64) -> Option<(Field, usize)> {
    let read_write = |register| Field::State(register, true);
    let read_only = |register| Field::State(register, false);
    Some(match offset {
        0x00 => (read_write(Register::DeviceFeaturesSelect), 4),
        0x04 => (read_only(Register::DeviceFeatures), 4),
        0x08 => (read_write(Register::DriverFeaturesSelect), 4),
        0x0c => (read_write(Register::DriverFeatures), 4),
        0x10 => (Field::ConfigVector, 2),
        0x12 => (Field::QueueCount, 2),
        0x14 => (read_write(Register::Status), 1),
        0x15 => (read_only(Register::ConfigGeneration), 1),
        0x16 => (read_write(Register::QueueSelect), 2),
        0x18 => (read_write(Register::QueueSize), 2),
        0x1a => (Field::QueueVector, 2),
        0x1c => (Field::QueueEnable, 2),
        0x1e => (Field::QueueNotifyOffset, 2),
        0x20 => (read_write(Register::QueueDescriptorsLow), 4),
        0x24 => (read_write(Register::QueueDescriptorsHigh), 4),
        0x28 => (read_write(Register::QueueAvailableLow), 4),
        0x2c => (read_write(Register::QueueAvailableHigh), 4),
        0x30 => (read_write(Register::QueueUsedLow), 4),
        0x34 => (read_write(Register::QueueUsedHigh), 4),
        _ => return None,
    })
}

/// Reads the field at `offset`. `data` is zero; it stays so unless its width is the field's.
pub(super) fn read(state: &VirtioState, interrupt: &PciInterrupt, offset: u64, data: &mut [u8]) {
    if let Some((low, high)) = halves(offset, data.len()) {
        let (first, second) = data.split_at_mut(4);
        read(state, interrupt, low, first);
        return read(state, interrupt, high, second);
    }
    let Some((field, width)) = field(offset) else {
        return;
    };
    if data.len() != width {
        return;
    }
    let selected = state.read(Register::QueueSelect);
    let value = match field {
        Field::State(register, _) => state.read(register),
        Field::QueueEnable => state.read(Register::QueueReady),
        Field::ConfigVector => interrupt.vector(None).into(),
        Field::QueueVector => interrupt.vector(Some(selected)).into(),
        Field::QueueCount => u32::try_from(state.traits().queue_sizes.len()).unwrap_or(u32::MAX),
        // One register for each queue, in their order.
        Field::QueueNotifyOffset if state.read(Register::QueueSizeMax) > 0 => selected,
        Field::QueueNotifyOffset => 0,
    };
    // Each value fits into its field; the generation counts on within its eight bits.
    data.copy_from_slice(&value.to_le_bytes()[..width]);
}

/// Writes the field at `offset`, if `data` is as wide as it.
pub(super) fn write(state: &mut VirtioState, interrupt: &PciInterrupt, offset: u64, data: &[u8]) {
    if let Some((low, high)) = halves(offset, data.len()) {
        let (first, second) = data.split_at(4);
        write(state, interrupt, low, first);
        return write(state, interrupt, high, second);
    }
    let found = field(offset).filter(|(_, width)| *width == data.len());
    let Some((field, width)) = found else {
        let len = data.len();
        return state.refuse(format_args!(
            "write of {len} bytes to common configuration at {offset:#x}"
        ));
    };
    let mut bytes = [0; 4];
    bytes[..width].copy_from_slice(data);
    let value = u32::from_le_bytes(bytes);
    let vector = u16::from_le_bytes([bytes[0], bytes[1]]);
    match field {
        Field::State(register, true) => {
            state.write(register, value);
            if register == Register::Status && value == 0 {
                // Still under the lock, so no interrupt from before the reset comes after.
                interrupt.reset();
            }
        }
        // A queue is taken down by a reset only (§4.1.4.3.2).
        Field::QueueEnable if value == 1 => state.write(Register::QueueReady, 1),
        Field::ConfigVector => interrupt.set_vector(None, vector),
        Field::QueueVector => {
            interrupt.set_vector(Some(state.read(Register::QueueSelect)), vector);
        }
        Field::State(_, false)
        | Field::QueueEnable
        | Field::QueueCount
        | Field::QueueNotifyOffset => state.refuse(format_args!(
            "write of {value:#x} to common configuration at {offset:#x}"
        )),
    }
}

/// A 64-bit access to one of the 64-bit fields is two of 32 bits.
fn halves(offset: u64, len: usize) -> Option<(u64, u64)> {
    (len == 8 && matches!(offset, 0x20 | 0x28 | 0x30)).then_some((offset, offset + 4))
}
