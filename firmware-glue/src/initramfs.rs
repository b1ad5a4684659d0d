//! Writing an initramfs: a cpio archive in the "newc" format (Linux, Documentation/driver-api/early-userspace/
//! buffer-format.rst).
//!
//! The same contents give the same bytes: entries are sorted by path, every time is 0, every owner is root.

use std::collections::BTreeMap;
use std::io::Write as _;

use thiserror::Error;

const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;
const TYPE_CHARACTER: u32 = 0o020_000;
const TYPE_BLOCK: u32 = 0o060_000;
const TYPE_MASK: u32 = 0o170_000;
const PERMISSIONS: u32 = 0o7777;
/// The kernel's limit for a path in an archive (PATH_MAX), NUL included.
const PATH_MAX: usize = 4096;

/// Why an initramfs cannot be written.
#[derive(Debug, Error)]
pub enum InitramfsError {
    /// The path is empty, absolute, too long, or has empty, `.` or `..` parts.
    #[error(
        "{path:?} cannot be a path in an initramfs: it must be relative, without empty, \".\" or \"..\" parts"
    )]
    BadPath {
        /// The path.
        path: String,
    },
    /// Two entries have one path.
    #[error("The initramfs has two entries {path}")]
    Duplicate {
        /// The path.
        path: String,
    },
    /// A file has another file below it.
    #[error("{path} lies below {parent}, which is no directory")]
    NotDirectory {
        /// The path.
        path: String,
        /// What should be a directory.
        parent: String,
    },
    /// A file is larger than the format can say.
    #[error("{path} is {len} bytes long; the archive format takes at most 4 GiB")]
    TooLarge {
        /// The path.
        path: String,
        /// Its size in bytes.
        len: usize,
    },
    /// The compressor failed.
    #[error("Compressing the initramfs failed")]
    Compress(#[source] std::io::Error),
}

#[derive(Clone, Debug)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

/// Collects entries; parents that were not added become directories with mode 755.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    entries: BTreeMap<String, Entry>,
}

impl Builder {
    /// An initramfs without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a regular file with permissions `mode`, e.g. `0o755`.
    pub fn file(
        &mut self,
        path: &str,
        mode: u32,
        data: Vec<u8>,
    ) -> Result<&mut Self, InitramfsError> {
        self.insert(path, TYPE_FILE | (mode & PERMISSIONS), (0, 0), data)
    }

    /// Adds a directory.
    pub fn dir(&mut self, path: &str, mode: u32) -> Result<&mut Self, InitramfsError> {
        self.insert(
            path,
            TYPE_DIRECTORY | (mode & PERMISSIONS),
            (0, 0),
            Vec::new(),
        )
    }

    /// Adds a symbolic link at `path` to `target`.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<&mut Self, InitramfsError> {
        self.insert(
            path,
            TYPE_SYMLINK | 0o777,
            (0, 0),
            target.as_bytes().to_vec(),
        )
    }

    /// Adds a character device with its major and minor number.
    pub fn char_device(
        &mut self,
        path: &str,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> Result<&mut Self, InitramfsError> {
        self.insert(
            path,
            TYPE_CHARACTER | (mode & PERMISSIONS),
            (major, minor),
            Vec::new(),
        )
    }

    /// Adds a block device with its major and minor number.
    pub fn block_device(
        &mut self,
        path: &str,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> Result<&mut Self, InitramfsError> {
        self.insert(
            path,
            TYPE_BLOCK | (mode & PERMISSIONS),
            (major, minor),
            Vec::new(),
        )
    }

    /// The archive, not compressed.
    pub fn build(&self) -> Result<Vec<u8>, InitramfsError> {
        let mut entries = self.entries.clone();
        for path in self.entries.keys() {
            for (at, _) in path.match_indices('/') {
                let parent = &path[..at];
                let entry = entries.entry(parent.to_owned()).or_insert_with(|| Entry {
                    mode: TYPE_DIRECTORY | 0o755,
                    device: (0, 0),
                    data: Vec::new(),
                });
                if entry.mode & TYPE_MASK != TYPE_DIRECTORY {
                    return Err(InitramfsError::NotDirectory {
                        path: path.clone(),
                        parent: parent.to_owned(),
                    });
                }
            }
        }
        let mut out = Vec::new();
        let mut inode = 0;
        for (path, entry) in &entries {
            inode += 1;
            write_entry(&mut out, inode, path, entry)?;
        }
        let end = Entry {
            mode: 0,
            device: (0, 0),
            data: Vec::new(),
        };
        write_entry(&mut out, 0, "TRAILER!!!", &end)?;
        Ok(out)
    }

    /// The archive, compressed by zstd at `level` (1 to 22); the kernel needs `CONFIG_RD_ZSTD`.
    pub fn build_zstd(&self, level: i32) -> Result<Vec<u8>, InitramfsError> {
        let archive = self.build()?;
        let compress = || {
            let mut encoder = zstd::Encoder::new(Vec::new(), level)?;
            encoder.set_pledged_src_size(Some(archive.len() as u64))?;
            encoder.include_contentsize(true)?;
            encoder.include_checksum(true)?;
            encoder.write_all(&archive)?;
            encoder.finish()
        };
        compress().map_err(InitramfsError::Compress)
    }

    fn insert(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        data: Vec<u8>,
    ) -> Result<&mut Self, InitramfsError> {
        let bad = |part: &str| matches!(part, "" | "." | "..") || part.contains('\0');
        if path.len() >= PATH_MAX || path.split('/').any(bad) {
            return Err(InitramfsError::BadPath {
                path: path.to_owned(),
            });
        }
        let entry = Entry { mode, device, data };
        match self.entries.insert(path.to_owned(), entry) {
            None => Ok(self),
            Some(_) => Err(InitramfsError::Duplicate {
                path: path.to_owned(),
            }),
        }
    }
}

fn write_entry(
    out: &mut Vec<u8>,
    inode: u32,
    path: &str,
    entry: &Entry,
) -> Result<(), InitramfsError> {
    let len = u32::try_from(entry.data.len()).map_err(|_| InitramfsError::TooLarge {
        path: path.to_owned(),
        len: entry.data.len(),
    })?;
    // `insert` limits paths to PATH_MAX.
    let name_len = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
    let links = if entry.mode & TYPE_MASK == TYPE_DIRECTORY {
        2
    } else {
        1
    };
    let fields = [
        inode,
        entry.mode,
        0, // uid
        0, // gid
        links,
        0, // mtime
        len,
        0, // major and minor number of the device that the file is on
        0,
        entry.device.0,
        entry.device.1,
        name_len,
        0, // checksum, not used by this variant
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(&entry.data);
    pad(out);
    Ok(())
}

/// Names and data end at a multiple of 4 bytes.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests;
