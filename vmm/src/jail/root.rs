//! The jail's root folder: an empty one, or one that the user gave.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, chroot, fchdir, pivot_root};

use super::JailError;

/// Folders of which every host has one, to mount on; nothing in them is looked at.
const PLACES: [&str; 4] = ["/proc", "/tmp", "/dev", "/run"];

/// No devices, programs or other users' rights on any mount of the jail's.
const HARMLESS: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

fn failed(what: &'static str, path: &Path) -> impl FnOnce(Errno) -> JailError {
    let path = path.to_owned();
    move |error| JailError::Root {
        what,
        path,
        source: error.into(),
    }
}

/// Makes `root` the root folder, or one in which there is nothing but the folders `sockets`.
pub(super) fn change(root: Option<&Path>, sockets: &[PathBuf]) -> Result<(), JailError> {
    const NONE: Option<&str> = None;
    let slash = Path::new("/");
    // Nothing that we mount is seen outside.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NONE, slash, NONE, private, NONE).map_err(failed("make mounts private below", slash))?;
    let place = match root {
        Some(root) => {
            bind(root, root)?;
            root.to_owned()
        }
        None => empty(sockets)?,
    };
    chdir(&place).map_err(failed("go to", &place))?;
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH).map_err(failed("let go of the old", slash))?,
        // The kernel's first file system, out of which an initramfs runs, cannot be moved: it is covered.
        Err(Errno::EINVAL) => {
            mount(Some("."), slash, NONE, MsFlags::MS_MOVE, NONE)
                .map_err(failed("cover", slash))?;
            chroot(".").map_err(failed("change to", &place))?;
        }
        Err(error) => return Err(failed("change to", &place)(error)),
    }
    chdir(slash).map_err(failed("go to", slash))
}

/// A folder with nothing in it but `sockets`, and nobody can put anything there.
fn empty(sockets: &[PathBuf]) -> Result<PathBuf, JailError> {
    let place = PLACES.iter().map(Path::new).find(|place| place.is_dir());
    let place = place.unwrap_or_else(|| Path::new("/sys"));
    // What is mounted must be found, whatever it is mounted on.
    let folders: Vec<_> = sockets.iter().map(fs::File::open).collect();
    let mut flags = HARMLESS;
    if sockets.is_empty() {
        flags |= MsFlags::MS_RDONLY;
    }
    let before = umask(Mode::empty());
    let mounted = mount(
        Some("jail"),
        place,
        Some("tmpfs"),
        flags,
        Some("size=64k,nr_inodes=64,mode=0555"),
    );
    mounted.map_err(failed("mount an empty folder on", place))?;
    for (path, folder) in sockets.iter().zip(folders) {
        let wrong = |source| JailError::Root {
            what: "keep the folder",
            path: path.clone(),
            source,
        };
        let folder = folder.map_err(wrong)?;
        let inside = place.join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir_all(&inside).map_err(wrong)?;
        // Its path may lead through what is covered now.
        fchdir(&folder).map_err(failed("go to", path))?;
        bind(Path::new("."), &inside)?;
    }
    if !sockets.is_empty() {
        let again = HARMLESS | MsFlags::MS_RDONLY | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
        mount(None::<&str>, place, None::<&str>, again, None::<&str>)
            .map_err(failed("write-protect", place))?;
    }
    umask(before);
    Ok(place.to_owned())
}

/// Mounts `folder` at `place`.
fn bind(folder: &Path, place: &Path) -> Result<(), JailError> {
    const NONE: Option<&str> = None;
    mount(Some(folder), place, NONE, MsFlags::MS_BIND, NONE).map_err(failed("mount", folder))?;
    let again = HARMLESS | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(NONE, place, NONE, again, NONE).map_err(failed("restrict", place))
}
