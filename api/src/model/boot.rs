//! `boot-source`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What the guest boots.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel's image.
    pub kernel_image_path: PathBuf,
    /// The initial RAM file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
    /// Ours: `"auto"`, `"pvh"`, `"linux64"` or `"multiboot"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_protocol: Option<String>,
}
