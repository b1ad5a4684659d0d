//! A cgroup (version 2) for each guest, in which its VMM limits itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

/// What the VMMs' limits are made of.
const CONTROLLERS: [&str; 3] = ["+memory", "+pids", "+cpu"];

/// The folder of the cgroup of `guest`, which is made if need be.
///
/// # Errors
/// There is no cgroup version 2 here, or this user may not make one.
pub fn folder(guest: &str) -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mount(&mounts).ok_or(io::ErrorKind::NotFound)?;
    let parent = if geteuid().is_root() {
        mount.to_owned()
    } else {
        // Only what was delegated to this user, if anything.
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        mount.join(own.ok_or(io::ErrorKind::NotFound)?)
    };
    let all = parent.join("daruma");
    let folder = all.join(guest);
    if folder.is_dir() {
        return Ok(folder);
    }
    enable(&parent);
    make(&all)?;
    enable(&all);
    make(&folder)?;
    Ok(folder)
}

/// Gives the groups in `folder` what can be limited there. A controller that there is none of is missed by the VMM, which
/// says so.
fn enable(folder: &Path) {
    for controller in CONTROLLERS {
        let _ = fs::write(folder.join("cgroup.subtree_control"), controller);
    }
}

fn make(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Where cgroup version 2 is mounted, by `mounts` (proc(5), `mountinfo`).
fn mount(mounts: &str) -> Option<&Path> {
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let place = mount.split(' ').nth(4)?;
        kind.starts_with("cgroup2 ").then(|| Path::new(place))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_two_is_found_beside_version_one() {
        let mounts = "\
            30 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
            32 30 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount(mounts), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(mount("31 30 0:27 / /a rw - cgroup cgroup rw"), None);
    }
}
