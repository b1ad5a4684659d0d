//! `boot-source`.

use api::model::BootSource;

use crate::config::{BootConfig, BootProtocol, ConfigError, DEFAULT_BOOT_ARGS};

pub(super) fn check(source: &BootSource) -> Result<BootConfig, ConfigError> {
    let protocol = match source.boot_protocol.as_deref() {
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
        kernel: source.kernel_image_path.clone(),
        initrd: source.initrd_path.clone(),
        cmdline: source
            .boot_args
            .clone()
            .unwrap_or_else(|| DEFAULT_BOOT_ARGS.into()),
        protocol,
    };
    boot.check()?;
    Ok(boot)
}
