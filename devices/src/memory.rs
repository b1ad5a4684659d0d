//! The type of guest memory all devices work on.

use std::num::NonZeroUsize;

use thiserror::Error;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionCollectionError, GuestRegionMmap,
};

/// Dirty-page tracking, chosen at run time: `None` costs one branch for each access.
pub type DirtyBitmap = Option<AtomicBitmap>;

/// A guest's physical memory.
pub type GuestMemory = GuestMemoryMmap<DirtyBitmap>;

/// One contiguous piece of a guest's physical memory.
pub type GuestRegion = GuestRegionMmap<DirtyBitmap>;

/// One slice of guest memory, as [`GuestMemory`] hands it out.
pub type GuestSlice<'a> = vm_memory::VolatileSlice<'a, vm_memory::bitmap::BS<'a, DirtyBitmap>>;

/// The granularity of dirty tracking in bytes: the page size of x86.
const PAGE_SIZE: NonZeroUsize = NonZeroUsize::new(4096).expect("4096 is not zero");

/// Why guest memory could not be set up.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host refused the mapping.
    #[error("Cannot map {len:#x} bytes of guest memory at guest address {base:#x}")]
    Map {
        /// First guest-physical address.
        base: u64,
        /// Length in bytes.
        len: usize,
        /// What the kernel said.
        #[source]
        source: MmapRegionError,
    },
    /// The region would run over the end of the guest's address space.
    #[error("Guest memory of {len:#x} bytes at guest address {base:#x} wraps the address space")]
    Wraps {
        /// First guest-physical address.
        base: u64,
        /// Length in bytes.
        len: usize,
    },
    /// The regions overlap or are not in order.
    #[error("Guest memory regions do not fit together")]
    Regions(#[source] GuestRegionCollectionError),
}

/// One region of guest memory to map.
#[derive(Debug)]
pub struct RegionSpec {
    /// First guest-physical address.
    pub base: GuestAddress,
    /// Length in bytes, a multiple of the page size.
    pub len: usize,
    /// The file (such as a memfd) behind it; anonymous private memory without one.
    pub file: Option<FileOffset>,
}

/// Maps guest memory made of `regions` (ordered, not overlapping), with or without dirty tracking.
pub fn map(regions: Vec<RegionSpec>, track_dirty: bool) -> Result<GuestMemory, MemoryError> {
    let mut mapped = Vec::with_capacity(regions.len());
    for RegionSpec { base, len, file } in regions {
        let bitmap = track_dirty.then(|| AtomicBitmap::new(len, PAGE_SIZE));
        // A guest may be given more memory than it ever touches: swap is not reserved for it.
        let (flags, file) = match file {
            Some(file) => (libc::MAP_SHARED | libc::MAP_NORESERVE, Some(file)),
            None => (
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                None,
            ),
        };
        let builder = MmapRegionBuilder::new_with_bitmap(len, bitmap)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags);
        let builder = match file {
            Some(file) => builder.with_file_offset(file),
            None => builder,
        };
        let region = builder.build().map_err(|source| MemoryError::Map {
            base: base.0,
            len,
            source,
        })?;
        let region =
            GuestRegion::new(region, base).ok_or(MemoryError::Wraps { base: base.0, len })?;
        mapped.push(region);
    }
    GuestMemory::from_regions(mapped).map_err(MemoryError::Regions)
}

/// Maps anonymous guest memory of `(base, length)` ranges without dirty tracking.
pub fn anonymous(ranges: &[(GuestAddress, usize)]) -> Result<GuestMemory, MemoryError> {
    let spec = |&(base, len): &(GuestAddress, usize)| RegionSpec {
        base,
        len,
        file: None,
    };
    map(ranges.iter().map(spec).collect(), false)
}

#[cfg(test)]
mod tests {
    use vm_memory::bitmap::Bitmap;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    fn spec(base: u64, len: usize) -> RegionSpec {
        RegionSpec {
            base: GuestAddress(base),
            len,
            file: None,
        }
    }

    #[test]
    fn dirty_tracking_is_a_choice_of_run_time() {
        for track in [true, false] {
            let memory = map(vec![spec(0, 0x4000)], track).unwrap();
            memory.write_obj(1_u8, GuestAddress(0x2345)).unwrap();
            let region = memory.find_region(GuestAddress(0)).unwrap();
            assert_eq!(region.bitmap().dirty_at(0x2000), track);
            assert!(!region.bitmap().dirty_at(0x1fff));
        }
    }

    #[test]
    fn file_behind_memory_sees_what_is_written() {
        use std::os::unix::fs::FileExt;

        let file = tempfile::tempfile().unwrap();
        file.set_len(0x2000).unwrap();
        let other = file.try_clone().unwrap();
        let backed = RegionSpec {
            file: Some(FileOffset::new(file, 0x1000)),
            ..spec(0, 0x1000)
        };
        let memory = map(vec![backed], false).unwrap();
        memory.write_slice(b"shared", GuestAddress(2)).unwrap();
        let mut data = [0; 6];
        other.read_exact_at(&mut data, 0x1002).unwrap();
        assert_eq!(&data, b"shared");
    }

    #[test]
    fn memory_that_cannot_be_is_refused() {
        let overlap = map(vec![spec(0, 0x2000), spec(0x1000, 0x1000)], false);
        assert!(matches!(overlap, Err(MemoryError::Regions(_))));
        let wraps = map(vec![spec(u64::MAX - 0xfff, 0x2000)], false);
        assert!(matches!(wraps, Err(MemoryError::Wraps { .. })));
        // Sizes that even overcommit does not give.
        let too_much = map(vec![spec(0, 1 << 60)], false);
        assert!(matches!(too_much, Err(MemoryError::Map { len, .. }) if len == 1 << 60));
    }
}
