//! The `pocket` guest: a Linux of one BusyBox on a compressed read-only root (erofs), small enough for flash.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::busybox::BusyBox;
use crate::{Error, RecipeFile, agent, fingerprint, tool};

/// Set by hand: the same root has the same bytes wherever it is built.
const UUID: &str = "7f1c1e0a-5f27-4d3a-9c55-0d6172756d61";

/// Folders that file systems are mounted on, or that programs expect.
const FOLDERS: [&str; 8] = [
    "bin",
    "dev",
    "etc/acpi/PWRF",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
];

/// One folder of programs under all its usual names; logs and locks live in memory.
const LINKS: [(&str, &str); 7] = [
    ("etc/resolv.conf", "../run/resolv.conf"),
    ("sbin", "bin"),
    ("usr", "."),
    ("var/lock", "../run"),
    ("var/log", "../run/log"),
    ("var/run", "../run"),
    ("var/tmp", "../tmp"),
];

macro_rules! recipe {
    ($path:literal, $mode:literal, $file:literal) => {
        RecipeFile {
            path: $path,
            mode: $mode,
            content: include_str!(concat!("../pocket/etc/", $file)),
        }
    };
}

const FILES: [RecipeFile; 12] = [
    recipe!("etc/fstab", 0o644, "fstab"),
    recipe!("etc/group", 0o644, "group"),
    recipe!("etc/hostname", 0o644, "hostname"),
    recipe!("etc/hosts", 0o644, "hosts"),
    recipe!("etc/inittab", 0o644, "inittab"),
    recipe!("etc/issue", 0o644, "issue"),
    recipe!("etc/passwd", 0o644, "passwd"),
    recipe!("etc/profile", 0o644, "profile"),
    recipe!("etc/rc", 0o755, "rc"),
    recipe!("etc/shadow", 0o600, "shadow"),
    recipe!("etc/udhcpc", 0o755, "udhcpc"),
    // acpid names its actions after the event: button class, then event data.
    recipe!("etc/acpi/PWRF/00000080", 0o755, "power-button"),
];

/// What decides the image besides the programs themselves.
pub fn recipe() -> String {
    let layout = format!("{UUID} {FOLDERS:?} {LINKS:?}");
    fingerprint(&FILES, &[&layout, include_str!("pocket.rs")])
}

/// Makes the erofs root at `out`, with the program `agent`. `scratch` is a folder to work in; `log` takes mkfs.erofs's output.
pub fn build(
    busybox: &BusyBox,
    agent: &Path,
    scratch: &Path,
    log: &Path,
    out: &Path,
) -> Result<(), Error> {
    let root = scratch.join("pocket-root");
    tool::empty_folder(&root)?;
    for folder in FOLDERS {
        let path = root.join(folder);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    }
    tool::write_files(&root, &FILES)?;
    // All folders of programs are this one.
    for (from, name) in [(busybox.path(), "busybox"), (agent, agent::NAME)] {
        let program = root.join("bin").join(name);
        fs::copy(from, &program).map_err(Error::io("write", &program))?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))
            .map_err(Error::io("set the mode of", &program))?;
    }
    let applets = busybox
        .applets()
        .iter()
        .map(|name| (format!("bin/{name}"), "busybox"));
    let links = LINKS.map(|(path, target)| (path.to_owned(), target));
    for (path, target) in links.into_iter().chain(applets) {
        let path = root.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        symlink(target, &path).map_err(Error::io("create", &path))?;
    }

    let unfinished = tool::unfinished(out);
    // An existing file would be overwritten in place and keep its length.
    fs::remove_file(&unfinished).ok();
    let mut mkfs = Command::new("mkfs.erofs");
    // No extended attributes (the kernels have none for erofs), clusters of 64 KiB, times of 1970.
    mkfs.args([
        "-x-1",
        "-zlz4hc,12",
        "-C65536",
        "-T0",
        "--all-root",
        "-U",
        UUID,
    ]);
    tool::run(mkfs.arg(&unfinished).arg(&root), log)?;
    tool::finish(&unfinished, out)?;
    fs::remove_dir_all(&root).map_err(Error::io("remove", &root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_covers_every_file() {
        let recipe = recipe();
        for RecipeFile { path, content, .. } in FILES {
            assert!(recipe.contains(path) && recipe.contains(content), "{path}");
        }
    }

    #[test]
    fn each_mount_of_fstab_has_its_folder_or_is_made_by_rc() {
        let text = |path| FILES.iter().find(|file| file.path == path).unwrap().content;
        for line in text("etc/fstab").lines() {
            let target = line.split_whitespace().nth(1).unwrap();
            let in_image = FOLDERS.contains(&target.trim_start_matches('/'));
            let made = text("etc/rc").split_whitespace().any(|word| word == target);
            assert!(in_image || made, "{target}");
        }
    }
}
