//! Assembling `daruma.rom`: flash map, CBFS with kernel, initramfs, command line, machine and guests, and the ROM stage at
//! the reset vector.

use std::fmt::Write as _;

use thiserror::Error;

use crate::anchor::{Anchor, AnchorError};
use crate::bytes::align_up;
use crate::cbfs::{Cbfs, Kind, NewFile, WriteError, Writer};
use crate::fmap::{self, Fmap, FmapError, NewArea};
use crate::layout::{
    AREA_CBFS, AREA_FMAP, BOOTBLOCK, CMDLINE, FMAP_AREA_SIZE, GUEST_PREFIX, INITRAMFS, KERNEL,
    MACHINE, MAX_ROM_SIZE, ROM_GRANULE,
};
use crate::linux::{Kernel, KernelError};

/// Where x86 flash ends.
const FOUR_GIB: u64 = 1 << 32;

/// Why a ROM cannot be assembled.
#[derive(Debug, Error)]
pub enum RomError {
    /// A file that every ROM needs was not given.
    #[error("The ROM has no {name}: without it nothing can start")]
    Missing {
        /// Name in CBFS.
        name: &'static str,
    },
    /// The kernel cannot be started.
    #[error("{KERNEL} cannot be started")]
    Kernel(#[source] KernelError),
    /// The command line is longer than the kernel takes.
    #[error("{CMDLINE} has {len} bytes, the kernel takes at most {max}")]
    CmdlineTooLong {
        /// Bytes in the command line.
        len: usize,
        /// What the kernel says.
        max: u32,
    },
    /// The command line contains NUL or a line end.
    #[error("{CMDLINE} contains a NUL or a line end at byte {at}")]
    CmdlineNotOneLine {
        /// Offset of the byte.
        at: usize,
    },
    /// The size asked for is impossible.
    #[error(
        "A ROM cannot have {size} bytes: the size must be a multiple of {ROM_GRANULE} and at most {MAX_ROM_SIZE}"
    )]
    BadSize {
        /// Size asked for in bytes.
        size: usize,
    },
    /// The contents do not fit; lists every part and what to leave out.
    #[error("{}", too_large(*.needed, *.limit, .parts))]
    TooLarge {
        /// Bytes that the ROM would need.
        needed: usize,
        /// Bytes that it may have.
        limit: usize,
        /// All parts with their sizes.
        parts: Vec<Part>,
    },
    /// CBFS refused a file.
    #[error("The files of the ROM cannot be written")]
    Cbfs(#[from] WriteError),
    /// The ROM stage has no anchor for the metadata hash.
    #[error("The ROM stage cannot vouch for the files")]
    Anchor(#[from] AnchorError),
    /// The image just written could not be read back; a bug in this program.
    #[error("The ROM just written cannot be read back")]
    ReadBack(#[from] FmapError),
}

/// One file of a ROM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Name in CBFS.
    pub name: String,
    /// Bytes of data.
    pub size: usize,
}

/// A finished ROM.
#[derive(Clone, Debug)]
pub struct Rom {
    /// The image, for QEMU's `-bios`.
    pub bytes: Vec<u8>,
    /// Its files in the order of flash.
    pub parts: Vec<Part>,
    /// Bytes of CBFS that are still free.
    pub free: usize,
}

/// Collects the parts of a ROM.
#[derive(Clone, Debug)]
pub struct RomBuilder {
    bootblock: Vec<u8>,
    files: Vec<(String, Vec<u8>)>,
    size: Option<usize>,
    checked: bool,
}

impl RomBuilder {
    /// A ROM with the ROM stage `bootblock`, as [`crate::stage::flatten`] makes it.
    pub fn new(bootblock: Vec<u8>) -> Self {
        Self {
            bootblock,
            files: Vec::new(),
            size: None,
            checked: true,
        }
    }

    /// The host's kernel: a bzImage as built.
    #[must_use]
    pub fn kernel(self, bzimage: Vec<u8>) -> Self {
        self.file(KERNEL, bzimage)
    }

    /// The host's initramfs, compressed in a way the kernel can unpack.
    #[must_use]
    pub fn initramfs(self, initramfs: Vec<u8>) -> Self {
        self.file(INITRAMFS, initramfs)
    }

    /// The host kernel's command line: one line without its end.
    #[must_use]
    pub fn cmdline(self, cmdline: &str) -> Self {
        self.file(CMDLINE, cmdline.as_bytes().to_vec())
    }

    /// The machine's TOML.
    #[must_use]
    pub fn machine(self, toml: &str) -> Self {
        self.file(MACHINE, toml.as_bytes().to_vec())
    }

    /// A file of a guest, e.g. `pocket/root.erofs`, which becomes `guest/pocket/root.erofs`.
    #[must_use]
    pub fn guest_file(self, name: &str, data: Vec<u8>) -> Self {
        self.file(&format!("{GUEST_PREFIX}{name}"), data)
    }

    /// A file by its full name in CBFS.
    #[must_use]
    pub fn file(mut self, name: &str, data: Vec<u8>) -> Self {
        self.files.push((name.to_owned(), data));
        self
    }

    /// Makes the ROM exactly `size` bytes; otherwise it is as small as its contents allow.
    #[must_use]
    pub fn size(mut self, size: usize) -> Self {
        self.size = Some(size);
        self
    }

    /// Leaves out every check of the contents, for tests of what the ROM stage says about a bad image.
    #[must_use]
    pub fn unchecked(mut self) -> Self {
        self.checked = false;
        self
    }

    /// Assembles the ROM.
    pub fn build(self) -> Result<Rom, RomError> {
        if self.checked {
            self.check()?;
        }
        let limit = match self.size {
            Some(size) if size == 0 || size % ROM_GRANULE != 0 || size > MAX_ROM_SIZE => {
                return Err(RomError::BadSize { size });
            }
            Some(size) => size,
            None => MAX_ROM_SIZE,
        };
        let mut writer = Writer::new();
        for (name, data) in self.files {
            writer.add(NewFile::new(name, Kind::RAW, data))?;
        }
        writer.set_bootblock(NewFile::bootblock(self.bootblock))?;
        let parts: Vec<Part> = writer
            .files()
            .map(|file| Part {
                name: file.name().to_owned(),
                size: file.len(),
            })
            .collect();
        let content = FMAP_AREA_SIZE + writer.needed();
        let needed = align_up(content, ROM_GRANULE).unwrap_or(usize::MAX);
        if needed > limit {
            return Err(RomError::TooLarge {
                needed: content,
                limit,
                parts,
            });
        }
        let size = self.size.unwrap_or(needed);
        let bytes = image(&writer, size)?;
        Ok(Rom {
            bytes,
            parts,
            free: size - content,
        })
    }

    fn check(&self) -> Result<(), RomError> {
        let find = |wanted: &'static str| {
            self.files
                .iter()
                .find(|(name, _)| name == wanted)
                .map(|(_, data)| &data[..])
                .ok_or(RomError::Missing { name: wanted })
        };
        let kernel = Kernel::parse(find(KERNEL)?).map_err(RomError::Kernel)?;
        find(INITRAMFS)?;
        let cmdline = find(CMDLINE)?;
        if let Some(at) = cmdline
            .iter()
            .position(|byte| matches!(byte, 0 | b'\n' | b'\r'))
        {
            return Err(RomError::CmdlineNotOneLine { at });
        }
        if cmdline.len() > kernel.cmdline_size as usize {
            return Err(RomError::CmdlineTooLong {
                len: cmdline.len(),
                max: kernel.cmdline_size,
            });
        }
        Ok(())
    }
}

