//! How much of the host a guest may use: limits of a cgroup (version 2) of its own.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::config::VmConfig;
use crate::layout::MIB;

/// Memory of a VMM beyond its guest's, beside what grows with the guest: threads, queues, buffers, the page cache of what
/// it reads.
const OVERHEAD: u64 = 64 * MIB;
/// The kernel's tables for a guest's memory are at most this part of it: two page tables and KVM's own (1/512 each), and
/// KVM's notes for each page.
const TABLES: u64 = 64;
/// Tasks of a VMM beside those that grow with the guest.
const TASKS: u64 = 32;
/// Tasks of one device: its thread, and io_uring's workers.
const TASKS_OF_DEVICE: u64 = 64;

/// Why a cgroup does not limit.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// It is none, or not ours.
    #[error("Cannot write \"{value}\" to {path}: is it a cgroup (version 2) that this user may change?", path = .path.display())]
    Write {
        /// What.
        value: String,
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// How much one guest may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: u64,
    /// Threads.
    pub tasks: u64,
}

impl Limits {
    /// What a VMM with this guest needs, and not more.
    pub fn new(config: &VmConfig) -> Self {
        let ram = config.memory.bytes();
        let devices = u64::try_from(config.virtio_devices()).unwrap_or(u64::MAX);
        Self {
            memory: ram + ram / TABLES + OVERHEAD,
            tasks: TASKS + u64::from(config.vcpus.get()) + TASKS_OF_DEVICE.saturating_mul(devices),
        }
    }
}

/// A cgroup with its limits set, to be joined.
pub(super) struct Group {
    path: PathBuf,
    processes: File,
}

/// Sets the limits of the cgroup `folder`. Where the host does not have one of them, the log says so.
pub(super) fn prepare(folder: &Path, limits: Limits) -> Result<Group, CgroupError> {
    for (name, value) in [
        ("memory.max", limits.memory.to_string()),
        ("pids.max", limits.tasks.to_string()),
        // All of a VMM or nothing of it.
        ("memory.oom.group", "1".into()),
    ] {
        let path = folder.join(name);
        // Not made if there is none: a cgroup's folder takes no files.
        let file = File::options().write(true).open(&path);
        match file.and_then(|mut file| file.write_all(value.as_bytes())) {
            Ok(()) => {}
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && folder.join("cgroup.procs").exists() =>
            {
                log::warn!(
                    "{} does not exist, so the guest is not limited by it: is the controller enabled?",
                    path.display()
                );
            }
            Err(source) => {
                return Err(CgroupError::Write {
                    value,
                    path,
                    source,
                });
            }
        }
    }
    let path = folder.join("cgroup.procs");
    let processes = File::options().write(true).open(&path);
    let processes = processes.map_err(|source| CgroupError::Write {
        value: "0".into(),
        path: path.clone(),
        source,
    })?;
    Ok(Group { path, processes })
}

impl Group {
    /// Moves this process there.
    pub(super) fn join(mut self) -> Result<(), CgroupError> {
        self.processes
            .write_all(b"0")
            .map_err(|source| CgroupError::Write {
                value: "0".into(),
                path: self.path,
                source,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::firecracker;

    #[test]
    fn limits_grow_with_the_guest() {
        let limits = |memory: u32| {
            let text = format!(
                r#"{{"boot-source": {{"kernel_image_path": "k"}}, "machine-config": {{"vcpu_count": 2, "mem_size_mib": {memory}}}}}"#
            );
            let document = firecracker::parse(text.as_bytes(), Path::new("t")).unwrap();
            Limits::new(&firecracker::guest(&document, true).unwrap())
        };
        assert_eq!(limits(128).memory, (128 + 2 + 64) * MIB);
        assert_eq!(limits(1024).memory, (1024 + 16 + 64) * MIB);
        assert_eq!(limits(128).tasks, 34);
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits {
            memory: 1,
            tasks: 1,
        };
        assert!(prepare(folder.path(), limits).is_err());
    }
}
