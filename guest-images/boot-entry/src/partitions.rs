//! The partitions of a disk, read from a hostile table: GPT (UEFI 2.10 §5.3), MBR (§5.2), or none at all.
//!
//! The `gpt` crate, which writes our disks, takes a table at its word: an entry size of another value than 128 is a failed
//! assertion there, and the number of entries is not bounded. Here nothing is believed.

use super::BootError;
use super::volume::Bytes;

const SECTOR: u64 = 512;
/// Tables with more entries are not searched to their end; the usual number is 128.
const MAX_ENTRIES: u32 = 256;
/// UEFI 2.10 §5.3.2: 128 × 2ⁿ bytes.
const ENTRY_SIZES: std::ops::RangeInclusive<u32> = 128..=4096;

/// A stretch of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Number as the kernel counts, from 1; 0 for the whole disk.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// PARTUUID as Linux writes it.
    pub uuid: Option<String>,
}

/// The partitions of the disk, in the order of the table; the whole disk if it has no table.
pub fn read(disk: &dyn Bytes) -> Result<Vec<Partition>, BootError> {
    let whole = Partition {
        number: 0,
        start: 0,
        length: disk.length(),
        uuid: None,
    };
    if disk.length() < 2 * SECTOR {
        return Ok(vec![whole]);
    }
    let mut mbr = [0; 512];
    disk.read(0, &mut mbr)?;
    if mbr[510..] != [0x55, 0xaa] {
        return Ok(vec![whole]);
    }
    let entries = mbr[446..510].as_chunks::<16>().0;
    // UEFI 2.10 §5.2.3: type 0xEE protects a GPT.
    let found = if entries.iter().any(|entry| entry[4] == 0xee) {
        gpt(disk)?
    } else {
        mbr_partitions(disk, &mbr)
    };
    // A file system's own boot sector ends like an MBR.
    Ok(if found.is_empty() { vec![whole] } else { found })
}

fn mbr_partitions(disk: &dyn Bytes, mbr: &[u8; 512]) -> Vec<Partition> {
    let signature = u32_at(mbr, 440);
    let entries = mbr[446..510].as_chunks::<16>().0;
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(entries) {
        let valid_status = entry[0] & 0x7f == 0;
        // 0x05, 0x0F, 0x85: extended, holds no file system itself.
        if !valid_status || matches!(entry[4], 0 | 0x05 | 0x0f | 0x85) {
            continue;
        }
        let (first, count) = (u64::from(u32_at(entry, 8)), u64::from(u32_at(entry, 12)));
        let uuid = (signature != 0).then(|| format!("{signature:08x}-{number:02x}"));
        found.extend(stretch(disk, number, first, count, uuid));
    }
    found
}

fn gpt(disk: &dyn Bytes) -> Result<Vec<Partition>, BootError> {
    let last = disk.length() / SECTOR - 1;
    // The second table serves where the first is damaged (UEFI 2.10 §5.3.2).
    let primary = gpt_at(disk, 1);
    match primary {
        Err(BootError::Table { .. }) => gpt_at(disk, last).or(primary),
        result => result,
    }
}

fn gpt_at(disk: &dyn Bytes, sector: u64) -> Result<Vec<Partition>, BootError> {
    let damaged = |reason: String| BootError::Table { reason };
    let mut header = [0; 512];
    disk.read(sector * SECTOR, &mut header)?;
    if header[..8] != *b"EFI PART" {
        return Err(damaged(format!("no GPT header in sector {sector}")));
    }
    let table = u64_at(&header, 72);
    let (count, size) = (u32_at(&header, 80), u32_at(&header, 84));
    if !ENTRY_SIZES.contains(&size) || !size.is_power_of_two() {
        return Err(damaged(format!("entries of {size} bytes")));
    }
    let count = count.min(MAX_ENTRIES);
    let bytes = u64::from(count) * u64::from(size);
    let start = table
        .checked_mul(SECTOR)
        .filter(|start| {
            start
                .checked_add(bytes)
                .is_some_and(|end| end <= disk.length())
        })
        .ok_or_else(|| {
            damaged(format!(
                "its entries lie in sector {table}, beyond the disk"
            ))
        })?;
    let mut found = Vec::new();
    for index in 0..count {
        let mut entry = [0; 128];
        disk.read(start + u64::from(index) * u64::from(size), &mut entry)?;
        if entry[..16] == [0; 16] {
            continue;
        }
        let (first, last) = (u64_at(&entry, 32), u64_at(&entry, 40));
        let Some(sectors) = last.checked_sub(first).and_then(|span| span.checked_add(1)) else {
            continue;
        };
        found.extend(stretch(disk, index + 1, first, sectors, Some(guid(&entry))));
    }
    Ok(found)
}

