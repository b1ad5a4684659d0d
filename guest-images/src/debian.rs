//! The `debian` guest: a real Debian with its own kernel, initial RAM disk, init and a login, made by mmdebstrap from a
//! mirror. Debian's own tools write its boot entry. No driver in it is made for Daruma; what is ours
//! are settings, the files listed below, among them longer timeouts of systemd for emulated processors (`patience.conf`),
//! and the agent, without which the guest runs as well.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpt::partition_types;
use uuid::Uuid;

use crate::table::{self, MARGIN, Part, Table};
use crate::{Error, RecipeFile, agent, fingerprint, tool};

/// The release the recipe is written for.
pub const SUITE: &str = "bookworm";

/// What a Debian machine has beyond the essential packages: its own init, devices, messages between services, a network,
/// and enough tools to look around. `busybox` and `zstd` are what `initramfs-tools` recommends and a stock image has.
const PACKAGES: [&str; 13] = [
    "busybox",
    "dbus",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "less",
    "procps",
    "systemd-resolved",
    "systemd-sysv",
    "u-boot-menu",
    "udev",
    "zstd",
];

/// The kernel that Debian makes for virtual machines: 6.1 in this release.
pub const KERNEL: &str = "linux-image-cloud-amd64";
/// The newer one that Debian keeps for the same release.
pub const NEWER_KERNEL: &str = "linux-image-6.12-cloud-amd64";

/// Whoever has no address yet asks for one.
const SERVICES: [&str; 1] = ["systemd-networkd.service"];

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

/// Size of the disk in bytes; the image is sparse.
const SIZE: u64 = 2 << 30;
const BLOCK: u64 = 4096;
const LABEL: &str = "debian-root";

// Set by hand: the same packages give the same bytes.
const UUID: &str = "7f1c1e0a-5f27-4d3a-9c55-646562696e72";
const DISK_GUID: Uuid = Uuid::from_u128(0x7f1c1e0a_5f27_4d3a_9c55_646562696e00);
/// `etc/fstab` names the partition by it, and with that the boot entry.
const PARTITION_GUID: Uuid = Uuid::from_u128(0x7f1c1e0a_5f27_4d3a_9c55_646562696e01);

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

const FILES: [RecipeFile; 9] = [
    recipe!("etc/default/locale", "locale"),
    recipe!("etc/fstab", "fstab"),
    recipe!("etc/hostname", "hostname"),
    recipe!("etc/hosts", "hosts"),
    recipe!("etc/issue", "issue"),
    recipe!("etc/systemd/network/80-wired.network", "wired.network"),
    recipe!("etc/systemd/system.conf.d/patience.conf", "patience.conf"),
    recipe!("etc/systemd/system.conf.d/watchdog.conf", "watchdog.conf"),
    RecipeFile {
        path: "etc/systemd/system/daruma-agent.service",
        mode: 0o644,
        content: agent::UNIT,
    },
];

/// Where packages come from, and where to work.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// Lines of a sources.list, which the guest will use as well; mmdebstrap's own choice if there are none.
    pub sources: &'a [String],
    /// Keyring that signs the mirror's release; `None` for apt's own.
    pub keyring: Option<&'a Path>,
    /// The agent's program.
    pub agent: &'a Path,
    /// The kernels' packages. The newest of them is what the boot entry starts.
    pub kernels: &'a [&'a str],
    /// A folder for some 800 MB of temporary files.
    pub scratch: &'a Path,
    /// Takes the tools' output.
    pub log: &'a Path,
}

/// What decides the image besides the packages' versions.
pub fn recipe(kernels: &[&str]) -> String {
    let rest = format!(
        "{kernels:?} {PACKAGES:?} {SERVICES:?} {DPKG_OPTIONS:?} {SIZE} {UUID} {DISK_GUID} {PARTITION_GUID} {EPOCH}"
    );
    let decisive = [&[SUITE, PACK, &rest][..], &agent::SOURCES].concat();
    fingerprint(&FILES, &decisive)
}

/// Makes the disk at `out`: installs the packages into an archive (by far the longest part, needs the
/// network), then packs it.
pub fn build(inputs: &Inputs<'_>, out: &Path) -> Result<(), Error> {
    tool::empty_folder(inputs.scratch)?;
    let archive = install_packages(inputs)?;
    pack(inputs, &archive, out)?;
    fs::remove_dir_all(inputs.scratch).map_err(Error::io("remove", inputs.scratch))
}

fn install_packages(inputs: &Inputs<'_>) -> Result<PathBuf, Error> {
    let archive = inputs.scratch.join("root.tar");
    // Where the root is decides what the boot entry says and which checker the initial RAM disk has: it must be known
    // before the kernel is installed.
    let fstab = inputs.scratch.join("fstab");
    let text = FILES.iter().find(|file| file.path == "etc/fstab");
    fs::write(&fstab, text.map_or("", |file| file.content)).map_err(Error::io("write", &fstab))?;
    let packages: Vec<&str> = PACKAGES
        .iter()
        .chain(inputs.kernels)
        .copied()
        .chain([INSTEAD_OF_USRMERGE])
        .collect();
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--variant=minbase", "--architectures=amd64", "--format=tar"])
        .arg(format!("--include={}", packages.join(",")))
        .arg(format!(
            "--essential-hook=upload '{}' /etc/fstab",
            fstab.display()
        ))
        .arg(format!(
            "--customize-hook=chroot \"$1\" systemctl --quiet enable {}",
            SERVICES.join(" ")
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
    mmdebstrap.args(inputs.sources);
    tool::run(&mut mmdebstrap, inputs.log)?;
    Ok(archive)
}

fn pack(inputs: &Inputs<'_>, archive: &Path, out: &Path) -> Result<(), Error> {
    let files = inputs.scratch.join("files");
    tool::write_files(&files, &FILES)?;
    let program = files.join(agent::PLACE);
    if let Some(folder) = program.parent() {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    fs::copy(inputs.agent, &program).map_err(Error::io("write", &program))?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))
        .map_err(Error::io("set the mode of", &program))?;
    let unfinished = tool::unfinished(out);
    let table = Table {
        size: SIZE,
        disk: DISK_GUID,
        partitions: &[Part {
            guid: PARTITION_GUID,
            kind: partition_types::LINUX_ROOT_X64,
            name: LABEL,
            size: table::partition_size(SIZE),
        }],
    };
    table.create(&unfinished)?;

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
        .args([MARGIN, table::partition_size(SIZE) / BLOCK, BLOCK].map(|number| number.to_string()))
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
    fn fstab_names_the_partition_of_the_table() {
        let fstab = FILES.iter().find(|file| file.path == "etc/fstab").unwrap();
        let first = fstab.content.split_whitespace().next().unwrap();
        assert_eq!(first, format!("PARTUUID={PARTITION_GUID}"));
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
