//! `boot-source`.

use std::path::PathBuf;

use serde::Deserialize;

use crate::config::{BootConfig, BootProtocol, ConfigError, DEFAULT_BOOT_ARGS};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BootSource {
    kernel_image_path: PathBuf,
    initrd_path: Option<PathBuf>,
    boot_args: Option<String>,
    boot_protocol: Option<String>,
}

impl BootSource {
    pub(super) fn check(self) -> Result<BootConfig, ConfigError> {
        let protocol = match self.boot_protocol.as_deref() {
            None | Some("auto") => BootProtocol::Auto,
            Some("pvh") => BootProtocol::Pvh,
            Some("linux64") => BootProtocol::Linux64,
            Some("multiboot") => BootProtocol::Multiboot,
            Some(other) => {
                return Err(ConfigError::UnknownWord {
                    field: "boot-source.boot_protocol",
                    value: other.into(),
                    permitted: "\"auto\", \"pvh\", \"linux64\" and \"multiboot\"",
                });
            }
        };
        let boot = BootConfig {
            kernel: self.kernel_image_path,
            initrd: self.initrd_path,
            cmdline: self.boot_args.unwrap_or_else(|| DEFAULT_BOOT_ARGS.into()),
            protocol,
        };
        boot.check()?;
        Ok(boot)
    }
}
