//! The script in fw_cfg's `etc/table-loader`, by which QEMU has firmware place its ACPI tables.
//!
//! A script is a list of commands of 128 bytes (QEMU, hw/acpi/bios-linker-loader.c): load a file to memory, add the address
//! of one file to a pointer in another, make a checksum right, tell QEMU an address. All numbers are little-endian.

use thiserror::Error;

use firmware_glue::name::Name;

use crate::list::List;
use crate::memory::{Memory, Zone};

/// Bytes of a command.
pub const COMMAND_SIZE: usize = 128;
/// Files that a script may load; QEMU's load 3 to 8.
const MAX_FILES: usize = 32;
const NAME_SIZE: usize = 56;

const COMMAND_ALLOCATE: u32 = 1;
const COMMAND_ADD_POINTER: u32 = 2;
const COMMAND_ADD_CHECKSUM: u32 = 3;
const COMMAND_WRITE_POINTER: u32 = 4;

/// Zone numbers of the command "allocate".
const ZONE_HIGH: u8 = 1;
const ZONE_FSEG: u8 = 2;

const RSDP_SIGNATURE: &[u8] = b"RSD PTR ";

/// Files of the machine, as fw_cfg has them.
pub trait Files {
    /// Number and size in bytes of the file called `name`.
    fn find(&mut self, name: &str) -> Option<(u16, u32)>;
    /// Reads the file from its start into `to`. Whether that succeeded.
    fn read(&mut self, file: u16, to: &mut [u8]) -> bool;
    /// Writes `from` at `offset` of the file. Whether that succeeded.
    fn write(&mut self, file: u16, offset: u32, from: &[u8]) -> bool;
}

/// Where tables may go.
#[derive(Clone, Debug)]
pub struct Zones {
    /// Anywhere below 4 GiB.
    pub high: Zone,
    /// From 0xF0000 to 0xFFFFF, where operating systems look for the roots of tables.
    pub fseg: Zone,
}

/// Why a script cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TableError {
    /// A name without an end or not UTF-8.
    #[error("ACPI loader script, command {index}: a file name is malformed")]
    BadName {
        /// Number of the command, from 0.
        index: usize,
    },
    /// No such file in fw_cfg.
    #[error("ACPI loader script, command {index}: the machine has no file {name}")]
    NoFile {
        /// Number of the command.
        index: usize,
        /// Name of the file.
        name: Name,
    },
    /// The file was not loaded by an earlier command.
    #[error("ACPI loader script, command {index}: file {name} was not loaded before")]
    NotLoaded {
        /// Number of the command.
        index: usize,
        /// Name of the file.
        name: Name,
    },
    /// The file was loaded twice, or too many were.
    #[error("ACPI loader script, command {index}: file {name} is loaded twice, or is the {}th", MAX_FILES + 1)]
    TooMany {
        /// Number of the command.
        index: usize,
        /// Name of the file.
        name: Name,
    },
    /// No place with this size and alignment.
    #[error(
        "ACPI loader script, command {index}: no room for file {name} ({size} bytes, alignment {align}, zone {zone})"
    )]
    NoRoom {
        /// Number of the command.
        index: usize,
        /// Name of the file.
        name: Name,
        /// Its size in bytes.
        size: u32,
        /// Its alignment in bytes.
        align: u32,
        /// Its zone.
        zone: u8,
    },
    /// fw_cfg reported an error.
    #[error("ACPI loader script, command {index}: the machine refused access to file {name}")]
    Access {
        /// Number of the command.
        index: usize,
        /// Name of the file.
        name: Name,
    },
    /// Offset or length outside the file, or a pointer of an impossible size.
    #[error(
        "ACPI loader script, command {index}: {len} bytes at {offset:#x} are not in file {name}, or no pointer has that size"
    )]
    Outside {
        /// Number of the command.
        index: usize,
        /// Name of the file.
        name: Name,
        /// Offset in the file.
        offset: u32,
        /// Length in bytes.
        len: u32,
    },
}

