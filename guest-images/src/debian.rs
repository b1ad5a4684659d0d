//! The `debian` guest: a real Debian with its own init and a login, made by mmdebstrap from a mirror.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, RecipeFile, fingerprint, tool};

/// The release the recipe is written for.
pub const SUITE: &str = "bookworm";

/// What a Debian machine has beyond the essential packages: its own init, devices, messages between services, and
/// enough tools to look around.
const PACKAGES: [&str; 8] = [
    "dbus",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "less",
    "procps",
    "systemd-sysv",
    "udev",
];

/// `usrmerge` would bring all of Perl along to merge what mmdebstrap lays out merged.
const INSTEAD_OF_USRMERGE: &str = "usr-is-merged";
const MERGED_USR_HOOK: &str = "/usr/share/mmdebstrap/hooks/maybe-merged-usr";

/// As Debian's own container images do: manuals and translations stay out, licences stay in.
const DPKG_OPTIONS: [&str; 4] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// Size of the root file system in bytes; the image is sparse.
const SIZE: u64 = 1 << 30;
const LABEL: &str = "debian-root";
const UUID: &str = "7f1c1e0a-5f27-4d3a-9c55-646562696e72";

/// No file of the image is newer, so that two builds of the same packages agree: the day of the release, in seconds
/// since 1970.
const EPOCH: u64 = 1_686_355_200;

const PACK: &str = include_str!("../debian/pack.sh");

macro_rules! recipe {
    ($path:literal, $file:literal) => {
        RecipeFile {
            path: $path,
            mode: 0o644,
            content: include_str!(concat!("../debian/etc/", $file)),
        }
    };
}

const FILES: [RecipeFile; 5] = [
    recipe!("etc/default/locale", "locale"),
    recipe!("etc/fstab", "fstab"),
    recipe!("etc/hostname", "hostname"),
    recipe!("etc/hosts", "hosts"),
    recipe!("etc/issue", "issue"),
];

/// Where packages come from, and where to work.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// Base URI of a Debian mirror, which the guest will use as well; `None` for mmdebstrap's own choice.
    pub mirror: Option<&'a str>,
    /// Keyring that signs the mirror's release; `None` for apt's own.
    pub keyring: Option<&'a Path>,
    /// A folder for some 400 MB of temporary files.
    pub scratch: &'a Path,
    /// Takes the tools' output.
    pub log: &'a Path,
}

/// What decides the image besides the packages' versions.
pub fn recipe() -> String {
    fingerprint(
        &FILES,
        &[
            SUITE,
            PACK,
            &format!("{PACKAGES:?} {DPKG_OPTIONS:?} {SIZE} {UUID} {EPOCH}"),
        ],
    )
}

/// Makes the root file system at `out`: installs the packages into an archive (by far the longest part, needs the
/// network), then packs it.
pub fn build(inputs: &Inputs<'_>, out: &Path) -> Result<(), Error> {
    tool::empty_folder(inputs.scratch)?;
    let archive = install_packages(inputs)?;
    pack(inputs, &archive, out)?;
    fs::remove_dir_all(inputs.scratch).map_err(Error::io("remove", inputs.scratch))
}

fn install_packages(inputs: &Inputs<'_>) -> Result<PathBuf, Error> {
    let archive = inputs.scratch.join("root.tar");
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--variant=minbase", "--architectures=amd64", "--format=tar"])
        .arg(format!(
            "--include={},{INSTEAD_OF_USRMERGE}",
            PACKAGES.join(",")
        ))
        .arg(format!("--hook-dir={MERGED_USR_HOOK}"))
        .args(DPKG_OPTIONS.map(|option| format!("--dpkgopt={option}")))
        // A mirror frozen in time is as good as one of today.
        .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
        .env("SOURCE_DATE_EPOCH", EPOCH.to_string());
    if let Some(keyring) = inputs.keyring {
        mmdebstrap.arg(format!("--keyring={}", keyring.display()));
    }
    mmdebstrap.arg(SUITE).arg(&archive);
    if let Some(mirror) = inputs.mirror {
        mmdebstrap.arg(format!("deb {mirror} {SUITE} main"));
    }
    tool::run(&mut mmdebstrap, inputs.log)?;
    Ok(archive)
}

fn pack(inputs: &Inputs<'_>, archive: &Path, out: &Path) -> Result<(), Error> {
    let files = inputs.scratch.join("files");
    tool::write_files(&files, &FILES)?;
    let unfinished = tool::unfinished(out);
    tool::sparse_file(&unfinished, SIZE)?;

    let mut shell = if is_root() {
        Command::new("sh")
    } else {
        Command::new("fakeroot")
    };
    if !is_root() {
        shell.arg("sh");
    }
    shell
        .args(["-c", PACK, "pack.sh"])
        .arg(archive)
        .arg(&files)
        .arg(inputs.scratch.join("root"));
    shell
        .arg(&unfinished)
        .args([LABEL, UUID])
        .env("SOURCE_DATE_EPOCH", EPOCH.to_string())
        .env("E2FSPROGS_FAKE_TIME", EPOCH.to_string());
    tool::run(&mut shell, inputs.log)?;
    tool::finish(&unfinished, out)
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    // The owner of a process's folder is its effective user.
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_issue_states_the_password_that_pack_sets() {
        let issue = FILES
            .iter()
            .find(|file| file.path == "etc/issue")
            .unwrap()
            .content;
        assert!(issue.contains("password: daruma"));
        assert!(PACK.contains("Root's password is `daruma`"));
    }

    #[test]
    fn pack_is_valid_shell() {
        let status = Command::new("sh")
            .args(["-n", "-c", PACK])
            .status()
            .unwrap();
        assert!(status.success());
    }
}
