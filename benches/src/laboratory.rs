//! The laboratory: a machine in virtual time whose init starts VMMs, ours and the peer, and measures them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use firmware_glue::initramfs::Builder;
use serde_json::Value;
use tempfile::TempDir;
use tests::qemu::{Builder as Machine, Clock};
use tests::{Image, image};

use crate::metric::median;

/// The peer, as Debian and Ubuntu install it.
const QEMU: &str = "qemu-system-x86_64";

/// Size of the disk that carries the peer into the laboratory, in MiB.
const PEER_DISK_MIB: u64 = 400;

/// Everything a laboratory needs, made once.
pub struct Laboratory {
    kernel: PathBuf,
    folder: TempDir,
}

/// What a laboratory has reported.
pub struct Samples {
    samples: Vec<Value>,
    console: String,
}

impl Laboratory {
    /// A laboratory with the VMM and the kernel of `image`; `lab` is its init.
    pub fn new(image: &Image, lab: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let lab = fs::read(lab).with_context(|| format!("Cannot read {}", lab.display()))?;
        let guest = guest(&lab)?;
        fs::write(folder.path().join("guest.cpio"), &guest)?;
        fs::write(
            folder.path().join("lab.cpio"),
            laboratory(image, lab, guest)?,
        )?;
        peer_disk(folder.path())?;
        Ok(Self {
            kernel: image.path("bzImage"),
            folder,
        })
    }

    /// Makes one experiment in a machine of its own.
    pub fn run(&self, experiment: &str) -> Result<Samples> {
        let cmdline = format!("console=ttyS0 quiet swiotlb=2048 {experiment}");
        let machine = Machine::trio(&self.kernel, &self.path("lab.cpio"), &cmdline)
            .clock(Clock::Virtual)
            .disk(&self.path("peer.img"), false)
            .boot()?;
        let (_, console) = machine.wait_off()?;
        if !console.contains(&format!("lab: done {experiment}")) {
            bail!("The laboratory did not finish \"{experiment}\"; it said:\n{console}");
        }
        Ok(Samples::after("lab: ", console))
    }

    /// Does the work `words` in the guest alone, on a machine whose devices answer at once and cost no instructions:
    /// `devices` are QEMU's arguments for them.
    pub fn alone(&self, words: &str, devices: &[&str]) -> Result<Samples> {
        let cmdline = format!("console=ttyS0 quiet {words} alone");
        let machine = Machine::trio(&self.kernel, &self.path("guest.cpio"), &cmdline)
            .clock(Clock::Virtual)
            .memory_mib(128)
            .args(devices.iter().map(Into::into))
            .boot()?;
        let (_, console) = machine.wait_off()?;
        Ok(Samples::after("@done ", console))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Samples {
    /// The JSON objects on `console` that follow `mark`.
    pub(crate) fn after(mark: &str, console: String) -> Self {
        let samples = console
            .lines()
            .filter_map(|line| line.split_once(mark))
            .filter_map(|(_, json)| serde_json::from_str(json.trim_end()).ok())
            .filter(Value::is_object)
            .collect();
        Self { samples, console }
    }

    /// All samples for which every one of `fields` has the given value.
    pub fn of<'a>(&'a self, fields: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Value> {
        let matches = |sample: &&Value| fields.iter().all(|(name, value)| sample[*name] == *value);
        self.samples.iter().filter(matches)
    }

    /// The median of `field`, a name or a JSON pointer, in the samples that match `fields`.
    pub fn middle(&self, fields: &[(&str, &str)], field: &str) -> Result<f64> {
        let values = self.of(fields).filter_map(|sample| {
            let value = sample.get(field).or_else(|| sample.pointer(field));
            value.and_then(Value::as_f64)
        });
        median(values.collect()).with_context(|| {
            format!(
                "The laboratory did not measure {field} of {fields:?}; it said:\n{}",
                self.console
            )
        })
    }
}

/// The initramfs of a guest whose init is `lab`.
pub(crate) fn guest(lab: &[u8]) -> Result<Vec<u8>> {
    let mut guest = Builder::new();
    guest
        .char_device("dev/console", 0o600, 5, 1)?
        .char_device("dev/port", 0o600, 1, 4)?
        .file("init", 0o755, lab.to_vec())?;
    Ok(guest.build()?)
}

/// The laboratory's own: our VMM, a guest kernel in both forms, a guest.
fn laboratory(image: &Image, lab: Vec<u8>, guest: Vec<u8>) -> Result<Vec<u8>> {
    let mut archive = Builder::new();
    archive
        .char_device("dev/console", 0o600, 5, 1)?
        .dir("peer", 0o755)?
        .file("init", 0o755, lab)?
        .file("bin/daruma-vmm", 0o755, image.read("daruma")?)?
        .file("lab/vmlinux", 0o644, image.read("vmlinux")?)?
        .file("lab/bzImage", 0o644, image.read("bzImage")?)?
        .file("lab/guest.cpio", 0o644, guest)?;
    Ok(archive.build()?)
}

/// A disk with the installed QEMU, the libraries it needs, and its firmware.
fn peer_disk(folder: &Path) -> Result<()> {
    let tree = folder.join("peer");
    let libraries = tree.join("lib");
    fs::create_dir_all(&libraries)?;
    fs::create_dir_all(tree.join("share"))?;
    let program = which(QEMU)?;
    fs::copy(&program, tree.join("qemu"))?;
    let listed = Command::new("ldd")
        .arg(&program)
        .output()
        .context("Cannot start ldd")?;
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(path) = path.map(Path::new) {
            let name = path.file_name().context("A library without a name")?;
            fs::copy(path, libraries.join(name))?;
        }
    }
    for name in [
        "bios-microvm.bin",
        "qboot.rom",
        "bios-256k.bin",
        "pvh.bin",
        "linuxboot_dma.bin",
        "kvmvapic.bin",
    ] {
        let found = [
            "/usr/share/qemu",
            "/usr/share/seabios",
            "/usr/share/qemu-efi",
        ]
        .iter()
        .map(|place| Path::new(place).join(name))
        .find(|path| path.exists());
        if let Some(path) = found {
            fs::copy(path, tree.join("share").join(name))?;
        }
    }
    let disk = folder.join("peer.img");
    image::ext4(&tree, "peer", PEER_DISK_MIB, &disk)
}

fn which(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|path| path.exists())
        .with_context(|| format!("{program} is not installed"))
}