#[derive(Clone, Copy)]
struct Loaded {
    name: [u8; NAME_SIZE],
    at: u64,
    size: u32,
}

/// Runs `script`, and returns where the ACPI root pointer (RSDP) is. Commands with unknown numbers are passed over, as QEMU
/// demands of its firmware.
pub fn run(
    script: &[u8],
    files: &mut impl Files,
    memory: &mut impl Memory,
    zones: &mut Zones,
) -> Result<Option<u64>, TableError> {
    let mut interpreter = Interpreter {
        index: 0,
        files,
        memory,
        zones,
        loaded: List::new(Loaded {
            name: [0; NAME_SIZE],
            at: 0,
            size: 0,
        }),
        rsdp: None,
    };
    let (commands, _) = script.as_chunks::<COMMAND_SIZE>();
    for (index, command) in commands.iter().enumerate() {
        interpreter.index = index;
        interpreter.step(&Command(command))?;
    }
    Ok(interpreter.rsdp)
}

/// One command; all offsets used with it are constants below its size.
struct Command<'a>(&'a [u8; COMMAND_SIZE]);

impl<'a> Command<'a> {
    fn long(&self, at: usize) -> u32 {
        let mut out = [0; 4];
        out.copy_from_slice(&self.0[at..at + 4]);
        u32::from_le_bytes(out)
    }

    fn raw_name(&self, at: usize) -> &'a [u8] {
        &self.0[at..at + NAME_SIZE]
    }
}

struct Interpreter<'a, F, M> {
    index: usize,
    files: &'a mut F,
    memory: &'a mut M,
    zones: &'a mut Zones,
    loaded: List<Loaded, MAX_FILES>,
    rsdp: Option<u64>,
}

