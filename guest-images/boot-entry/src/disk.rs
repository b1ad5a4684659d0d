//! From a disk to the kernel that it boots.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::sync::Arc;

use super::entry::{Entry, Place, absolute};
use super::volume::{Bytes, Image, Volume};
use super::{BootError, MAX_CMDLINE, MAX_INITRD, MAX_KERNEL};
use super::{bls, extlinux, grub, partitions};

/// Where configurations are looked for: on a root file system, and on a boot partition of its own.
const FOLDERS: [&str; 2] = ["/boot", ""];
/// Initial RAM disks of one entry.
const MAX_INITRDS: usize = 16;
/// The kernel finds the next archive at a multiple of this (Linux, Documentation/driver-api/early-userspace).
const ARCHIVE_ALIGNMENT: u64 = 4;

/// A disk whose file systems were opened.
pub struct Disk {
    volumes: Vec<Volume>,
}

/// What is to be booted.
pub struct Loaded<'a> {
    /// Where the entry stands: `/boot/extlinux/extlinux.conf of partition 1`.
    pub origin: String,
    /// The kernel's command line.
    pub cmdline: String,
    /// Bytes of the kernel.
    pub kernel_size: u64,
    /// Bytes of all initial RAM disks with what lies between them; 0 without one.
    pub initrd_size: u64,
    volume: &'a Volume,
    kernel: String,
    initrds: Vec<(String, u64)>,
}

/// An entry and where it was found.
struct Found<'a> {
    origin: String,
    volume: &'a Volume,
    entry: Entry,
}

impl Disk {
    /// Opens every file system of a raw disk image that can be read.
    pub fn open(mut image: File) -> Result<Self, BootError> {
        let length = image
            .seek(SeekFrom::End(0))
            .map_err(|source| BootError::Read { offset: 0, source })?;
        let image: Arc<dyn Bytes> = Arc::new(Image::new(image, length));
        Self::new(&image)
    }

    /// Opens every file system of a disk that can be read.
    pub fn new(disk: &Arc<dyn Bytes>) -> Result<Self, BootError> {
        let mut volumes = Vec::new();
        let mut others = Vec::new();
        for partition in partitions::read(disk.as_ref())? {
            match Volume::open(disk, &partition) {
                Ok(volume) => volumes.push(volume),
                Err(kind) if partition.number == 0 => {
                    others.push(format!("{kind} and no partitions"));
                }
                Err(kind) => others.push(format!("{kind} in partition {}", partition.number)),
            }
        }
        if volumes.is_empty() {
            return Err(BootError::NoVolume {
                found: others.join(", "),
            });
        }
        Ok(Self { volumes })
    }

    /// The disk's default boot entry, its files found.
    pub fn entry(&self) -> Result<Loaded<'_>, BootError> {
        let mut remarks = Vec::new();
        let found = self
            .search(bls_entry, &mut remarks)
            .or_else(|| self.search(extlinux_entry, &mut remarks))
            .or_else(|| self.search(grub_entry, &mut remarks))
            .or_else(|| self.search(plain_kernel, &mut remarks));
        match found {
            Some(found) => self.resolve(found),
            None => Err(BootError::NoEntry {
                looked_in: self
                    .volumes
                    .iter()
                    .map(Volume::place)
                    .collect::<Vec<_>>()
                    .join(", "),
                remarks,
            }),
        }
    }

    fn search(
        &self,
        read: impl Fn(&Volume, &str, &mut Vec<String>) -> Option<(String, Entry)>,
        remarks: &mut Vec<String>,
    ) -> Option<Found<'_>> {
        let places = self
            .volumes
            .iter()
            .flat_map(|volume| FOLDERS.map(|folder| (volume, folder)));
        for (volume, folder) in places {
            if let Some((file, entry)) = read(volume, folder, remarks) {
                return Some(Found {
                    origin: format!("{file} of {}", volume.place()),
                    volume,
                    entry,
                });
            }
        }
        None
    }

    /// Finds the entry's files and checks their sizes.
    fn resolve<'a>(&'a self, found: Found<'a>) -> Result<Loaded<'a>, BootError> {
        let Found {
            origin,
            volume,
            entry,
        } = found;
        let named = match &entry.place {
            Place::Same => None,
            Place::Uuid(uuid) => self.volumes.iter().find(|volume| volume.uuid == *uuid),
            Place::Label(label) => self.volumes.iter().find(|volume| volume.label == *label),
            Place::Partition(number) => self
                .volumes
                .iter()
                .find(|volume| volume.partition.number == *number),
        };
        // GRUB keeps the root it started with where a search finds nothing.
        let volume = named.unwrap_or(volume);
        let size = |path: &str, limit: u64| {
            let (origin, path) = (origin.clone(), path.to_owned());
            match volume.size(&path) {
                Err(source) => Err(BootError::File {
                    origin,
                    path,
                    source,
                }),
                Ok(None) => Err(BootError::NotAFile { origin, path }),
                Ok(Some(size)) if size > limit => Err(BootError::TooLarge {
                    origin,
                    path,
                    size,
                    limit,
                }),
                Ok(Some(size)) => Ok(size),
            }
        };
        let kernel_size = size(&entry.kernel, MAX_KERNEL)?;
        let mut initrds = Vec::new();
        let mut initrd_size = 0u64;
        for path in entry.initrds.iter().take(MAX_INITRDS) {
            initrd_size = initrd_size.next_multiple_of(ARCHIVE_ALIGNMENT);
            let one = size(path, MAX_INITRD - initrd_size.min(MAX_INITRD))?;
            initrds.push((path.clone(), one));
            initrd_size += one;
        }
        let cmdline = entry.options.trim().to_owned();
        if cmdline.len() > MAX_CMDLINE {
            return Err(BootError::CmdlineTooLong {
                origin,
                size: cmdline.len(),
                limit: MAX_CMDLINE,
            });
        }
        if cmdline.chars().any(char::is_control) {
            return Err(BootError::CmdlineCharacter { origin });
        }
        Ok(Loaded {
            origin,
            cmdline,
            kernel_size,
            initrd_size,
            volume,
            kernel: entry.kernel,
            initrds,
        })
    }
}

