//! `daruma.efi`: the host as one UEFI program, with and without Debian's stub.

use std::fs;

use anyhow::{Context, Result};
use firmware_glue::uki::Uki;

/// systemd's stub for unified kernel images, of Debian's package systemd-boot-efi.
pub const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";

/// What boot menus call it.
const OS_RELEASE: &str = concat!(
    "ID=daruma\nNAME=Daruma\nPRETTY_NAME=\"Daruma ",
    env!("CARGO_PKG_VERSION"),
    "\"\nVERSION_ID=",
    env!("CARGO_PKG_VERSION"),
    "\n"
);

/// The same host in both ways.
pub struct Programs {
    pub with_stub: Vec<u8>,
    pub without_stub: Vec<u8>,
}

impl Programs {
    pub fn assemble(kernel: &[u8], initramfs: &[u8], cmdline: &str) -> Result<Self> {
        let uki = Uki {
            kernel,
            initramfs,
            cmdline,
            os_release: OS_RELEASE,
        };
        let stub = fs::read(STUB).with_context(|| format!("Could not read {STUB}"))?;
        Ok(Self {
            with_stub: uki
                .with_stub(&stub)
                .with_context(|| format!("Could not put the host into {STUB}"))?,
            without_stub: uki.without_stub()?,
        })
    }
}