impl<F: Files, M: Memory> Interpreter<'_, F, M> {
    fn step(&mut self, command: &Command<'_>) -> Result<(), TableError> {
        match command.long(0) {
            COMMAND_ALLOCATE => self.allocate(command.raw_name(4), command.long(60), command.0[64]),
            COMMAND_ADD_POINTER => self.add_pointer(
                command.raw_name(4),
                command.raw_name(60),
                command.long(116),
                command.0[120],
            ),
            COMMAND_ADD_CHECKSUM => self.add_checksum(
                command.raw_name(4),
                command.long(60),
                command.long(64),
                command.long(68),
            ),
            COMMAND_WRITE_POINTER => self.write_pointer(
                command.raw_name(4),
                command.raw_name(60),
                command.long(116),
                command.long(120),
                command.0[124],
            ),
            _ => Ok(()),
        }
    }

    fn allocate(&mut self, raw: &[u8], align: u32, zone: u8) -> Result<(), TableError> {
        let index = self.index;
        let text = self.text(raw)?;
        let name = Name::new(text);
        let (file, size) = self
            .files
            .find(text)
            .ok_or(TableError::NoFile { index, name })?;
        let no_room = TableError::NoRoom {
            index,
            name,
            size,
            align,
            zone,
        };
        let places = match zone {
            ZONE_HIGH => &mut self.zones.high,
            ZONE_FSEG => &mut self.zones.fseg,
            _ => return Err(no_room),
        };
        let at = places
            .allocate(u64::from(size), u64::from(align.max(1)))
            .ok_or(no_room)?;
        let too_many = TableError::TooMany { index, name };
        if self.loaded(raw).is_ok() {
            return Err(too_many);
        }
        let mut owned = [0; NAME_SIZE];
        owned.copy_from_slice(raw);
        let loaded = Loaded {
            name: owned,
            at,
            size,
        };
        self.loaded.push(loaded).map_err(|_| too_many)?;
        let bytes = self.memory.bytes(at, size as usize).ok_or(no_room)?;
        if !self.files.read(file, bytes) {
            return Err(TableError::Access { index, name });
        }
        if zone == ZONE_FSEG && bytes.starts_with(RSDP_SIGNATURE) {
            self.rsdp = Some(at);
        }
        Ok(())
    }

    fn add_pointer(
        &mut self,
        to: &[u8],
        of: &[u8],
        offset: u32,
        size: u8,
    ) -> Result<(), TableError> {
        let address = self.loaded(of)?.at;
        let pointer = self.pointer(to, offset, size)?;
        let mut value = [0; 8];
        value[..pointer.len()].copy_from_slice(pointer);
        // A pointer of fewer bytes keeps its own width, as QEMU's own arithmetic does.
        let value = u64::from_le_bytes(value).wrapping_add(address);
        pointer.copy_from_slice(&value.to_le_bytes()[..usize::from(size)]);
        Ok(())
    }

    fn add_checksum(
        &mut self,
        of: &[u8],
        offset: u32,
        start: u32,
        len: u32,
    ) -> Result<(), TableError> {
        let sum = self
            .range(of, start, len)?
            .iter()
            .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let place = self.range(of, offset, 1)?;
        place[0] = place[0].wrapping_sub(sum);
        Ok(())
    }

    fn write_pointer(
        &mut self,
        to: &[u8],
        of: &[u8],
        to_offset: u32,
        of_offset: u32,
        size: u8,
    ) -> Result<(), TableError> {
        let index = self.index;
        self.range(of, of_offset, 0)?;
        let address = self.loaded(of)?.at.wrapping_add(u64::from(of_offset));
        let text = self.text(to)?;
        let name = Name::new(text);
        let outside = TableError::Outside {
            index,
            name,
            offset: to_offset,
            len: u32::from(size),
        };
        let (file, file_size) = self
            .files
            .find(text)
            .ok_or(TableError::NoFile { index, name })?;
        if !is_pointer_size(size)
            || to_offset
                .checked_add(u32::from(size))
                .is_none_or(|end| end > file_size)
        {
            return Err(outside);
        }
        let bytes = &address.to_le_bytes()[..usize::from(size)];
        if !self.files.write(file, to_offset, bytes) {
            return Err(TableError::Access { index, name });
        }
        Ok(())
    }

    fn pointer(&mut self, raw: &[u8], offset: u32, size: u8) -> Result<&mut [u8], TableError> {
        if !is_pointer_size(size) {
            return Err(TableError::Outside {
                index: self.index,
                name: Name::new(self.text(raw)?),
                offset,
                len: u32::from(size),
            });
        }
        self.range(raw, offset, u32::from(size))
    }

    /// The `len` bytes at `offset` of a file that was loaded.
    fn range(&mut self, raw: &[u8], offset: u32, len: u32) -> Result<&mut [u8], TableError> {
        let file = self.loaded(raw)?;
        let outside = TableError::Outside {
            index: self.index,
            name: Name::new(self.text(raw)?),
            offset,
            len,
        };
        if offset.checked_add(len).is_none_or(|end| end > file.size) {
            return Err(outside);
        }
        self.memory
            .bytes(file.at + u64::from(offset), len as usize)
            .ok_or(outside)
    }

    fn loaded(&self, raw: &[u8]) -> Result<Loaded, TableError> {
        let text = self.text(raw)?;
        self.loaded
            .iter()
            .find(|file| self.text(&file.name) == Ok(text))
            .copied()
            .ok_or_else(|| TableError::NotLoaded {
                index: self.index,
                name: Name::new(text),
            })
    }

    fn text<'n>(&self, raw: &'n [u8]) -> Result<&'n str, TableError> {
        raw.iter()
            .position(|byte| *byte == 0)
            .and_then(|end| core::str::from_utf8(&raw[..end]).ok())
            .ok_or(TableError::BadName { index: self.index })
    }
}

fn is_pointer_size(size: u8) -> bool {
    matches!(size, 1 | 2 | 4 | 8)
}

#[cfg(test)]
mod tests;
