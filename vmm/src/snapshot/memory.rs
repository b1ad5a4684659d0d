//! The memory file: all regions of RAM one after the other, as they are. Pages of zeroes are holes, and so is, in a file of
//! changes, what has not changed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use devices::memory::{GuestMemory, GuestRegion};
use vm_memory::{
    Bytes, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, MemoryRegionAddress,
};

/// Bytes of a page: what is a hole or not.
const PAGE: usize = 4096;
/// Bytes that are looked at at a time.
const CHUNK: usize = 64 * PAGE;

static ZEROES: [u8; PAGE] = [0; PAGE];

/// Why memory cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum MemoryFileError {
    /// By the host.
    #[error("Cannot write the guest's memory at {offset:#x} of its file")]
    Write {
        /// Where in the file.
        offset: u64,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// By its own mapping.
    #[error("Cannot read the guest's memory")]
    Read(#[source] GuestMemoryError),
}

/// Which pages of a region are to be written, one bit each; none of them says that all are.
pub type Pages = Option<Vec<u64>>;

/// Bytes of all of `memory`, and so of its file.
pub fn len(memory: &GuestMemory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// Writes `memory` to `file`, which is empty: of each region those of its `pages` that are not zero. Returns how many bytes
/// were written.
///
/// In a file of changes a page that has become zero is written: a hole there means "as before".
pub fn write(memory: &GuestMemory, pages: &[Pages], file: &File) -> Result<u64, MemoryFileError> {
    let failed = |offset| move |source| MemoryFileError::Write { offset, source };
    let total = len(memory);
    file.set_len(total).map_err(failed(total))?;
    let (mut start, mut written) = (0, 0);
    let mut buffer = vec![0; CHUNK];
    for (region, pages) in memory.iter().zip(pages) {
        written += write_region(region, pages, file, start, &mut buffer)?;
        start += region.len();
    }
    Ok(written)
}

fn write_region(
    region: &GuestRegion,
    pages: &Pages,
    file: &File,
    start: u64,
    buffer: &mut [u8],
) -> Result<u64, MemoryFileError> {
    let mut written = 0;
    let mut at = 0;
    while at < region.len() {
        let left = usize::try_from(region.len() - at).unwrap_or(usize::MAX);
        let chunk = &mut buffer[..left.min(CHUNK)];
        let first = usize::try_from(at).unwrap_or(usize::MAX) / PAGE;
        let count = chunk.len().div_ceil(PAGE);
        if let Some(pages) = pages
            && !(first..first + count).any(|page| is_set(pages, page))
        {
            at += chunk.len() as u64;
            continue;
        }
        region
            .read_slice(chunk, MemoryRegionAddress(at))
            .map_err(MemoryFileError::Read)?;
        let wanted = |index: usize| match pages {
            None => {
                let end = ((index + 1) * PAGE).min(chunk.len());
                let page = &chunk[index * PAGE..end];
                page != &ZEROES[..page.len()]
            }
            Some(pages) => is_set(pages, first + index),
        };
        // Neighbours go by one call.
        let mut page = 0;
        while page < count {
            let run = (page..count).take_while(|&index| wanted(index)).count();
            if run == 0 {
                page += 1;
                continue;
            }
            let end = ((page + run) * PAGE).min(chunk.len());
            let offset = start + at + (page * PAGE) as u64;
            file.write_all_at(&chunk[page * PAGE..end], offset)
                .map_err(|source| MemoryFileError::Write { offset, source })?;
            written += (end - page * PAGE) as u64;
            page += run;
        }
        at += chunk.len() as u64;
    }
    Ok(written)
}

fn is_set(bitmap: &[u64], page: usize) -> bool {
    bitmap
        .get(page / 64)
        .is_some_and(|word| word & 1 << (page % 64) != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;
    use vm_memory::GuestAddress;

    use super::*;

    const REGION: usize = 3 << 20;

    fn memory() -> GuestMemory {
        let high = GuestAddress(1 << 32);
        devices::memory::anonymous(&[(GuestAddress(0), REGION), (high, REGION)]).unwrap()
    }

    #[test]
    fn pages_of_zeroes_take_no_room_and_all_others_are_where_they_belong() {
        let memory = memory();
        memory.write_slice(&[1; 5], GuestAddress(0x7ffe)).unwrap();
        memory
            .write_slice(&[2; 1], GuestAddress(0x1_0000_0000))
            .unwrap();
        let last = GuestAddress(0x1_0000_0000 + REGION as u64 - 1);
        memory.write_slice(&[3; 1], last).unwrap();
        let file = tempfile::tempfile().unwrap();
        let written = write(&memory, &[None, None], &file).unwrap();
        assert_eq!(written, 4 * PAGE as u64);
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 2 * REGION as u64);
        assert!(
            metadata.blocks() * 512 < 1 << 20,
            "{} blocks",
            metadata.blocks()
        );
        let byte = |offset: u64| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).unwrap();
            byte[0]
        };
        let second = REGION as u64;
        assert_eq!(
            [byte(0x7ffd), byte(0x7ffe), byte(0x8002), byte(0x8003)],
            [0, 1, 1, 0]
        );
        assert_eq!(
            [byte(second), byte(second + 1), byte(2 * second - 1)],
            [2, 0, 3]
        );
    }

    proptest! {
        #[test]
        fn changes_are_written_whatever_they_are_and_nothing_else(
            changed in prop::collection::btree_set(0..2 * REGION / PAGE, 0..40),
            zero in any::<bool>(),
        ) {
            let memory = memory();
            let pages = REGION / PAGE;
            let bitmap = |from: usize| {
                let mut bits = vec![0; pages.div_ceil(64)];
                for page in changed.iter().filter(|page| (from..from + pages).contains(page)) {
                    let page = page - from;
                    bits[page / 64] |= 1_u64 << (page % 64);
                }
                Some(bits)
            };
            if !zero {
                memory.write_slice(&vec![7; REGION], GuestAddress(0)).unwrap();
            }
            let file = tempfile::tempfile().unwrap();
            let written = write(&memory, &[bitmap(0), bitmap(pages)], &file).unwrap();
            prop_assert_eq!(written, (changed.len() * PAGE) as u64);
            for page in 0..pages {
                let mut byte = [0];
                file.read_exact_at(&mut byte, (page * PAGE) as u64).unwrap();
                let expected = if changed.contains(&page) && !zero { 7 } else { 0 };
                prop_assert_eq!(byte[0], expected);
            }
        }
    }
}
