//! The kernel command line: what the user said plus what only the VMM knows.

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::config::{DriveConfig, VmConfig};
use crate::layout::{CMDLINE, CMDLINE_CAPACITY};
use crate::memory::GuestMemory;

/// A virtio-mmio device as Linux's `virtio_mmio.device=` parameter describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// Guest address of the registers.
    pub address: u64,
    /// Bytes of registers.
    pub size: u64,
    /// Interrupt line.
    pub irq: u32,
}

/// Whether this command line switches ACPI off, so that devices must be announced here and not in ACPI.
pub fn acpi_is_off(cmdline: &str) -> bool {
    // The last one wins, as in Linux.
    words(cmdline).rfind(|word| word.starts_with("acpi=")) == Some("acpi=off")
}

/// The words that the kernel itself reads: everything before ` -- `, where init's own arguments start.
fn words(cmdline: &str) -> impl DoubleEndedIterator<Item = &str> {
    kernel_part(cmdline).0.split_ascii_whitespace()
}

/// Splits off init's arguments.
fn kernel_part(cmdline: &str) -> (&str, Option<&str>) {
    match cmdline.split_once(" -- ") {
        Some((kernel, init)) => (kernel, Some(init)),
        None => (cmdline, None),
    }
}

/// Completes the user's command line: the root device, no PCI (where there is none to probe), and the virtio-mmio devices
/// if ACPI cannot name them.
pub fn complete(config: &VmConfig, mmio: &[MmioDevice]) -> Result<String, BootError> {
    let (user, init) = kernel_part(&config.boot.cmdline);
    let mut line = user.trim().to_owned();
    let mut push = |word: &str| {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    };
    if let Some(root) = config.drives.iter().find(|drive| drive.is_root) {
        push(&root_argument(root));
        push(if root.read_only { "ro" } else { "rw" });
    }
    if let Some(index) = config.pmem.iter().position(|pmem| pmem.is_root) {
        push(&format!("root=/dev/pmem{index}"));
        push(if config.pmem[index].read_only {
            "ro"
        } else {
            "rw"
        });
    }
    if !config.pci && !words(&config.boot.cmdline).any(|word| word.starts_with("pci=")) {
        push("pci=off");
    }
    if acpi_is_off(&config.boot.cmdline) {
        for device in mmio {
            push(&format!(
                "virtio_mmio.device={}K@{:#x}:{}",
                device.size / 1024,
                device.address,
                device.irq
            ));
        }
    }
    if let Some(init) = init {
        push("--");
        push(init);
    }
    if line.len() >= CMDLINE_CAPACITY {
        return Err(BootError::CmdlineTooLong {
            length: line.len(),
            max: CMDLINE_CAPACITY - 1,
        });
    }
    Ok(line)
}

fn root_argument(drive: &DriveConfig) -> String {
    match &drive.partuuid {
        Some(uuid) => format!("root=PARTUUID={uuid}"),
        None => "root=/dev/vda".into(),
    }
}

/// Puts the command line with its NUL into guest memory.
pub fn write(memory: &GuestMemory, cmdline: &str) -> Result<(), BootError> {
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, GuestAddress(CMDLINE))
        .map_err(|source| BootError::WriteMemory {
            what: "the kernel command line",
            address: CMDLINE,
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PmemConfig, firecracker};
    use std::path::Path;

    fn config(boot_args: &str, drives: &str) -> VmConfig {
        let text = format!(
            r#"{{"boot-source": {{"kernel_image_path": "k", "boot_args": "{boot_args}"}}, "drives": [{drives}]}}"#
        );
        let document = firecracker::parse(text.as_bytes(), Path::new("t")).unwrap();
        firecracker::guest(&document, false).unwrap()
    }

    const DEVICE: MmioDevice = MmioDevice {
        address: 0xd000_1000,
        size: 4096,
        irq: 16,
    };

    #[test]
    fn the_root_drive_is_named() {
        let drive = r#"{"drive_id": "r", "path_on_host": "x", "is_root_device": true, "is_read_only": true}"#;
        assert_eq!(
            complete(&config("quiet", drive), &[DEVICE]).unwrap(),
            "quiet root=/dev/vda ro pci=off"
        );
        let drive =
            r#"{"drive_id": "r", "path_on_host": "x", "is_root_device": true, "partuuid": "7-2"}"#;
        assert_eq!(
            complete(&config("", drive), &[]).unwrap(),
            "root=PARTUUID=7-2 rw pci=off"
        );
    }

    #[test]
    fn the_root_in_persistent_memory_is_named() {
        let mut config = config("quiet", "");
        let pmem = |id: &str, is_root| PmemConfig {
            id: id.into(),
            path: id.into(),
            is_root,
            read_only: true,
        };
        config.pmem = vec![pmem("a", false), pmem("b", true)];
        assert_eq!(
            complete(&config, &[]).unwrap(),
            "quiet root=/dev/pmem1 ro pci=off"
        );
    }

    #[test]
    fn pci_is_switched_off_only_where_there_is_none() {
        let mut config = config("quiet", "");
        config.pci = true;
        assert_eq!(complete(&config, &[]).unwrap(), "quiet");
        config.pci = false;
        assert_eq!(complete(&config, &[]).unwrap(), "quiet pci=off");
    }

    #[test]
    fn devices_are_named_only_without_acpi() {
        assert_eq!(
            complete(&config("acpi=off pci=off", ""), &[DEVICE]).unwrap(),
            "acpi=off pci=off virtio_mmio.device=4K@0xd0001000:16"
        );
        assert_eq!(
            complete(&config("acpi=off acpi=force pci=off", ""), &[DEVICE]).unwrap(),
            "acpi=off acpi=force pci=off"
        );
    }

    #[test]
    fn arguments_of_init_stay_at_the_end() {
        assert_eq!(
            complete(&config("quiet -- single acpi=off", ""), &[DEVICE]).unwrap(),
            "quiet pci=off -- single acpi=off"
        );
    }

    #[test]
    fn a_line_that_grows_too_long_is_refused() {
        let error = complete(&config(&"x".repeat(2045), ""), &[]).unwrap_err();
        assert!(
            matches!(
                error,
                BootError::CmdlineTooLong {
                    length: 2053,
                    max: 2047
                }
            ),
            "{error}"
        );
    }
}