/// Writes the image and fills in the anchor. The hash covers the boot block's header but not its contents, so it can be
/// computed with the anchor still blank.
fn image(writer: &Writer, size: usize) -> Result<Vec<u8>, RomError> {
    // `build` limits the size to 16 MiB.
    let size_u32 = u32::try_from(size).map_err(|_| RomError::BadSize { size })?;
    let fmap_size = u32::try_from(FMAP_AREA_SIZE).map_err(|_| RomError::BadSize { size })?;
    let areas = [
        NewArea {
            name: AREA_FMAP,
            offset: 0,
            size: fmap_size,
            flags: fmap::FLAG_STATIC,
        },
        NewArea {
            name: AREA_CBFS,
            offset: fmap_size,
            size: size_u32 - fmap_size,
            flags: 0,
        },
    ];
    let mut bytes = fmap::write(FOUR_GIB - size as u64, size_u32, "FLASH", &areas)
        .ok_or(RomError::BadSize { size })?;
    bytes.resize(FMAP_AREA_SIZE, 0xff);
    bytes.extend_from_slice(&writer.build(size - FMAP_AREA_SIZE)?);

    let (anchor, at) = {
        let map = Fmap::find(&bytes)?;
        let cbfs = Cbfs::new(map.region(AREA_CBFS)?);
        let bootblock = cbfs.find(BOOTBLOCK).map_err(AnchorError::Cbfs)?;
        let at = FMAP_AREA_SIZE + bootblock.data_range().start + Anchor::find(bootblock.data())?;
        (Anchor::of(&map, &cbfs)?, at)
    };
    let anchor = anchor.to_bytes();
    bytes
        .get_mut(at..at + anchor.len())
        .ok_or(AnchorError::Missing)?
        .copy_from_slice(&anchor);
    Ok(bytes)
}

