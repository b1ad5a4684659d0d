//! The file systems that every Linux program expects.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

/// Mounts them all; returns what did not work, one line each. A missing one is not fatal here, but what needs it will say
/// so too.
pub fn mount_all() -> Vec<String> {
    let list = [
        ("proc", "/proc", QUIET | MsFlags::MS_NODEV, ""),
        ("sysfs", "/sys", QUIET | MsFlags::MS_NODEV, ""),
        ("devtmpfs", "/dev", QUIET, "mode=0755"),
        ("devpts", "/dev/pts", QUIET, "mode=0620,ptmxmode=0666"),
        (
            "tmpfs",
            "/run",
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            "mode=0755",
        ),
        ("cgroup2", "/sys/fs/cgroup", QUIET | MsFlags::MS_NODEV, ""),
    ];
    list.into_iter()
        .filter_map(|(kind, target, flags, options)| {
            // The kernel makes some of the folders.
            let _ = fs::create_dir_all(target);
            match mount(Some(kind), target, Some(kind), flags, Some(options)) {
                // The kernel mounts /dev by itself if it is configured so.
                Ok(()) | Err(Errno::EBUSY) => None,
                Err(error) => Some(format!("cannot mount {kind} on {target}: {error}")),
            }
        })
        .collect()
}

/// A tmpfs for copies of flash files. Large pages make a kernel of 20 MB cost ten page faults in place of 5,000.
pub fn mount_flash_copies(folder: &Path) {
    let _ = fs::create_dir_all(folder);
    let options = Some("mode=0700,huge=within_size");
    // Without it, or on a kernel without large pages, the copies go to /run itself.
    let _ = mount(
        Some("tmpfs"),
        folder,
        Some("tmpfs"),
        QUIET | MsFlags::MS_NODEV,
        options,
    );
}
