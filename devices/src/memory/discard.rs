//! Gives pages of guest memory back to the host.
#![expect(
    unsafe_code,
    reason = "takes pages out of a mapping, which only a system call can"
)]

use std::io;

use thiserror::Error;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{GuestMemory, GuestRegion};

/// Bytes of a page: the least that can be given back.
pub const PAGE: u64 = 4096;

/// Why pages stay where they are.
#[derive(Debug, Error)]
pub enum DiscardError {
    /// Part of a page is used by something else.
    #[error("{len:#x} bytes at guest address {address:#x} are not whole pages of 4096 bytes")]
    Unaligned {
        /// First guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Not all of it is the guest's RAM. Nothing of it was given back.
    #[error("{len:#x} bytes at guest address {address:#x} are not in the guest's memory")]
    Outside {
        /// First guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The host refused.
    #[error("The host does not take {len:#x} bytes at guest address {address:#x} back")]
    Host {
        /// First guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Gives the `len` bytes from `address` on back to the host. The guest reads zeroes there from then on, and gets new
/// pages as soon as it touches them; in memory that goes on from a snapshot's file it reads what it had then, which a
/// guest that has given pages away must not rely on either (virtio 1.2 §5.5.6.1, without page poison).
///
/// All of it must be whole pages of `memory`, which may lie in regions that touch each other.
pub fn discard(memory: &GuestMemory, address: GuestAddress, len: u64) -> Result<(), DiscardError> {
    if !(address.0.is_multiple_of(PAGE) && len.is_multiple_of(PAGE)) {
        return Err(DiscardError::Unaligned {
            address: address.0,
            len,
        });
    }
    let outside = || DiscardError::Outside {
        address: address.0,
        len,
    };
    let size = usize::try_from(len).map_err(|_| outside())?;
    if !memory.check_range(address, size) {
        return Err(outside());
    }
    let (mut next, mut left) = (address.0, size);
    while left > 0 {
        let (region, offset) = memory
            .to_region_addr(GuestAddress(next))
            .ok_or_else(outside)?;
        let room = usize::try_from(region.len() - offset.0).unwrap_or(usize::MAX);
        let taken = left.min(room);
        discard_in(region, offset, taken).map_err(|source| DiscardError::Host {
            address: next,
            len: taken as u64,
            source,
        })?;
        next += taken as u64;
        left -= taken;
    }
    Ok(())
}

/// `len` bytes at `offset`, both whole pages, are within `region`.
fn discard_in(region: &GuestRegion, offset: MemoryRegionAddress, len: usize) -> io::Result<()> {
    let slice = region.get_slice(offset, len).map_err(io::Error::other)?;
    // What others share must be cut out of their file too, or it would come back from there.
    let advice = if region.flags() & libc::MAP_SHARED == 0 {
        libc::MADV_DONTNEED
    } else {
        libc::MADV_REMOVE
    };
    let start = slice.ptr_guard_mut();
    // SAFETY: `start` is the first of `len` bytes that the region maps (the slice checked that), and which nobody else's
    // mapping overlaps. The mapping stays; its pages read as zeroes. Guest memory is accessed by volatile means only,
    // and whoever accesses it expects the guest to change it at any time.
    let result = unsafe { libc::madvise(start.as_ptr().cast(), len, advice) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    slice.bitmap().mark_dirty(0, len);
    Ok(())
}

/// How much of guest memory is there.
#[cfg(any(test, feature = "test-utils"))]
pub mod testing {
    use super::{GuestMemory, PAGE};
    use vm_memory::{GuestAddress, GuestMemoryBackend};

    /// Whether the host has a page behind the guest's page at `address`.
    ///
    /// By the kernel's page map: what this process has mapped, whoever else has the page.
    pub fn is_resident(memory: &GuestMemory, address: u64) -> bool {
        use std::os::unix::fs::FileExt;

        const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
        let host = memory
            .get_host_address(GuestAddress(address))
            .expect("an address in guest memory");
        let map = std::fs::File::open("/proc/self/pagemap").expect("a page map");
        let mut entry = [0; 8];
        map.read_exact_at(&mut entry, host.addr() as u64 / PAGE * 8)
            .expect("an entry for each page");
        u64::from_le_bytes(entry) & PRESENT_OR_SWAPPED != 0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::testing::is_resident;
    use super::*;
    use crate::memory::{RegionSpec, map};
    use vm_memory::{Bytes, FileOffset};

    fn spec(base: u64, len: usize) -> RegionSpec {
        RegionSpec {
            base: GuestAddress(base),
            len,
            file: None,
        }
    }

    /// Pages 0 to 3 and 4 to 7 in two regions that touch, a hole, and page 16.
    fn memory() -> GuestMemory {
        let specs = vec![
            spec(0, 0x4000),
            spec(0x4000, 0x4000),
            spec(0x1_0000, 0x1000),
        ];
        let memory = map(specs, true).unwrap();
        for page in (0..8).chain([16]) {
            memory.write_obj(7_u8, GuestAddress(page * PAGE)).unwrap();
        }
        memory
    }

    #[test]
    fn discarded_pages_leave_the_process_and_their_neighbours_stay() {
        let memory = memory();
        discard(&memory, GuestAddress(0x1000), 0x2000).unwrap();
        for page in 0..4 {
            let given_back = page == 1 || page == 2;
            assert_eq!(is_resident(&memory, page * PAGE), !given_back, "{page}");
            let value: u8 = memory.read_obj(GuestAddress(page * PAGE)).unwrap();
            assert_eq!(value, if given_back { 0 } else { 7 });
        }
    }

    #[test]
    fn what_was_discarded_counts_as_written() {
        let memory = map(vec![spec(0, 0x4000)], true).unwrap();
        discard(&memory, GuestAddress(0x1000), 0x1000).unwrap();
        let region = memory.find_region(GuestAddress(0)).unwrap();
        let dirty: Vec<_> = (0..4)
            .map(|page| region.bitmap().dirty_at(page * 4096))
            .collect();
        assert_eq!(dirty, [false, true, false, false]);
    }

    #[test]
    fn regions_that_touch_are_discarded_as_one() {
        let memory = memory();
        discard(&memory, GuestAddress(0x3000), 0x2000).unwrap();
        let there: Vec<_> = (0..8).filter(|p| is_resident(&memory, p * PAGE)).collect();
        assert_eq!(there, [0, 1, 2, 5, 6, 7]);
    }

    #[test]
    fn nothing_is_discarded_of_what_is_not_whole_pages_of_the_guest() {
        let memory = memory();
        for (address, len) in [(1, PAGE), (0, 1), (0x800, 0x800)] {
            let error = discard(&memory, GuestAddress(address), len).unwrap_err();
            assert!(matches!(error, DiscardError::Unaligned { .. }), "{error}");
        }
        let last = u64::MAX - (PAGE - 1);
        for (address, len) in [
            (0x7000, 2 * PAGE),
            (0x8000, PAGE),
            (0xf000, 2 * PAGE),
            (0x1_0000, 2 * PAGE),
            (last, PAGE),
            (0x1000, last),
        ] {
            let error = discard(&memory, GuestAddress(address), len).unwrap_err();
            assert!(matches!(error, DiscardError::Outside { .. }), "{error}");
        }
        for page in (0..8).chain([16]) {
            assert!(is_resident(&memory, page * PAGE), "{page}");
        }
        discard(&memory, GuestAddress(0), 0).unwrap();
    }

    #[test]
    fn memory_of_a_file_is_cut_out_of_the_file() {
        let file = vmm_sys_util::tempfile::TempFile::new_in("/dev/shm".as_ref())
            .unwrap()
            .into_file();
        file.set_len(0x4000).unwrap();
        let other = file.try_clone().unwrap();
        let backed = RegionSpec {
            file: Some(FileOffset::new(file, 0)),
            ..spec(0, 0x4000)
        };
        let memory = map(vec![backed], false).unwrap();
        memory.write_slice(&[7; 0x4000], GuestAddress(0)).unwrap();
        let before = other.metadata().unwrap().blocks();
        discard(&memory, GuestAddress(0x1000), 0x2000).unwrap();
        assert_eq!(before - other.metadata().unwrap().blocks(), 0x2000 / 512);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x1000)).unwrap(), 0);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x3000)).unwrap(), 7);
    }
}
