//! What must be installed, how to see that it is, and which package brings it.

use std::path::Path;

use crate::tool;

/// How to see that something is there.
#[derive(Clone, Copy, Debug)]
pub enum Probe {
    Program(&'static str),
    File(&'static str),
}

/// One thing that must be installed.
#[derive(Clone, Copy, Debug)]
pub struct Requirement {
    pub probe: Probe,
    /// Package of Debian and Ubuntu.
    pub package: &'static str,
    pub why: &'static str,
}

impl Requirement {
    pub fn is_present(&self) -> bool {
        match self.probe {
            Probe::Program(name) => tool::which(name).is_some(),
            Probe::File(path) => Path::new(path).exists(),
        }
    }
}

const fn program(name: &'static str, package: &'static str, why: &'static str) -> Requirement {
    Requirement {
        probe: Probe::Program(name),
        package,
        why,
    }
}

const fn file(path: &'static str, package: &'static str, why: &'static str) -> Requirement {
    Requirement {
        probe: Probe::File(path),
        package,
        why,
    }
}

const KERNEL: &str = "builds the kernel";
const GUESTS: &str = "makes the guests' file systems";

const ALWAYS: [Requirement; 27] = [
    program(
        "qemu-system-x86_64",
        "qemu-system-x86",
        "is the machine the ROM boots in",
    ),
    program(
        "qemu-img",
        "qemu-utils",
        "makes and checks the disk images of tests",
    ),
    program(
        "acpiexec",
        "acpica-tools",
        "runs the guests' ACPI tables in tests",
    ),
    program(
        "strace",
        "strace",
        "sees which system calls the VMM makes in tests",
    ),
    program("cpio", "cpio", "lists our archives in tests"),
    program("gcc", "gcc", KERNEL),
    program("c++", "g++", "builds the engine of the fuzz targets"),
    program("make", "make", KERNEL),
    file("/usr/include/stdio.h", "libc6-dev", KERNEL),
    program("flex", "flex", KERNEL),
    program("bison", "bison", KERNEL),
    program("bc", "bc", KERNEL),
    program("perl", "perl-base", KERNEL),
    file("/usr/include/gelf.h", "libelf-dev", KERNEL),
    program(
        "xz",
        "xz-utils",
        "unpacks the kernel's source and measures its size",
    ),
    program("bzip2", "bzip2", "unpacks the kernel's source on Ubuntu"),
    program("zstd", "zstd", "compresses the kernel"),
    program("mkfs.erofs", "erofs-utils", GUESTS),
    program("mke2fs", "e2fsprogs", GUESTS),
    program("mmdebstrap", "mmdebstrap", GUESTS),
    file(
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
        "checks what Debian signed",
    ),
    program(
        "cbfstool",
        "coreboot-utils",
        "reads the ROM in tests, as coreboot does",
    ),
    file(
        "/usr/lib/systemd/boot/efi/linuxx64.efi.stub",
        "systemd-boot-efi",
        "is the stub of the UEFI program",
    ),
    file(
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "ovmf",
        "is the UEFI firmware of tests",
    ),
    program(
        "openssl",
        "openssl",
        "reads the key for Secure Boot in tests",
    ),
    program(
        "sbsign",
        "sbsigntool",
        "signs the UEFI program for Secure Boot in tests",
    ),
    program(
        "flashrom",
        "flashrom",
        "writes to a chip that it emulates itself in tests",
    ),
];

const WITHOUT_ROOT: [Requirement; 3] = [
    program("fakeroot", "fakeroot", GUESTS),
    // mmdebstrap takes the first where the kernel lets users have namespaces, the second elsewhere.
    program("newuidmap", "uidmap", GUESTS),
    program("fakechroot", "fakechroot", GUESTS),
];

/// Everything this user needs.
pub fn all() -> Vec<Requirement> {
    let mut all = ALWAYS.to_vec();
    if !is_root() {
        all.extend(WITHOUT_ROOT);
    }
    all
}

/// What is not there yet.
pub fn missing() -> Vec<Requirement> {
    all()
        .into_iter()
        .filter(|requirement| !requirement.is_present())
        .collect()
}

/// Whether this process may do everything.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    // The owner of a process's folder is its effective user.
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_sees_what_is_there_and_what_is_not() {
        assert!(program("sh", "dash", "").is_present());
        assert!(!program("no-such-program", "", "").is_present());
        assert!(file("/proc/self/exe", "", "").is_present());
        assert!(!file("/no/such/file", "", "").is_present());
    }
}
