//! The ACPI power button, as the kernel's input layer reports it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;
use std::thread;

use crate::machine;

/// `struct input_event` on x86-64: a 16-byte time stamp, then type, code (u16 each) and value (i32).
const EVENT_SIZE: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;

/// Waits for the button on every input device, one thread each, for as long as the machine runs.
pub fn watch() -> io::Result<()> {
    let devices = input_devices()?;
    if devices.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no input device in /dev/input",
        ));
    }
    for path in devices {
        let device = File::open(path)?;
        thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(move || power_off_when_pressed(device))?;
    }
    Ok(())
}

fn input_devices() -> io::Result<Vec<PathBuf>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir("/dev/input")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("event") {
            devices.push(entry.path());
        }
    }
    Ok(devices)
}

fn power_off_when_pressed(mut device: impl Read) {
    let mut event = [0; EVENT_SIZE];
    while device.read_exact(&mut event).is_ok() {
        if is_power_key(&event) {
            machine::power_off();
        }
    }
}

fn is_power_key(event: &[u8; EVENT_SIZE]) -> bool {
    let kind = u16::from_ne_bytes([event[16], event[17]]);
    let code = u16::from_ne_bytes([event[18], event[19]]);
    let value = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
    (kind, code, value) == (EV_KEY, KEY_POWER, PRESSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> [u8; EVENT_SIZE] {
        let mut bytes = [0xAA; EVENT_SIZE];
        bytes[16..18].copy_from_slice(&kind.to_ne_bytes());
        bytes[18..20].copy_from_slice(&code.to_ne_bytes());
        bytes[20..24].copy_from_slice(&value.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_the_press_of_the_power_key_counts() {
        assert!(is_power_key(&event(EV_KEY, KEY_POWER, PRESSED)));
        assert!(!is_power_key(&event(EV_KEY, KEY_POWER, 0)), "release");
        assert!(!is_power_key(&event(EV_KEY, 30, PRESSED)), "another key");
        assert!(!is_power_key(&event(0, 0, 0)), "synchronization");
    }
}
