//! One file system of a disk, and reading it in bounds.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use super::BootError;
use super::partitions::Partition;

/// Most bytes of a configuration file.
const MAX_TEXT: u64 = 1 << 20;
/// Entries of a folder that are looked at.
const MAX_LISTED: usize = 512;
/// Most links on the way to a file, as in the kernel.
const MAX_LINKS: usize = 40;
/// Longest path, with all links followed.
const MAX_PATH: usize = 4096;
/// Largest block: 1024 × 2⁶ = 65,536 bytes, as the format has it.
const MAX_BLOCK_EXPONENT: u64 = 6;
/// Most groups of blocks: 16 TiB in groups of the usual size.
const MAX_GROUPS: u64 = 1 << 17;
/// Read at a time.
const CHUNK: usize = 256 << 10;

/// A disk as bytes.
pub trait Bytes: Send + Sync {
    /// How many.
    fn length(&self) -> u64;
    /// Fills `buffer` from `offset`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BootError>;
}

/// A raw image.
#[derive(Debug)]
pub struct Image {
    file: File,
    length: u64,
}

impl Image {
    pub fn new(file: File, length: u64) -> Self {
        Self { file, length }
    }
}

impl Bytes for Image {
    fn length(&self) -> u64 {
        self.length
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BootError> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|source| BootError::Read { offset, source })
    }
}