/// `bytes` in MiB or KiB with two digits, or in bytes below one KiB.
pub fn human_size(bytes: usize) -> String {
    if bytes < 1 << 10 {
        return format!("{bytes} B");
    }
    // Tables are for people: the loss of digits is wanted.
    let (unit, name) = if bytes >= 1 << 20 {
        (1 << 20, "MiB")
    } else {
        (1 << 10, "KiB")
    };
    let hundredths = (bytes * 100).div_ceil(unit);
    format!("{}.{:02} {name}", hundredths / 100, hundredths % 100)
}

fn too_large(needed: usize, limit: usize, parts: &[Part]) -> String {
    let excess = needed.saturating_sub(limit).max(1);
    let mut out = format!(
        "The ROM would have {}, {} more than the {} it may have. Its parts:",
        human_size(needed),
        human_size(excess),
        human_size(limit)
    );
    let mut sorted: Vec<&Part> = parts.iter().collect();
    sorted.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.name.cmp(&b.name)));
    for part in &sorted {
        // Writing to a string cannot fail.
        let _ = write!(out, "\n  {:>12}  {}", human_size(part.size), part.name);
    }
    let drop = what_to_drop(&sorted, excess);
    if drop.is_empty() {
        out.push_str(
            "\nLeaving out every guest is not enough: make the kernel or the initramfs smaller",
        );
    } else {
        let names: Vec<&str> = drop.iter().map(|part| part.name.as_str()).collect();
        let _ = write!(
            out,
            "\nLeave out {}, or put it on a disk (disk:… in the machine's TOML)",
            names.join(" and ")
        );
    }
    out
}

/// The fewest guests' files, the smallest such, that bring the ROM below its limit; empty if none do. `sorted` is by size,
/// largest first.
fn what_to_drop<'a>(sorted: &[&'a Part], excess: usize) -> Vec<&'a Part> {
    let guests = || {
        sorted
            .iter()
            .filter(|part| part.name.starts_with(GUEST_PREFIX))
    };
    if let Some(one) = guests().rfind(|part| part.size >= excess) {
        return vec![one];
    }
    let mut sum = 0;
    let mut drop = Vec::new();
    for part in guests() {
        sum += part.size;
        drop.push(*part);
        if sum >= excess {
            return drop;
        }
    }
    Vec::new()
}

#[cfg(test)]
pub(crate) mod tests;
