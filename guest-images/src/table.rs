//! A GPT whose partitions fill the disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use gpt::partition_types::Type;
use uuid::Uuid;

use crate::{Error, tool};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// The first partition starts at the usual 1 MiB, the last ends 1 MiB before the disk: the second table lies there.
pub const MARGIN: u64 = 1 << 20;

/// What goes into the table. The GUIDs are set by hand: the same inputs give the same bytes.
pub struct Table<'a> {
    /// Size of the disk in bytes.
    pub size: u64,
    /// GUID of the disk.
    pub disk: Uuid,
    /// The partitions, in their order on the disk, without gaps.
    pub partitions: &'a [Part<'a>],
}

/// One partition.
#[derive(Clone)]
pub struct Part<'a> {
    /// Its GUID: what Linux calls PARTUUID.
    pub guid: Uuid,
    /// Its type.
    pub kind: Type,
    /// Its name.
    pub name: &'a str,
    /// Its bytes, whole MiB.
    pub size: u64,
}

/// Bytes that partitions can take together on a disk of `size` bytes.
pub fn partition_size(size: u64) -> u64 {
    size - 2 * MARGIN
}

impl Table<'_> {
    /// Makes a sparse disk image with this table.
    pub fn create(&self, path: &Path) -> Result<(), Error> {
        let mut disk = tool::sparse_file(path, self.size)?;
        self.write(&mut disk)
            .map_err(|source| Error::PartitionTable {
                path: path.to_owned(),
                source,
            })
    }

    /// Writes the protective MBR and both copies of the GPT.
    fn write(&self, disk: &mut File) -> io::Result<()> {
        let last_sector = u32::try_from(self.size / SECTOR - 1).unwrap_or(u32::MAX);
        ProtectiveMBR::with_lb_size(last_sector)
            .overwrite_lba0(disk)
            .map_err(io::Error::other)?;
        let mut table = GptConfig::new()
            .writable(true)
            .logical_block_size(LogicalBlockSize::Lb512)
            .create_from_device(disk, Some(self.disk))
            .map_err(io::Error::other)?;
        let mut partitions = BTreeMap::new();
        let mut start = MARGIN;
        for (number, part) in (1..).zip(self.partitions) {
            let end = start + part.size;
            let partition = Partition {
                part_type_guid: part.kind.clone(),
                part_guid: part.guid,
                first_lba: start / SECTOR,
                last_lba: end / SECTOR - 1,
                flags: 0,
                name: part.name.to_owned(),
            };
            partitions.insert(number, partition);
            start = end;
        }
        if start > self.size - MARGIN {
            return Err(io::Error::other(format!(
                "the partitions end at {start}, the disk at {}",
                self.size
            )));
        }
        table
            .update_partitions(partitions)
            .map_err(io::Error::other)?;
        table.write().map_err(io::Error::other)?;
        Ok(())
    }
}
