//! `manifest.json`: what is in the image, how large, with which SHA-256.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::cache;

/// What the image consists of. Sizes are in bytes.
#[derive(Debug, Serialize)]
pub struct Manifest {
    /// Kernel, initramfs and command line as they lie in flash: the host without its guests.
    pub payload_bytes: u64,
    /// A bzImage of the same kernel compressed by xz, for comparison.
    pub kernel_xz_bytes: u64,
    /// Package and version of the kernel's source.
    pub kernel_source: String,
    /// The artefacts, by file name.
    pub artefacts: BTreeMap<String, Artefact>,
    /// What the artefacts are made of, by part, as it lies in them: budgets are for these.
    pub parts: BTreeMap<String, u64>,
    /// The files in flash, by name.
    pub flash: BTreeMap<String, u64>,
    /// What is free in flash.
    pub flash_free_bytes: u64,
}

/// One file of the image.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Artefact {
    pub size: u64,
    /// In hexadecimal. Absent for the disk, which guests write to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Artefact {
    /// Of bytes that were just written.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            size: bytes.len() as u64,
            sha256: Some(cache::sha256(bytes)),
        }
    }
}

impl Manifest {
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("manifest.json");
        let text =
            serde_json::to_string_pretty(self).context("Could not write the manifest")? + "\n";
        fs::write(&path, text).with_context(|| format!("Could not write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_a_size_and_no_hash() {
        let disk = serde_json::to_string(&Artefact {
            size: 7,
            sha256: None,
        })
        .unwrap();
        assert_eq!(disk, r#"{"size":7}"#);
        let file = serde_json::to_string(&Artefact::of(b"")).unwrap();
        assert!(
            file.contains("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            "{file}"
        );
    }
}
