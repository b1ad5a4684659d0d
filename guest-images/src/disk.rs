//! The disk of a machine: a GPT with one partition `daruma`, whose ext4 file system holds the disk guests' images.

use std::path::Path;

use gpt::partition_types;
use uuid::Uuid;

use crate::ext4::{self, Content};
use crate::table::{self, MARGIN, Part, Table};
use crate::{Error, tool};

/// Name of the partition and label of its file system: by either, the host finds it on any attached disk.
pub const LABEL: &str = "daruma";

/// Size of the disk in bytes; the image is sparse.
const SIZE: u64 = 4 << 30;

// Set by hand: the same inputs give the same bytes.
const DISK_GUID: Uuid = Uuid::from_u128(0x7f1c1e0a_5f27_4d3a_9c55_6469736b0000);
const PARTITION_GUID: Uuid = Uuid::from_u128(0x7f1c1e0a_5f27_4d3a_9c55_6469736b0001);
const FILE_SYSTEM_UUID: &str = "7f1c1e0a-5f27-4d3a-9c55-6469736b0002";

/// What decides the image besides its contents.
pub fn recipe() -> String {
    format!("{SIZE} {MARGIN} {DISK_GUID} {PARTITION_GUID} {FILE_SYSTEM_UUID}")
}

/// Makes the disk image at `out`. `scratch` is a folder to work in; `log` takes the tools' output.
pub fn build(
    contents: &[Content<'_>],
    scratch: &Path,
    log: &Path,
    out: &Path,
) -> Result<(), Error> {
    let unfinished = tool::unfinished(out);
    let table = Table {
        size: SIZE,
        disk: DISK_GUID,
        partitions: &[Part {
            guid: PARTITION_GUID,
            kind: partition_types::LINUX_FS,
            name: LABEL,
            size: table::partition_size(SIZE),
        }],
    };
    table.create(&unfinished)?;
    let place = ext4::Place {
        label: LABEL,
        uuid: FILE_SYSTEM_UUID,
        offset: MARGIN,
        size: table::partition_size(SIZE),
    };
    ext4::make(&place, contents, scratch, log, &unfinished)?;
    tool::finish(&unfinished, out)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;

    use gpt::GptConfig;

    use super::*;
    use crate::table::SECTOR;

    #[test]
    fn the_host_finds_the_disk_by_partition_name_and_by_label() {
        let folder = tempfile::tempdir().unwrap();
        let (source, out) = (
            folder.path().join("root.img"),
            folder.path().join("disk.img"),
        );
        fs::write(&source, "a guest's root").unwrap();
        let contents = [Content {
            path: "guests/debian/root.img",
            source: &source,
        }];
        build(
            &contents,
            &folder.path().join("scratch"),
            &folder.path().join("log"),
            &out,
        )
        .unwrap();

        let table = GptConfig::new().open(&out).unwrap();
        let names: Vec<_> = table
            .partitions()
            .values()
            .map(|partition| &*partition.name)
            .collect();
        assert_eq!(names, [LABEL]);
        let first_lba = table.partitions()[&1].first_lba;
        // ext4's superblock lies 1024 bytes into the partition: magic at 0x38, label at 0x78.
        let mut superblock = [0; 0x88];
        let disk = File::open(&out).unwrap();
        disk.read_exact_at(&mut superblock, first_lba * SECTOR + 1024)
            .unwrap();
        assert_eq!(superblock[0x38..0x3a], [0x53, 0xef]);
        assert_eq!(superblock[0x78..0x7e], *b"daruma");
        assert!(!tool::unfinished(&out).exists());
    }
}
