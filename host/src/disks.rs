//! File systems labelled `daruma` on whatever block devices there are, mounted as they appear.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};
use nix::unistd::{AccessFlags, access};

use crate::clock;

/// Partition or file system label that makes a file system ours.
const LABEL: &str = "daruma";
/// A disk that was not seen this long after the last new one is not waited for: USB and SATA need a second or two.
const SETTLE: Duration = Duration::from_secs(5);

/// The labelled file systems of this machine.
#[derive(Debug)]
pub struct Disks {
    /// Mounts go below it as `0`, `1` … ; `None` if there is a fixed folder instead.
    mount_root: Option<PathBuf>,
    /// Held while devices are read and mounted, which may take long: never locked by the supervisor's loop.
    state: Mutex<State>,
    /// What was found, for the loop: locked for a moment only.
    found: Mutex<Found>,
}

/// What the supervisor's loop may ask for at any time.
#[derive(Debug, Default)]
struct Found {
    mounted: Vec<PathBuf>,
    remarks: Vec<String>,
}

#[derive(Debug)]
struct State {
    folders: Vec<PathBuf>,
    known: HashSet<String>,
    newest: Duration,
}

impl Disks {
    /// The disks of the machine this runs on as process 1.
    #[must_use]
    pub fn of_machine(mount_root: PathBuf) -> Self {
        Self::new(Some(mount_root), Vec::new())
    }

    /// A folder that stands for a labelled file system.
    #[must_use]
    pub fn folder(folder: PathBuf) -> Self {
        Self::new(None, vec![folder])
    }

    fn new(mount_root: Option<PathBuf>, folders: Vec<PathBuf>) -> Self {
        let state = State {
            folders,
            known: HashSet::new(),
            newest: clock::now(),
        };
        Self {
            mount_root,
            state: Mutex::new(state),
            found: Mutex::default(),
        }
    }

    /// Looks for new devices, then for `path` in every labelled file system.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<PathBuf> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(root) = &self.mount_root {
            state.mount_new(root, &self.found);
        }
        state
            .folders
            .iter()
            .map(|folder| folder.join(path))
            .find(|path| path.exists())
    }

    /// Looks for new devices, then for a place for the folder `path`: where it is, or could be made.
    #[must_use]
    pub fn place(&self, path: &str) -> Option<PathBuf> {
        if let Some(found) = self.find(path) {
            return Some(found);
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut folders = state.folders.iter();
        let writable = |folder: &&PathBuf| access(folder.as_path(), AccessFlags::W_OK).is_ok();
        Some(folders.find(writable)?.join(path))
    }

    /// Whether nothing new is to be expected.
    #[must_use]
    pub fn settled(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.mount_root.is_none() || clock::now() >= state.newest + SETTLE
    }

    /// Where files are looked for, for messages.
    #[must_use]
    pub fn places(&self) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.folders.is_empty() {
            let mut known: Vec<_> = state.known.iter().map(String::as_str).collect();
            known.sort_unstable();
            let devices = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            return format!("no file system labelled '{LABEL}' (block devices: {devices})");
        }
        let folders: Vec<_> = state
            .folders
            .iter()
            .map(|folder| folder.display().to_string())
            .collect();
        folders.join(", ")
    }

    /// What went wrong or was found since the last call, one line each.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut found.remarks)
    }

    /// Unmounts what was mounted; to be called when no guest runs.
    pub fn unmount(&self) {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        for folder in &found.mounted {
            // The machine goes down in any case, and was told to write everything out.
            let _ = umount(folder);
        }
    }
}

impl State {
    fn mount_new(&mut self, root: &Path, found: &Mutex<Found>) {
        let Ok(entries) = fs::read_dir("/sys/class/block") else {
            return;
        };
        let mut new: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| !name.starts_with("loop") && !name.starts_with("ram"))
            .filter(|name| !self.known.contains(name))
            .collect();
        new.sort_unstable();
        for name in new {
            self.newest = clock::now();
            if is_labelled(&name) {
                self.mount(root, &name, found);
            }
            self.known.insert(name);
        }
    }

    fn mount(&mut self, root: &Path, name: &str, found: &Mutex<Found>) {
        let device = Path::new("/dev").join(name);
        let folder = root.join(self.folders.len().to_string());
        let flags = MsFlags::MS_NOATIME | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        let mounted = fs::create_dir_all(&folder).and_then(|()| {
            if is_mounted(&device, &folder) {
                // By an earlier life of this process.
                return Ok(());
            }
            let writable = mount(Some(&device), &folder, Some("ext4"), flags, None::<&str>);
            // A write-protected medium still serves read-only guests.
            let read_only = flags | MsFlags::MS_RDONLY;
            writable
                .or_else(|_| {
                    mount(
                        Some(&device),
                        &folder,
                        Some("ext4"),
                        read_only,
                        None::<&str>,
                    )
                })
                .map_err(io::Error::from)
        });
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        match mounted {
            Ok(()) => {
                found.mounted.push(folder.clone());
                self.folders.push(folder);
            }
            Err(error) => found.remarks.push(format!(
                "{} is labelled '{LABEL}' but cannot be mounted as ext4: {error}",
                device.display()
            )),
        }
    }
}

/// Whether the file system on `device` is the one at `folder`.
fn is_mounted(device: &Path, folder: &Path) -> bool {
    let numbers = (fs::metadata(device), fs::metadata(folder));
    matches!(numbers, (Ok(device), Ok(folder)) if device.rdev() == folder.dev())
}

/// Whether a block device is ours by its partition's label or that of its ext4 file system.
fn is_labelled(name: &str) -> bool {
    let uevent = fs::read_to_string(format!("/sys/class/block/{name}/uevent")).unwrap_or_default();
    if uevent
        .lines()
        .any(|line| line.strip_prefix("PARTNAME=") == Some(LABEL))
    {
        return true;
    }
    File::open(format!("/dev/{name}")).is_ok_and(|device| ext4_label(&device) == LABEL.as_bytes())
}

/// Label of an ext2, ext3 or ext4 file system; empty if there is none.
///
/// The superblock lies 1,024 bytes into the device; magic 0xEF53 at 0x38, label of at most 16 bytes at 0x78 (Linux,
/// Documentation/filesystems/ext4/super.rst).
fn ext4_label(device: &File) -> Vec<u8> {
    let mut superblock = [0; 0x88];
    if device.read_exact_at(&mut superblock, 1024).is_err()
        || superblock[0x38..0x3a] != [0x53, 0xef]
    {
        return Vec::new();
    }
    superblock[0x78..]
        .iter()
        .copied()
        .take_while(|byte| *byte != 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn label_of_a_real_ext4_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk");
        File::create(&image).unwrap().set_len(1 << 20).unwrap();
        assert_eq!(ext4_label(&File::open(&image).unwrap()), b"");
        let made = Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-L", LABEL])
            .arg(&image)
            .status();
        assert!(made.unwrap().success());
        assert_eq!(ext4_label(&File::open(&image).unwrap()), LABEL.as_bytes());
    }

    #[test]
    fn device_too_short_for_a_superblock_has_no_label() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("short");
        fs::write(&path, [0x53, 0xef]).unwrap();
        assert!(ext4_label(&File::open(&path).unwrap()).is_empty());
    }

    #[test]
    fn folder_stands_for_a_disk() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.img"), "x").unwrap();
        let disks = Disks::folder(folder.path().to_owned());
        assert_eq!(disks.find("a.img"), Some(folder.path().join("a.img")));
        assert_eq!(disks.find("b.img"), None);
        assert!(disks.settled());
    }
}
