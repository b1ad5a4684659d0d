//! The disk of a machine: a GPT with one partition `daruma`, whose ext4 file system holds the disk guests' images.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpt::partition_types;
use uuid::Uuid;

use crate::table::{self, MARGIN, Table};
use crate::{Error, tool};

/// Name of the partition and label of its file system: by either, the host finds it on any attached disk.
pub const LABEL: &str = "daruma";

/// Size of the disk in bytes; the image is sparse.
const SIZE: u64 = 4 << 30;
const BLOCK: u64 = 4096;

// Set by hand: the same inputs give the same bytes.
const DISK_GUID: Uuid = Uuid::from_u128(0x7f1c1e0a_5f27_4d3a_9c55_6469736b0000);
const PARTITION_GUID: Uuid = Uuid::from_u128(0x7f1c1e0a_5f27_4d3a_9c55_6469736b0001);
const FILE_SYSTEM_UUID: &str = "7f1c1e0a-5f27-4d3a-9c55-6469736b0002";

/// When the file system was made, as far as its superblock knows: 2023-06-10, in seconds since 1970.
const EPOCH: u64 = 1_686_355_200;

/// A file to put on the disk.
#[derive(Debug)]
pub struct Content<'a> {
    /// Path in the file system, relative to its root: `guests/debian/root.img`.
    pub path: &'a str,
    /// The file to copy; holes stay holes.
    pub source: &'a Path,
}

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
    let tree = scratch.join("disk-tree");
    tool::empty_folder(&tree)?;
    for Content { path, source } in contents {
        link_or_copy(source, &tree.join(path), log)?;
    }

    let unfinished = tool::unfinished(out);
    let table = Table {
        size: SIZE,
        disk: DISK_GUID,
        partition: PARTITION_GUID,
        kind: partition_types::LINUX_FS,
        name: LABEL,
    };
    table.create(&unfinished)?;

    let options = format!(
        "offset={MARGIN},hash_seed={FILE_SYSTEM_UUID},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    );
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-m",
            "0",
            "-L",
            LABEL,
            "-U",
            FILE_SYSTEM_UUID,
        ])
        .args(["-b", &BLOCK.to_string(), "-E", &options, "-d"])
        .arg(&tree)
        .arg(&unfinished)
        .arg((table::partition_size(SIZE) / BLOCK).to_string())
        .env("E2FSPROGS_FAKE_TIME", EPOCH.to_string());
    tool::run(&mut mke2fs, log)?;
    tool::finish(&unfinished, out)?;
    fs::remove_dir_all(&tree).map_err(Error::io("remove", &tree))
}

/// `source` at `target`: by a link where both lie on one file system, else by a copy that keeps holes.
fn link_or_copy(source: &Path, target: &Path, log: &Path) -> Result<(), Error> {
    let folder = target
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_owned);
    fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    if fs::hard_link(source, target).is_ok() {
        return Ok(());
    }
    tool::run(
        Command::new("cp")
            .arg("--sparse=always")
            .arg(source)
            .arg(target),
        log,
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;
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