#[cfg(test)]
impl Bytes for Vec<u8> {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BootError> {
        let start = usize::try_from(offset).unwrap();
        let end = start.checked_add(buffer.len()).unwrap();
        let source = io::Error::from(io::ErrorKind::UnexpectedEof);
        let bytes = self
            .get(start..end)
            .ok_or(BootError::Read { offset, source })?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// A partition's bytes for the file system's reader.
struct Window {
    disk: Arc<dyn Bytes>,
    start: u64,
    length: u64,
}

impl Ext4Read for Window {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let end = start_byte.checked_add(dst.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(Box::new(io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        // A partition lies inside the disk, so this cannot overflow.
        Ok(self.disk.read(self.start + start_byte, dst)?)
    }
}

/// A file system that could be opened.
pub struct Volume {
    /// Where it lies.
    pub partition: Partition,
    /// UUID of the file system, in lower case.
    pub uuid: String,
    /// Its label.
    pub label: String,
    fs: Ext4,
}

impl Volume {
    /// Opens the file system of a partition; the error says what is there instead.
    pub fn open(disk: &Arc<dyn Bytes>, partition: &Partition) -> Result<Self, String> {
        let kind = kind(disk.as_ref(), partition);
        if kind != EXT {
            return Err(kind.to_owned());
        }
        check_superblock(disk.as_ref(), partition)
            .map_err(|what| format!("unusable {EXT} ({what})"))?;
        let window = Window {
            disk: Arc::clone(disk),
            start: partition.start,
            length: partition.length,
        };
        let fs =
            Ext4::load(Box::new(window)).map_err(|error| format!("unusable {EXT} ({error})"))?;
        Ok(Self {
            partition: partition.clone(),
            uuid: fs.uuid().to_string().to_ascii_lowercase(),
            label: String::from_utf8_lossy(fs.label().as_bytes()).into_owned(),
            fs,
        })
    }

    /// Place of a file for messages.
    pub fn place(&self) -> String {
        match self.partition.number {
            0 => "the whole disk".to_owned(),
            number => format!("partition {number}"),
        }
    }

    /// A text file; `None` if there is none, or it is no text or too large for one.
    pub fn text(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        self.copy(path, MAX_TEXT, &mut bytes).ok()?;
        String::from_utf8(bytes).ok()
    }

    /// Names in a folder, if it is one.
    pub fn list(&self, path: &str) -> Vec<String> {
        let entries = self.resolve(path).and_then(|path| self.fs.read_dir(&path));
        let Ok(entries) = entries else {
            return Vec::new();
        };
        entries
            .take(MAX_LISTED)
            .filter_map(|entry| entry.ok()?.file_name().as_str().ok().map(str::to_owned))
            .collect()
    }

    /// Size of a regular file, all links on the way followed; `None` for anything else than a file.
    pub fn size(&self, path: &str) -> Result<Option<u64>, Ext4Error> {
        let metadata = self.fs.metadata(&self.resolve(path)?)?;
        Ok(metadata
            .file_type()
            .is_regular_file()
            .then(|| metadata.len()))
    }

    /// `path` with all links followed. The library would follow them as well, but takes a link's length for what it says:
    /// one of a terabyte would cost the host a terabyte.
    fn resolve(&self, path: &str) -> Result<String, Ext4Error> {
        let mut rest: Vec<String> = components(path);
        let mut resolved = String::new();
        let mut links = 0;
        while let Some(component) = rest.pop() {
            match component.as_str() {
                "" | "." => continue,
                ".." => {
                    resolved.truncate(resolved.rfind('/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let next = format!("{resolved}/{component}");
            if next.len() > MAX_PATH {
                return Err(Ext4Error::PathTooLong);
            }
            let metadata = self.fs.symlink_metadata(&next)?;
            if !metadata.file_type().is_symlink() {
                resolved = next;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Ext4Error::TooManySymlinks);
            }
            if metadata.len() > MAX_PATH as u64 {
                return Err(Ext4Error::PathTooLong);
            }
            let target = self.fs.read_link(&next)?;
            let target = String::from_utf8_lossy(target.as_ref()).into_owned();
            if target.starts_with('/') {
                resolved.clear();
            }
            rest.extend(components(&target));
        }
        Ok(if resolved.is_empty() {
            "/".to_owned()
        } else {
            resolved
        })
    }

    /// Writes the file's bytes, at most `limit`, to `out` and returns how many there were.
    pub fn copy(&self, path: &str, limit: u64, out: &mut dyn Write) -> Result<u64, BootError> {
        let failed = |source| BootError::Content {
            path: path.to_owned(),
            source,
        };
        let file = self.resolve(path).and_then(|path| self.fs.open(&path));
        let mut file = file.map_err(failed)?;
        let mut buffer = vec![0; CHUNK];
        let mut copied = 0u64;
        loop {
            // One read gives at most one block of the file system: gather some before they go out.
            let mut filled = 0;
            while filled < buffer.len() {
                match file.read_bytes(&mut buffer[filled..]).map_err(failed)? {
                    0 => break,
                    length => filled += length,
                }
            }
            copied += filled as u64;
            if copied > limit {
                return Err(BootError::TooLarge {
                    origin: self.place(),
                    path: path.to_owned(),
                    size: copied,
                    limit,
                });
            }
            out.write_all(&buffer[..filled])
                .map_err(|source| BootError::Write {
                    path: path.to_owned(),
                    source,
                })?;
            if filled < buffer.len() {
                return Ok(copied);
            }
        }
    }
}

const EXT: &str = "ext4";

/// The components of a path, the first one last.
fn components(path: &str) -> Vec<String> {
    path.rsplit('/').map(str::to_owned).collect()
}

/// Checks what the library takes for granted and allocates by: sizes in the superblock.
fn check_superblock(disk: &dyn Bytes, partition: &Partition) -> Result<(), String> {
    let mut superblock = [0; 1024];
    if partition.length < 2048 {
        return Err("too small".to_owned());
    }
    disk.read(partition.start + 1024, &mut superblock)
        .map_err(|error| error.to_string())?;
    let word = |at: usize| {
        let bytes = superblock[at..at + 4].first_chunk();
        u64::from(bytes.copied().map_or(0, u32::from_le_bytes))
    };
    let exponent = word(0x18);
    if exponent > MAX_BLOCK_EXPONENT {
        return Err(format!("blocks of 2^{} bytes", exponent + 10));
    }
    // The high half counts for the library whether or not the file system says that it has 64-bit numbers.
    let blocks = word(0x4) | word(0x150) << 32;
    let most = partition.length >> (10 + exponent);
    if blocks > most {
        return Err(format!("{blocks} blocks, room is for {most}"));
    }
    let groups = blocks.div_ceil(word(0x20).max(1));
    if groups > MAX_GROUPS {
        return Err(format!("{groups} groups of blocks, more than {MAX_GROUPS}"));
    }
    Ok(())
}

/// What lies in a partition, by its magic number: for messages, so a wrong guess does no harm.
fn kind(disk: &dyn Bytes, partition: &Partition) -> &'static str {
    const MAGICS: [(u64, &[u8], &str); 10] = [
        (1024 + 0x38, &[0x53, 0xef], EXT),
        (0, b"XFSB", "XFS"),
        (0x10040, b"_BHRfS_M", "Btrfs"),
        (0x36, b"FAT", "FAT"),
        (0x52, b"FAT32", "FAT"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (512, b"LABELONE", "LVM"),
        (4086, b"SWAPSPACE2", "swap"),
        (0, b"hsqs", "SquashFS"),
        (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "EROFS"),
    ];
    let has = |(offset, magic): (u64, &[u8])| {
        let mut found = vec![0; magic.len()];
        offset + magic.len() as u64 <= partition.length
            && disk.read(partition.start + offset, &mut found).is_ok()
            && found == magic
    };
    MAGICS
        .iter()
        .find(|(offset, magic, _)| has((*offset, magic)))
        .map_or("nothing known", |(_, _, name)| name)
}
