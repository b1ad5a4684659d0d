//! `cargo xtask doctor`: what this computer can do, what is missing, what takes space.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::emulator;
use crate::paths::Paths;
use crate::qemu;
use crate::requirements::{self, Probe};
use crate::tool;
use crate::ui;
use crate::world::World;

/// What a first `cargo xtask run` needs: kernel source and objects, root file systems, cargo's target folder.
const NEEDED_DISK: u64 = 6 << 30;

pub fn run(paths: &Paths) -> Result<ExitCode> {
    println!("This computer\n{}", world_text(&World::detect()));
    println!("\nPackages");
    let missing = tools();
    println!("\nRoom");
    room(paths);
    println!("\nCache: {}", paths.cache.display());
    cache(paths);
    Ok(if missing {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn world_text(world: &World) -> String {
    match world {
        World::Hardware { nested: true } => "  \
  Hardware KVM, and guests get virtualization too.
  `run`, `test`: the ROM boots with hardware virtualization, its guests as well.
  `daruma up`: guests run directly on this computer."
            .to_owned(),
        World::Hardware { nested: false } => "  \
  Hardware KVM, but guests get no virtualization (nested is off in kvm_intel or kvm_amd).
  `run`, `test`: the whole machine is emulated: slow, and complete.
  `daruma up`: guests run directly on this computer.
  To let the ROM use the hardware: load the module again with `nested=1`."
            .to_owned(),
        World::Software => "  \
  There is a /dev/kvm, but the processor shows neither VT-x nor AMD-V: this KVM is made in software.
  It emulates 16-bit and simple integer code and cannot run a whole 64-bit kernel.
  `run`, `test`: the whole machine is emulated by QEMU, with AMD-V for its guests: slow, and complete.
  `daruma up`: guests will not boot here; use `run`."
            .to_owned(),
        World::Absent { reason } => format!(
            "  No KVM: {reason}.
  `run`, `test`: the whole machine is emulated by QEMU, with AMD-V for its guests: slow, and complete.
  `daruma up`: not possible here; use `run`."
        ),
    }
}

/// Lists the requirements; whether any is missing.
fn tools() -> bool {
    let missing = requirements::missing();
    for requirement in requirements::all() {
        let what = match requirement.probe {
            Probe::Program(name) => name,
            Probe::File(path) => path,
        };
        if requirement.is_present() {
            println!("  ok       {what}");
        } else {
            println!(
                "  MISSING  {what}: {} ({})",
                requirement.why, requirement.package
            );
        }
    }
    if let Ok(version) = tool::output(Command::new("qemu-system-x86_64").arg("--version")) {
        println!("  {}", version.lines().next().unwrap_or_default());
        if emulator::installed_is_sound().is_ok_and(|sound| !sound) {
            println!(
                "  Its emulation of AMD-V loses guests: where the machine is emulated, `run` and `test` take QEMU 7.2 of \
                 Debian 12, unpacked into the cache."
            );
        }
    }
    if missing.is_empty() {
        println!("  Nothing is missing.");
    } else {
        let packages: Vec<_> = missing
            .iter()
            .map(|requirement| requirement.package)
            .collect();
        println!(
            "  `cargo xtask setup` installs them; by hand: apt-get install --no-install-recommends {}",
            packages.join(" ")
        );
    }
    !missing.is_empty()
}

fn room(paths: &Paths) {
    match available_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()) {
        Some(bytes) => {
            let needed = u64::from(qemu::MEMORY_MIB) << 20;
            let verdict = if bytes >= needed {
                "enough"
            } else {
                "TOO LITTLE"
            };
            println!(
                "  Memory: {} available, {verdict} (the machine has {})",
                ui::size(bytes),
                ui::size(needed)
            );
        }
        None => println!("  Memory: unknown"),
    }
    for (what, path) in [("target folder", &paths.target), ("cache", &paths.cache)] {
        match free_space(path) {
            Some(bytes) => {
                let verdict = if bytes >= NEEDED_DISK {
                    "enough"
                } else {
                    "TOO LITTLE for a first build"
                };
                println!(
                    "  Disk for the {what}: {} free, {verdict} ({} needed)",
                    ui::size(bytes),
                    ui::size(NEEDED_DISK)
                );
            }
            None => println!("  Disk for the {what}: unknown"),
        }
    }
}

fn cache(paths: &Paths) {
    let Ok(folder) = fs::read_dir(&paths.cache) else {
        println!(
            "  Empty: the first `run` builds the kernel (about 10 minutes on 2 processors) and downloads 250 MB."
        );
        return;
    };
    let mut parts: Vec<_> = folder
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    parts.sort();
    for part in parts {
        let name = part
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let note = match name.as_str() {
            "kernel" => "built kernels",
            "kernel-source" => "only needed to build a kernel again: may be removed",
            "debian" => "root file systems of the guest `debian`",
            "debian-two-kernels" => "one with two kernels, for tests",
            "emulator" => "QEMU 7.2, where the installed one loses guests",
            "pocket" => "root file systems of the guest `pocket`",
            "apt" => "package lists",
            "busybox" => "the program that `pocket` is made of",
            _ => "",
        };
        println!("  {:>12}  {name:<18} {note}", ui::size(occupied(&part)));
    }
    println!("  All of it may be removed at any time; it is made again when needed.");
}

/// Bytes on disk below `path`, holes not counted. Links are not followed.
fn occupied(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return own;
    }
    let Ok(folder) = fs::read_dir(path) else {
        return own;
    };
    own + folder
        .flatten()
        .map(|entry| occupied(&entry.path()))
        .sum::<u64>()
}

/// Free bytes for this user on the file system of `path` or of its nearest parent that exists.
fn free_space(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let text = tool::output(
        Command::new("df")
            .args(["--output=avail", "--block-size=1"])
            .arg(existing),
    )
    .ok()?;
    text.lines().nth(1)?.trim().parse().ok()
}

fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(
            available_memory("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(available_memory("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn holes_take_no_space() {
        let folder = tempfile::tempdir().unwrap();
        let sparse = fs::File::create(folder.path().join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        assert!(occupied(folder.path()) < 1 << 20);
    }

    #[test]
    fn every_world_says_what_it_means_for_each_command() {
        let no = World::Absent {
            reason: "because".into(),
        };
        for world in [
            World::Hardware { nested: true },
            World::Hardware { nested: false },
            World::Software,
            no,
        ] {
            let text = world_text(&world);
            assert!(
                text.contains("`run`, `test`") && text.contains("`daruma up`"),
                "{text}"
            );
        }
    }
}
