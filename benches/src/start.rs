//! Start of one guest: `daruma-vmm` beside QEMU's leanest machine type, in one host, in one run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use firmware_glue::initramfs::Builder;
use serde_json::Value;
use tests::qemu::{Builder as Machine, Clock as MachineClock};
use tests::{Image, image};

use crate::metric::{Clock, Metric, median};

/// The peer, as Debian and Ubuntu install it.
const QEMU: &str = "qemu-system-x86_64";

/// Size of the disk that carries the peer into the laboratory, in MiB.
const PEER_DISK_MIB: u64 = 400;

/// Measures `vmm.*`: starts are the median of three, in the order they are told in `lab`.
pub fn measure(image: &Image, lab: &Path) -> Result<Vec<Metric>> {
    let folder = tempfile::tempdir()?;
    let initramfs = folder.path().join("lab.cpio.zst");
    fs::write(&initramfs, laboratory(image, lab)?)?;
    let disk = peer_disk(folder.path())?;
    let machine = Machine::trio(
        &image.path("bzImage"),
        &initramfs,
        "console=ttyS0 quiet swiotlb=2048",
    )
    .clock(MachineClock::Virtual)
    .disk(&disk, false)
    .boot()?;
    let (_, console) = machine.wait_off()?;
    let samples: Vec<Value> = console
        .lines()
        .filter_map(|line| line.split_once("lab: {"))
        .filter_map(|(_, json)| serde_json::from_str(&format!("{{{}", json.trim_end())).ok())
        .collect();
    let middle = |vmm: &str, field: &str| -> Option<f64> {
        let ours = samples.iter().filter(|sample| sample["vmm"] == vmm);
        median(ours.filter_map(|sample| sample[field].as_f64()).collect())
    };
    let need = |vmm: &str, field: &str| {
        middle(vmm, field)
            .with_context(|| format!("The laboratory did not measure {vmm}; it said:\n{console}"))
    };
    if !console.contains("lab: done") {
        bail!("The laboratory did not finish; it said:\n{console}");
    }
    let ms = |us: f64| us / 1000.0;
    let total = need("daruma", "boot_timer_us")?;
    let own = need("daruma", "running_us")?;
    let qemu = need("qemu", "marker_us")?;
    let virtual_ms = |name: &str, us: f64| Metric::new(name, ms(us), "ms", Clock::Virtual);
    Ok(vec![
        virtual_ms("vmm.start_to_init_ms", total)
            .at_most(120.0)
            .peer("qemu", ms(qemu)),
        virtual_ms("vmm.start_to_init_ms.vmm", own),
        virtual_ms("vmm.start_to_init_ms.kernel", total - own),
        virtual_ms(
            "vmm.start_to_init_bzimage_ms",
            need("daruma-bzimage", "boot_timer_us")?,
        ),
        Metric::new(
            "vmm.overhead_kib",
            need("daruma", "overhead_kib")?,
            "KiB",
            Clock::None,
        )
        .at_most(5.0 * 1024.0)
        .peer("qemu", need("qemu", "overhead_kib")?),
    ])
}

/// The laboratory: our VMM, a guest kernel in both forms, a guest whose init is `lab` itself.
fn laboratory(image: &Image, lab: &Path) -> Result<Vec<u8>> {
    let lab = fs::read(lab).with_context(|| format!("Cannot read {}", lab.display()))?;
    let mut guest = Builder::new();
    guest
        .char_device("dev/console", 0o600, 5, 1)?
        .char_device("dev/port", 0o600, 1, 4)?;
    guest.file("init", 0o755, lab.clone())?;
    let mut archive = Builder::new();
    archive
        .char_device("dev/console", 0o600, 5, 1)?
        .dir("peer", 0o755)?
        .file("init", 0o755, lab)?
        .file("bin/daruma-vmm", 0o755, image.read("daruma")?)?
        .file("lab/vmlinux", 0o644, image.read("vmlinux")?)?
        .file("lab/bzImage", 0o644, image.read("bzImage")?)?
        .file("lab/guest.cpio", 0o644, guest.build()?)?;
    Ok(archive.build()?)
}

/// A disk with the installed QEMU, the libraries it needs, and its firmware.
fn peer_disk(folder: &Path) -> Result<PathBuf> {
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
    for name in ["bios-microvm.bin", "qboot.rom", "bios-256k.bin"] {
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
    image::ext4(&tree, "peer", PEER_DISK_MIB, &disk)?;
    Ok(disk)
}

fn which(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|path| path.exists())
        .with_context(|| format!("{program} is not installed"))
}
