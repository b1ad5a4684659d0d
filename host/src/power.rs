//! The power button, as Linux' input layer reports it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc::O_NONBLOCK;
use nix::unistd::read;

/// `EV_KEY` and `KEY_POWER` of linux/input-event-codes.h.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// `struct input_event` on 64-bit Linux: a time of 16 bytes, type, code, value.
const EVENT_SIZE: usize = 24;

/// Opens every input device that has a power key: the ACPI button, and keyboards with one.
#[must_use]
pub fn buttons() -> Vec<OwnedFd> {
    let Ok(entries) = fs::read_dir("/sys/class/input") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("event"))
        .filter(|name| {
            let path = format!("/sys/class/input/{name}/device/capabilities/key");
            fs::read_to_string(path).is_ok_and(|keys| has_power_key(&keys))
        })
        .filter_map(|name| {
            let path = format!("/dev/input/{name}");
            OpenOptions::new()
                .read(true)
                .custom_flags(O_NONBLOCK)
                .open(path)
                .ok()
        })
        .map(OwnedFd::from)
        .collect()
}

/// Reads a bit map as sysfs prints it: 64-bit hexadecimal words, the lowest last.
fn has_power_key(capabilities: &str) -> bool {
    let (word, bit) = (usize::from(KEY_POWER) / 64, KEY_POWER % 64);
    capabilities
        .split_whitespace()
        .rev()
        .nth(word)
        .and_then(|word| u64::from_str_radix(word, 16).ok())
        .is_some_and(|word| word >> bit & 1 == 1)
}

/// Reads what a device has to say; true if the power key went down.
///
/// # Errors
/// The device is gone.
pub fn pressed(button: &impl AsFd) -> io::Result<bool> {
    let mut bytes = [0; 64 * EVENT_SIZE];
    match read(button, &mut bytes) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(length) => Ok(bytes[..length].chunks_exact(EVENT_SIZE).any(is_power_down)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_power_down(event: &[u8]) -> bool {
    let (kind, code, value) = (&event[16..18], &event[18..20], &event[20..24]);
    kind == EV_KEY.to_ne_bytes() && code == KEY_POWER.to_ne_bytes() && value == 1u32.to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use std::io::{Write, pipe};

    use super::*;

    #[test]
    fn capabilities_are_read_from_the_lowest_word() {
        // An ACPI power button, a keyboard of QEMU (it has the key), a mouse.
        assert!(has_power_key("10000000000000 0\n"));
        assert!(!has_power_key("1f0000 0 0 0 0\n"));
        assert!(has_power_key(
            "402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe"
        ));
        assert!(!has_power_key(""));
        assert!(!has_power_key("zz 0"));
    }

    #[test]
    fn only_the_power_key_going_down_counts() {
        let event = |kind: u16, code: u16, value: u32| {
            let mut bytes = vec![0; 16];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(code.to_ne_bytes());
            bytes.extend(value.to_ne_bytes());
            bytes
        };
        let report = |events: &[Vec<u8>]| {
            let (reader, mut writer) = pipe().unwrap();
            writer.write_all(&events.concat()).unwrap();
            pressed(&reader).unwrap()
        };
        assert!(report(&[event(1, 30, 1), event(1, 116, 1), event(0, 0, 0)]));
        assert!(!report(&[event(1, 116, 0), event(0, 0, 0)]));
        assert!(!report(&[event(4, 116, 1)]));
    }

    #[test]
    fn device_that_is_gone_is_an_error() {
        let (reader, writer) = pipe().unwrap();
        drop(writer);
        assert!(pressed(&reader).is_err());
    }
}
