//! The type of guest memory all devices work on.

pub mod discard;

use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;

use thiserror::Error;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    AtomicAccess, ByteValued, Bytes, FileOffset, GuestAddress, GuestMemoryBackend,
    GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion, GuestRegionCollectionError,
    GuestRegionMmap, MemoryRegionAddress, VolatileMemory,
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
        let bitmap = track_dirty.then(|| dirty_bitmap(len));
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

/// Notes changes of the pages of `len` bytes.
pub fn dirty_bitmap(len: usize) -> AtomicBitmap {
    AtomicBitmap::new(len, PAGE_SIZE)
}

/// The `len` bytes from `address` on, if they lie in one region, as rings, tables and nearly all buffers do.
///
/// Whoever goes through `GuestMemoryBackend::get_slices` pays some 150 instructions for each access, which were two
/// thirds of what the block device spent on a request. `None` says nothing but that the long way is needed.
#[inline]
pub fn contiguous(
    memory: &GuestMemory,
    address: GuestAddress,
    len: usize,
) -> Option<GuestSlice<'_>> {
    // Guests have one region or two, around the hole below 4 GiB: found faster one by one than by searching.
    let inside = |region: &GuestRegion| {
        let offset = address.0.wrapping_sub(region.start_addr().0);
        offset < region.len()
    };
    let mut regions = memory.iter();
    let region = match (regions.next(), regions.next()) {
        (Some(region), _) if inside(region) => region,
        (_, Some(region)) if inside(region) => region,
        _ => memory.find_region(address)?,
    };
    let offset = MemoryRegionAddress(address.0.wrapping_sub(region.start_addr().0));
    region.get_slice(offset, len).ok()
}

/// Whether guest memory holds all of the `len` bytes from `address` on.
#[inline]
pub fn holds(memory: &GuestMemory, address: GuestAddress, len: usize) -> bool {
    contiguous(memory, address, len).is_some() || memory.check_range(address, len)
}

/// Reads an object of guest memory.
#[inline]
pub fn read<T: ByteValued>(
    memory: &GuestMemory,
    address: GuestAddress,
) -> Result<T, GuestMemoryError> {
    match contiguous(memory, address, size_of::<T>())
        .map(|slice| slice.get_ref::<T>(0).map(|object| object.load()))
    {
        Some(Ok(object)) => Ok(object),
        _ => memory.read_obj(address),
    }
}

/// Writes an object to guest memory.
#[inline]
pub fn write<T: ByteValued>(
    memory: &GuestMemory,
    address: GuestAddress,
    object: T,
) -> Result<(), GuestMemoryError> {
    match contiguous(memory, address, size_of::<T>())
        .map(|slice| slice.get_ref::<T>(0).map(|place| place.store(object)))
    {
        Some(Ok(())) => Ok(()),
        _ => memory.write_obj(object, address),
    }
}

/// Reads an aligned integer that the guest may write at the same time.
#[inline]
pub fn load<T: AtomicAccess>(
    memory: &GuestMemory,
    address: GuestAddress,
    order: Ordering,
) -> Result<T, GuestMemoryError> {
    match contiguous(memory, address, size_of::<T>()).map(|slice| slice.load(0, order)) {
        Some(Ok(value)) => Ok(value),
        _ => memory.load(address, order),
    }
}

/// Writes an aligned integer that the guest may read at the same time.
#[inline]
pub fn store<T: AtomicAccess>(
    memory: &GuestMemory,
    value: T,
    address: GuestAddress,
    order: Ordering,
) -> Result<(), GuestMemoryError> {
    match contiguous(memory, address, size_of::<T>()).map(|slice| slice.store(value, 0, order)) {
        Some(Ok(())) => Ok(()),
        _ => memory.store(value, address, order),
    }
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
    use super::*;
    use vm_memory::bitmap::Bitmap;

    fn spec(base: u64, len: usize) -> RegionSpec {
        RegionSpec {
            base: GuestAddress(base),
            len,
            file: None,
        }
    }

    #[test]
    fn indices_are_never_seen_half_written() {
        let base = GuestAddress(0);
        let memory = anonymous(&[(base, 0x1000)]).unwrap();
        std::thread::scope(|scope| {
            let driver = scope.spawn(|| {
                for round in 0..200_000_u32 {
                    let value = if round % 2 == 0 { 0xffff_u16 } else { 0 };
                    store(&memory, value, base, Ordering::Release).unwrap();
                }
            });
            while !driver.is_finished() {
                let seen: u16 = load(&memory, base, Ordering::Acquire).unwrap();
                assert!(matches!(seen, 0 | 0xffff), "{seen:#x}");
            }
        });
        // Where it could be torn, it is refused.
        for odd in [1, 0xfff] {
            let odd = GuestAddress(odd);
            load::<u16>(&memory, odd, Ordering::Acquire).unwrap_err();
            store(&memory, 0_u16, odd, Ordering::Release).unwrap_err();
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
    fn objects_across_regions_are_read_and_written_the_long_way() {
        let memory = map(
            vec![spec(0, 0x1000), spec(0x1000, 0x1000), spec(0x3000, 0x1000)],
            true,
        )
        .unwrap();
        let across = GuestAddress(0xffe);
        assert!(contiguous(&memory, across, 4).is_none() && holds(&memory, across, 4));
        for address in [GuestAddress(0x10), across] {
            write(&memory, address, 0x1234_5678_u32).unwrap();
            assert_eq!(read::<u32>(&memory, address).unwrap(), 0x1234_5678);
        }
        store(&memory, 7_u16, across, Ordering::Release).unwrap();
        assert_eq!(load::<u16>(&memory, across, Ordering::Acquire).unwrap(), 7);
        let region = memory.find_region(GuestAddress(0x1000)).unwrap();
        assert!(region.bitmap().dirty_at(0));
        // Into the hole, from it, at the end, and around the end of all addresses.
        for (address, len) in [
            (0x1fff, 2),
            (0x2000, 1),
            (0x3fff, 2),
            (u64::MAX, 1),
            (u64::MAX, 2),
        ] {
            let address = GuestAddress(address);
            assert!(!holds(&memory, address, len) && contiguous(&memory, address, len).is_none());
        }
        assert!(read::<u32>(&memory, GuestAddress(0x1ffe)).is_err());
        assert!(write(&memory, GuestAddress(0x3ffe), 0_u32).is_err());
        assert!(load::<u16>(&memory, GuestAddress(0x2000), Ordering::Relaxed).is_err());
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
