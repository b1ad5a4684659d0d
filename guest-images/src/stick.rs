//! The disk that a UEFI PC boots from: a GPT with an EFI system partition and a partition `daruma` for the guests.

use std::fs::OpenOptions;
use std::io::{self, Cursor, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use gpt::partition_types;
use uuid::Uuid;

use crate::disk::LABEL;
use crate::ext4::{self, Content};
use crate::table::{MARGIN, Part, Table};
use crate::{Error, tool};

/// Where firmware looks on a disk that it knows nothing of (UEFI Specification, "Removable Media Boot Behavior").
const BOOT_FOLDERS: [&str; 2] = ["EFI", "EFI/BOOT"];
const BOOT_FILE: &str = "EFI/BOOT/BOOTX64.EFI";

/// Bytes of the disk: a stick of 2 GB holds it. What guests and store may write goes into what is left of it.
const SIZE: u64 = 3 << 29;
/// Bytes of the EFI system partition: room for a second program, and enough clusters for FAT32, which the specification
/// wants here.
const ESP_SIZE: u64 = 64 << 20;
const SECTOR: u32 = 512;

// Set by hand: the same inputs give the same bytes.
const DISK_GUID: Uuid = Uuid::from_u128(0x7f1c1e0a_5f27_4d3a_9c55_737469636b00);
const ESP_GUID: Uuid = Uuid::from_u128(0x7f1c1e0a_5f27_4d3a_9c55_737469636b01);
const PARTITION_GUID: Uuid = Uuid::from_u128(0x7f1c1e0a_5f27_4d3a_9c55_737469636b02);
const FILE_SYSTEM_UUID: &str = "7f1c1e0a-5f27-4d3a-9c55-737469636b03";
const ESP_SERIAL: u32 = 0x7f1c_1e0a;
const ESP_LABEL: [u8; 11] = *b"DARUMA BOOT";

/// What decides the image besides its contents.
pub fn recipe() -> String {
    format!("{SIZE} {ESP_SIZE} {MARGIN} {DISK_GUID} {FILE_SYSTEM_UUID} 1")
}

/// Makes the disk image at `out`, which boots the UEFI program `program` and has `contents` for its guests. `scratch` is a
/// folder to work in; `log` takes the tools' output.
pub fn build(
    program: &[u8],
    contents: &[Content<'_>],
    scratch: &Path,
    log: &Path,
    out: &Path,
) -> Result<(), Error> {
    build_sized(SIZE, program, contents, scratch, log, out)
}

fn build_sized(
    size: u64,
    program: &[u8],
    contents: &[Content<'_>],
    scratch: &Path,
    log: &Path,
    out: &Path,
) -> Result<(), Error> {
    let unfinished = tool::unfinished(out);
    let guests_size = size - 2 * MARGIN - ESP_SIZE;
    let table = Table {
        size,
        disk: DISK_GUID,
        partitions: &[
            Part {
                guid: ESP_GUID,
                kind: partition_types::EFI,
                name: "EFI system partition",
                size: ESP_SIZE,
            },
            Part {
                guid: PARTITION_GUID,
                kind: partition_types::LINUX_FS,
                name: LABEL,
                size: guests_size,
            },
        ],
    };
    table.create(&unfinished)?;
    let fat = system_partition(program).map_err(Error::io("make a FAT for", out))?;
    let mut disk = OpenOptions::new()
        .write(true)
        .open(&unfinished)
        .map_err(Error::io("open", &unfinished))?;
    write_sparse(&mut disk, MARGIN, &fat).map_err(Error::io("write", &unfinished))?;
    drop(disk);
    let place = ext4::Place {
        label: LABEL,
        uuid: FILE_SYSTEM_UUID,
        offset: MARGIN + ESP_SIZE,
        size: guests_size,
    };
    ext4::make(&place, contents, scratch, log, &unfinished)?;
    tool::finish(&unfinished, out)
}

/// A FAT32 with `program` where firmware looks for one.
fn system_partition(program: &[u8]) -> io::Result<Vec<u8>> {
    let size = usize::try_from(ESP_SIZE).map_err(io::Error::other)?;
    let mut partition = Cursor::new(vec![0; size]);
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(SECTOR)
        .volume_id(ESP_SERIAL)
        .volume_label(ESP_LABEL);
    fatfs::format_volume(&mut partition, options)?;
    {
        let files = FileSystem::new(&mut partition, FsOptions::new())?;
        for folder in BOOT_FOLDERS {
            files.root_dir().create_dir(folder)?;
        }
        let mut file = files.root_dir().create_file(BOOT_FILE)?;
        file.write_all(program)?;
        file.flush()?;
    }
    Ok(partition.into_inner())
}

/// Writes what of `bytes` is not zero.
fn write_sparse(disk: &mut std::fs::File, at: u64, bytes: &[u8]) -> io::Result<()> {
    const PIECE: usize = 64 << 10;
    for (offset, piece) in (at..).step_by(PIECE).zip(bytes.chunks(PIECE)) {
        if piece.iter().any(|byte| *byte != 0) {
            disk.seek(SeekFrom::Start(offset))?;
            disk.write_all(piece)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read as _;

    use gpt::GptConfig;

    use super::*;
    use crate::table::SECTOR as BLOCK;

    /// The disk, built from one file.
    fn built(folder: &Path, name: &str) -> std::path::PathBuf {
        let source = folder.join("machine.toml");
        fs::write(&source, "[machine]").unwrap();
        let contents = [Content {
            path: "machine.toml",
            source: &source,
        }];
        let out = folder.join(name);
        let (size, log) = (128 << 20, folder.join("log"));
        build_sized(size, b"a program", &contents, folder, &log, &out).unwrap();
        out
    }

    #[test]
    fn firmware_finds_its_program_and_the_host_its_partition() {
        let folder = tempfile::tempdir().unwrap();
        let out = built(folder.path(), "stick.img");
        let table = GptConfig::new().open(&out).unwrap();
        let (system, guests) = (&table.partitions()[&1], &table.partitions()[&2]);
        assert_eq!(system.part_type_guid, partition_types::EFI);
        assert_eq!(guests.name, LABEL);
        assert!(system.last_lba < guests.first_lba);

        let mut disk = File::open(&out).unwrap();
        disk.seek(SeekFrom::Start(system.first_lba * BLOCK))
            .unwrap();
        let mut bytes = vec![0; usize::try_from(ESP_SIZE).unwrap()];
        disk.read_exact(&mut bytes).unwrap();
        let files = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
        assert_eq!(files.fat_type(), FatType::Fat32);
        let mut program = Vec::new();
        let mut file = files.root_dir().open_file("efi/boot/bootx64.efi").unwrap();
        file.read_to_end(&mut program).unwrap();
        assert_eq!(program, b"a program");
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let first = fs::read(built(folder.path(), "first.img")).unwrap();
        let second = fs::read(built(folder.path(), "second.img")).unwrap();
        assert!(first == second);
    }
}
