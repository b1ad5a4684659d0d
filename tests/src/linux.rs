//! Small Linux systems for tests: BusyBox in an initramfs, with a script as their first process.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use firmware_glue::initramfs;

use crate::Image;
use crate::image::{self, place};

/// An initramfs of BusyBox, the script `init` and `more` programs.
pub fn initramfs(busybox: &[u8], init: &str, more: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut builder = initramfs::Builder::new();
    for folder in ["bin", "dev", "disk", "proc", "run"] {
        builder.dir(folder, 0o755)?;
    }
    builder.char_device("dev/console", 0o600, 5, 1)?;
    builder.file("bin/busybox", 0o755, busybox.to_vec())?;
    builder.file("init", 0o755, init.as_bytes().to_vec())?;
    for (path, data) in more {
        builder.file(path, 0o755, data.to_vec())?;
    }
    Ok(builder.build()?)
}

/// The flash guest's BusyBox, unpacked in `folder`.
pub fn busybox(image: &Image, folder: &Path) -> Result<Vec<u8>> {
    let rom = image.read("daruma.rom")?;
    let (offset, len) = place(&rom, "guest/pocket/root.erofs")?;
    let erofs = folder.join("root.erofs");
    fs::write(&erofs, &rom[offset..offset + len])?;
    let root = folder.join("root");
    let mut command = Command::new("fsck.erofs");
    command.arg(format!("--extract={}", root.display()));
    image::run(command.arg("--no-preserve").arg(&erofs))?;
    Ok(fs::read(root.join("bin/busybox"))?)
}