/// A partition, unless it leaves the disk.
fn stretch(
    disk: &dyn Bytes,
    number: u32,
    first: u64,
    sectors: u64,
    uuid: Option<String>,
) -> Option<Partition> {
    let (start, length) = (first.checked_mul(SECTOR)?, sectors.checked_mul(SECTOR)?);
    let inside = length > 0 && start > 0 && start.checked_add(length)? <= disk.length();
    inside.then_some(Partition {
        number,
        start,
        length,
        uuid,
    })
}

/// The unique GUID of an entry: its first three fields are little-endian (UEFI 2.10 appendix A).
fn guid(entry: &[u8; 128]) -> String {
    let raw = &entry[16..32];
    let hex = |bytes: &mut dyn Iterator<Item = &u8>| -> String {
        bytes.map(|byte| format!("{byte:02x}")).collect()
    };
    [
        hex(&mut raw[..4].iter().rev()),
        hex(&mut raw[4..6].iter().rev()),
        hex(&mut raw[6..8].iter().rev()),
        hex(&mut raw[8..10].iter()),
        hex(&mut raw[10..].iter()),
    ]
    .join("-")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1 << 20;

    fn mbr(entries: &[(u8, u32, u32)]) -> Vec<u8> {
        let mut disk = vec![0; MIB];
        disk[440..444].copy_from_slice(&0x1234_abcd_u32.to_le_bytes());
        for (index, (kind, first, count)) in entries.iter().enumerate() {
            let at = 446 + index * 16;
            disk[at + 4] = *kind;
            disk[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
            disk[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
        }
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk
    }

    /// A GPT with one partition, by hand: header in sector 1, entries from sector 2.
    fn gpt_disk(count: u32, size: u32, first: u64, last: u64) -> Vec<u8> {
        let mut disk = mbr(&[(0xee, 1, 2047)]);
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 72..512 + 80].copy_from_slice(&2u64.to_le_bytes());
        disk[512 + 80..512 + 84].copy_from_slice(&count.to_le_bytes());
        disk[512 + 84..512 + 88].copy_from_slice(&size.to_le_bytes());
        for byte in 0..32 {
            disk[1024 + usize::from(byte)] = byte + 1;
        }
        disk[1024 + 32..1024 + 40].copy_from_slice(&first.to_le_bytes());
        disk[1024 + 40..1024 + 48].copy_from_slice(&last.to_le_bytes());
        disk
    }

    #[test]
    fn mbr_partitions_have_linux_numbers_and_identities() {
        let found = read(&mbr(&[(0x83, 64, 128), (0x05, 256, 64), (0x83, 512, 8)])).unwrap();
        let numbers: Vec<_> = found.iter().map(|partition| partition.number).collect();
        assert_eq!(numbers, [1, 3]);
        assert_eq!((found[0].start, found[0].length), (64 * 512, 128 * 512));
        assert_eq!(found[1].uuid.as_deref(), Some("1234abcd-03"));
    }

    #[test]
    fn gpt_partitions_have_their_guid() {
        let found = read(&gpt_disk(128, 128, 34, 99)).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].start, found[0].length), (34 * 512, 66 * 512));
        assert_eq!(
            found[0].uuid.as_deref(),
            Some("14131211-1615-1817-191a-1b1c1d1e1f20")
        );
    }

    #[test]
    fn a_disk_without_a_table_is_one_file_system() {
        for disk in [vec![0; MIB], vec![0; 100], mbr(&[])] {
            let found = read(&disk).unwrap();
            assert_eq!((found.len(), found[0].number), (1, 0));
        }
    }

    #[test]
    fn what_leaves_the_disk_is_no_partition() {
        for (first, last) in [
            (34, 4000),
            (0, 10),
            (99, 34),
            (u64::MAX, u64::MAX),
            (0, u64::MAX),
        ] {
            let found = read(&gpt_disk(128, 128, first, last)).unwrap();
            assert_eq!(found[0].number, 0, "{first} {last}");
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        for size in [0, 1, 127, 129, 8192, u32::MAX] {
            let error = read(&gpt_disk(128, size, 34, 99)).unwrap_err();
            assert!(matches!(error, BootError::Table { .. }), "{error}");
        }
        assert_eq!(read(&gpt_disk(u32::MAX, 128, 34, 99)).unwrap()[0].number, 1);
    }

    #[test]
    fn the_second_table_serves_where_the_first_is_damaged() {
        let mut disk = gpt_disk(128, 128, 34, 99);
        disk.copy_within(512..1024, MIB - 512);
        disk[512] = 0;
        assert_eq!(read(&disk).unwrap()[0].number, 1);
    }

    proptest! {
        #[test]
        fn damage_never_panics(changes in prop::collection::vec((0usize..2048, any::<u8>()), 1..16)) {
            let mut disk = gpt_disk(128, 128, 34, 99);
            for (at, value) in changes {
                disk[at] = value;
            }
            let length = disk.len() as u64;
            for partition in read(&disk).unwrap_or_default() {
                prop_assert!(partition.start + partition.length <= length);
            }
        }
    }
}
