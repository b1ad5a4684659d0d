//! The kernel, what it is started with, and how.

use std::path::PathBuf;

use super::ConfigError;
use crate::layout::CMDLINE_CAPACITY;

/// The command line of a guest whose configuration has none (Firecracker's).
pub const DEFAULT_BOOT_ARGS: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux \
                                     i8042.dumbkbd swiotlb=noforce";

/// Which of a kernel image's entry points to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BootProtocol {
    /// PVH if an ELF image offers it, then Multiboot, otherwise the Linux 64-bit entry.
    #[default]
    Auto,
    /// The PVH entry; an image without it is refused.
    Pvh,
    /// The Linux 64-bit entry with a zero page.
    Linux64,
    /// The entry that a Multiboot header names; an image without one is refused.
    Multiboot,
}

/// What the guest boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootConfig {
    /// Kernel image: bzImage, ELF or Multiboot, told apart by content.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// Kernel command line as the user gave it.
    pub cmdline: String,
    /// Entry point to use.
    pub protocol: BootProtocol,
}

impl BootConfig {
    /// Checks the parts that can be judged without reading files.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.kernel.as_os_str().is_empty() {
            return Err(ConfigError::Empty {
                field: "boot-source.kernel_image_path",
            });
        }
        if self
            .initrd
            .as_ref()
            .is_some_and(|path| path.as_os_str().is_empty())
        {
            return Err(ConfigError::Empty {
                field: "boot-source.initrd_path",
            });
        }
        if let Some(position) = self
            .cmdline
            .bytes()
            .position(|b| !(b' '..=b'~').contains(&b))
        {
            return Err(ConfigError::CmdlineCharacter {
                position,
                byte: self.cmdline.as_bytes()[position],
            });
        }
        if self.cmdline.len() >= CMDLINE_CAPACITY {
            return Err(ConfigError::CmdlineTooLong {
                length: self.cmdline.len(),
                max: CMDLINE_CAPACITY - 1,
            });
        }
        Ok(())
    }
}