impl Loaded<'_> {
    /// Writes the kernel: exactly [`Self::kernel_size`] bytes, or an error.
    pub fn write_kernel(&self, out: &mut dyn Write) -> Result<(), BootError> {
        self.write(&self.kernel, self.kernel_size, out)
    }

    /// Writes the initial RAM disks one after the other: exactly [`Self::initrd_size`] bytes, or an error.
    pub fn write_initrd(&self, out: &mut dyn Write) -> Result<(), BootError> {
        let mut written = 0u64;
        for (path, size) in &self.initrds {
            let gap = written.next_multiple_of(ARCHIVE_ALIGNMENT) - written;
            io::copy(&mut io::Read::take(io::repeat(0), gap), out).map_err(|source| {
                BootError::Write {
                    path: path.clone(),
                    source,
                }
            })?;
            self.write(path, *size, out)?;
            written += gap + size;
        }
        Ok(())
    }

    fn write(&self, path: &str, expected: u64, out: &mut dyn Write) -> Result<(), BootError> {
        let found = self.volume.copy(path, expected, out)?;
        if found != expected {
            return Err(BootError::Short {
                path: path.to_owned(),
                found,
                expected,
            });
        }
        Ok(())
    }
}

fn bls_entry(volume: &Volume, folder: &str, remarks: &mut Vec<String>) -> Option<(String, Entry)> {
    let entries = format!("{folder}/loader/entries");
    let files: Vec<_> = volume
        .list(&entries)
        .into_iter()
        .filter(|name| name.ends_with(".conf"))
        .filter_map(|name| {
            let text = volume.text(&format!("{entries}/{name}"))?;
            Some((name, text))
        })
        .collect();
    if files.is_empty() {
        return None;
    }
    let loader_conf = volume
        .text(&format!("{folder}/loader/loader.conf"))
        .unwrap_or_default();
    let environment = ["grub2", "grub"]
        .iter()
        .find_map(|name| volume.text(&format!("{folder}/{name}/grubenv")))
        .map(|text| grub::environment(&text))
        .unwrap_or_default();
    let choice = bls::Choice {
        loader_conf: &loader_conf,
        environment,
    };
    let entry = bls::choose(&files, &choice);
    note(entry, &entries, volume, remarks)
}

fn extlinux_entry(
    volume: &Volume,
    folder: &str,
    remarks: &mut Vec<String>,
) -> Option<(String, Entry)> {
    let base = format!("{folder}/extlinux");
    let path = format!("{base}/extlinux.conf");
    let text = volume.text(&path)?;
    note(extlinux::parse(&text, &base), &path, volume, remarks)
}

fn grub_entry(volume: &Volume, folder: &str, remarks: &mut Vec<String>) -> Option<(String, Entry)> {
    for name in ["grub", "grub2"] {
        let base = format!("{folder}/{name}");
        let path = format!("{base}/grub.cfg");
        let Some(text) = volume.text(&path) else {
            continue;
        };
        let environment = volume
            .text(&format!("{base}/grubenv"))
            .map_or_else(HashMap::new, |text| grub::environment(&text));
        let entry = grub::parse(&text, &base, environment);
        if let Some(found) = note(entry, &path, volume, remarks) {
            return Some(found);
        }
    }
    None
}

/// No configuration at all: the links that distributions keep to their newest kernel.
fn plain_kernel(volume: &Volume, folder: &str, _: &mut Vec<String>) -> Option<(String, Entry)> {
    // The links lie in the root and point into /boot; with a boot partition they lie in its root.
    let there = |path: &str| matches!(volume.size(path), Ok(Some(_)));
    let kernel = absolute(folder, "vmlinuz");
    if !there(&kernel) {
        return None;
    }
    let initrd = absolute(folder, "initrd.img");
    let root = match &volume.partition.uuid {
        Some(uuid) => format!("PARTUUID={uuid}"),
        None => "/dev/vda".to_owned(),
    };
    let entry = Entry {
        initrds: Some(initrd)
            .filter(|path| there(path))
            .into_iter()
            .collect(),
        options: format!("root={root} ro"),
        place: Place::Same,
        kernel: kernel.clone(),
    };
    Some((kernel, entry))
}

fn note(
    entry: Option<Entry>,
    path: &str,
    volume: &Volume,
    remarks: &mut Vec<String>,
) -> Option<(String, Entry)> {
    if entry.is_none() {
        remarks.push(format!("{path} of {} names no kernel", volume.place()));
    }
    entry.map(|entry| (path.to_owned(), entry))
}

#[cfg(test)]
mod tests;
