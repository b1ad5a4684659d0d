//! A guest's RAM: one mapping per region, in huge pages where the host has them.
//!
//! Anonymous, or of a file without a name where other processes serve the guest's devices.
#![expect(
    unsafe_code,
    reason = "maps memory at an alignment that the standard mapping calls do not offer"
)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

use devices::memory::GuestRegion;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::config::MemorySize;
use crate::jail::opened::{self, Kind};
use crate::layout::{GAP_END, GAP_START, KIB, MIB};

pub use devices::memory::GuestMemory;

/// Alignment that lets the host back RAM with 2 MiB pages, and the guest's nested page tables with large entries.
/// Where the host says how much memory it has.
const MEMINFO: &str = "/proc/meminfo";

/// Looks for a later [`allocate`] how much memory the host has.
pub fn open_ahead() {
    // A host without /proc cannot be asked.
    let _ = opened::keep_file(Path::new(MEMINFO), false);
}

const HUGE_PAGE: usize = 2 << 20;

/// Why guest memory could not be made.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant describes it and its values"
)]
pub enum MemoryError {
    #[error(
        "The guest's memory is {asked_mib} MiB, the host has {total_mib} MiB in total and {available_mib} MiB available: give the guest less"
    )]
    MoreThanHost {
        asked_mib: u64,
        total_mib: u64,
        available_mib: u64,
    },
    #[error("Cannot map {mib} MiB for the guest's memory")]
    Map {
        mib: u64,
        #[source]
        source: io::Error,
    },
    #[error("Cannot use the mapping for the guest's memory")]
    Region(#[source] MmapRegionError),
    #[error("Cannot open {path} for the guest's memory", path = .path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} has {found} bytes, the guest's memory has {expected}: it is not the memory of this snapshot, or not whole",
        path = .path.display()
    )]
    FileLength {
        path: PathBuf,
        found: u64,
        expected: u64,
    },
    #[error("The guest's memory regions are inconsistent")]
    Regions(#[source] vm_memory::GuestRegionCollectionError),
}

/// The regions of `size` bytes of RAM: (guest address, bytes), around the hole below 4 GiB.
pub fn regions(size: u64) -> Vec<(u64, u64)> {
    if size <= GAP_START {
        vec![(0, size)]
    } else {
        vec![(0, GAP_START), (GAP_END, size - GAP_START)]
    }
}

/// Bytes of RAM below 4 GiB: where kernels, initrds and boot structures go.
pub fn low_ram(memory: &GuestMemory) -> u64 {
    memory.iter().next().map_or(0, GuestMemoryRegion::len)
}

/// Maps RAM for a guest. Pages are taken from the host when they are first touched.
///
/// With `shared`, other processes can map it by the file of each region; what is `tracked` notes which pages change.
///
/// The mapping stays until the process ends: devices, vCPUs and KVM share it, and one process is one guest.
pub fn allocate(size: MemorySize, shared: bool, tracked: bool) -> Result<GuestMemory, MemoryError> {
    check_host_has(size)?;
    let mut mapped = Vec::new();
    for (base, bytes) in regions(size.bytes()) {
        let contents = if shared {
            let mib = bytes / MIB;
            let file = file_of(bytes).map_err(|source| MemoryError::Map { mib, source })?;
            Contents::Shared(file)
        } else {
            Contents::Zeroes
        };
        mapped.push(map_region(base, bytes, contents, tracked)?);
    }
    GuestMemory::from_regions(mapped).map_err(MemoryError::Regions)
}

/// Maps RAM whose contents are those of the file at `path`, one region after the other, until the guest changes them: the
/// file stays as it is, and is read as the guest needs it. Nobody may write to it meanwhile; this VMM does not.
pub fn from_file(size: MemorySize, path: &Path, tracked: bool) -> Result<GuestMemory, MemoryError> {
    check_host_has(size)?;
    let failed = |source| MemoryError::Open {
        path: path.into(),
        source,
    };
    let file = match opened::take(Kind::Read, path) {
        Some(file) => File::from(file),
        None => open_regular(path).map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    let found = if metadata.is_file() {
        metadata.len()
    } else {
        0
    };
    let expected = size.bytes();
    if found != expected {
        return Err(MemoryError::FileLength {
            path: path.into(),
            found,
            expected,
        });
    }
    file.try_lock_shared()
        .map_err(|error| failed(error.into()))?;
    let file = Arc::new(file);
    let mut start = 0;
    let mut mapped = Vec::new();
    for (base, bytes) in regions(size.bytes()) {
        let contents = Contents::File(FileOffset::from_arc(file.clone(), start));
        mapped.push(map_region(base, bytes, contents, tracked)?);
        start += bytes;
    }
    GuestMemory::from_regions(mapped).map_err(MemoryError::Regions)
}

/// Opens the file at `path` for a later [`from_file`].
pub fn open_file_ahead(path: &Path) -> Result<(), MemoryError> {
    let file = open_regular(path).map_err(|source| MemoryError::Open {
        path: path.into(),
        source,
    })?;
    opened::keep(Kind::Read, path, file);
    Ok(())
}

/// Does not wait for who writes to a FIFO.
fn open_regular(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

/// What is in a region at first.
enum Contents {
    Zeroes,
    /// Zeroes, in a file that others map as well.
    Shared(File),
    /// What is in the file from there on, which stays as it is.
    File(FileOffset),
}

/// A file in memory whose size is fixed: who shrank it would end this process at its next access.
fn file_of(bytes: u64) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"guest-memory", flags)?);
    file.set_len(bytes)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

fn map_region(
    base: u64,
    bytes: u64,
    contents: Contents,
    tracked: bool,
) -> Result<GuestRegion, MemoryError> {
    let fail = |source| MemoryError::Map {
        mib: bytes / MIB,
        source,
    };
    let length = usize::try_from(bytes).map_err(|_| fail(io::ErrorKind::OutOfMemory.into()))?;
    let reserved = length
        .checked_add(HUGE_PAGE)
        .ok_or_else(|| fail(io::ErrorKind::OutOfMemory.into()))?;
    const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;
    const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe { libc::mmap(ptr::null_mut(), reserved, PROT, FLAGS, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(fail(io::Error::last_os_error()));
    }
    let start = start.cast::<u8>();
    let padding = start.align_offset(HUGE_PAGE);
    let host = start.wrapping_add(padding);
    let (flags, file) = match contents {
        Contents::Zeroes => (FLAGS, None),
        Contents::Shared(file) => (
            libc::MAP_SHARED | libc::MAP_NORESERVE,
            Some(FileOffset::new(file, 0)),
        ),
        Contents::File(file) => (libc::MAP_PRIVATE | libc::MAP_NORESERVE, Some(file)),
    };
    if let Some(file) = &file {
        let (fd, fixed) = (file.file().as_raw_fd(), flags | libc::MAP_FIXED);
        let start = i64::try_from(file.start()).unwrap_or(i64::MAX);
        // SAFETY: the file takes the place of a part of the mapping made just now, which nobody else knows: `padding` is
        // less than `HUGE_PAGE`.
        let mapped = unsafe { libc::mmap(host.cast(), length, PROT, fixed, fd, start) };
        if mapped == libc::MAP_FAILED {
            return Err(fail(io::Error::last_os_error()));
        }
    }
    // SAFETY: `host..host + length` is inside the mapping: `padding` is less than `HUGE_PAGE`. A host without
    // transparent huge pages refuses the advice, which changes nothing but speed.
    unsafe { libc::madvise(host.cast(), length, libc::MADV_HUGEPAGE) };

    let bitmap = tracked.then(|| devices::memory::dirty_bitmap(length));
    let builder = MmapRegionBuilder::new_with_bitmap(length, bitmap)
        .with_mmap_prot(PROT)
        .with_mmap_flags(flags);
    let builder = match file {
        Some(file) => builder.with_file_offset(file),
        None => builder,
    };
    // SAFETY: the mapping is `length` bytes from `host` on, readable and writable, nobody else knows it, and it is
    // never unmapped.
    let builder = unsafe { builder.with_raw_mmap_pointer(host) };
    let region = builder.build().map_err(MemoryError::Region)?;
    GuestRegion::new(region, GuestAddress(base))
        .ok_or_else(|| fail(io::ErrorKind::InvalidInput.into()))
}

/// Memory of the host in KiB: total, available.
fn host_memory() -> Option<(u64, u64)> {
    let mut text = String::new();
    let mut file = opened::file(Path::new(MEMINFO), false).ok()?;
    file.read_to_string(&mut text).ok()?;
    parse_meminfo(&text)
}

fn parse_meminfo(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        text.lines().find_map(|line| {
            line.strip_prefix(name)?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse::<u64>()
                .ok()
        })
    };
    Some((field("MemTotal:")?, field("MemAvailable:")?))
}

/// Refuses what can never fit: more than all of the host's memory. What is merely more than available now is the
/// host's decision, because a guest rarely touches all of its RAM.
fn check_host_has(size: MemorySize) -> Result<(), MemoryError> {
    // A host without /proc cannot be asked; the kernel then decides at the first touch.
    match host_memory() {
        Some((total, available)) => check_fits(size, total, available),
        None => Ok(()),
    }
}

fn check_fits(size: MemorySize, total_kib: u64, available_kib: u64) -> Result<(), MemoryError> {
    if size.bytes() > total_kib * KIB {
        return Err(MemoryError::MoreThanHost {
            asked_mib: size.mib().into(),
            total_mib: total_kib / KIB,
            available_mib: available_kib / KIB,
        });
    }
    if size.bytes() > available_kib * KIB {
        log::warn!(
            "The guest's memory is {} MiB, the host has {} MiB available now",
            size.mib(),
            available_kib / KIB
        );
    }
    Ok(())
}

/// Small memories for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// `mib` MiB from address 0 on.
    pub(crate) fn ram(mib: usize) -> GuestMemory {
        devices::memory::anonymous(&[(GuestAddress(0), mib << 20)]).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::GIB;
    use proptest::prelude::*;
    use vm_memory::Bytes;

    fn mib(value: i64) -> MemorySize {
        MemorySize::from_mib("m", value).unwrap()
    }

    #[test]
    fn memory_around_the_gap_is_split_in_two() {
        assert_eq!(regions(GAP_START), [(0, GAP_START)]);
        assert_eq!(
            regions(4 * GIB),
            [(0, GAP_START), (GAP_END, 4 * GIB - GAP_START)]
        );
    }

    #[test]
    fn more_than_the_host_has_is_refused_with_both_numbers() {
        let text = check_fits(mib(2048), 1024 * 1024, 512 * 1024)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("2048 MiB") && text.contains("1024 MiB in total"),
            "{text}"
        );
        assert!(check_fits(mib(1024), 1024 * 1024, 512 * 1024).is_ok());
    }

    #[test]
    fn meminfo_of_this_host_can_be_read() {
        let (total, available) = host_memory().unwrap();
        assert!(total > 0 && available <= total);
    }

    #[test]
    fn regions_are_aligned_for_huge_pages_and_usable_to_the_last_byte() {
        for shared in [false, true] {
            let memory = allocate(mib(8), shared, false).unwrap();
            let host = memory.get_host_address(GuestAddress(0)).unwrap();
            assert_eq!(host.align_offset(HUGE_PAGE), 0);
            memory.write_obj(7u8, GuestAddress(8 * MIB - 1)).unwrap();
            assert!(memory.write_obj(7u8, GuestAddress(8 * MIB)).is_err());
            assert_eq!(low_ram(&memory), 8 * MIB);
            let region = memory.iter().next().unwrap();
            assert_eq!(region.file_offset().is_some(), shared);
        }
    }

    #[test]
    fn shared_memory_is_seen_by_its_file_and_cannot_be_taken_away() {
        use std::os::unix::fs::FileExt;

        let memory = allocate(mib(4), true, false).unwrap();
        let region = memory.iter().next().unwrap();
        let file = region.file_offset().unwrap();
        assert_eq!(file.start(), 0);
        memory.write_slice(b"shared", GuestAddress(MIB)).unwrap();
        let mut seen = [0; 6];
        file.file().read_exact_at(&mut seen, MIB).unwrap();
        assert_eq!(&seen, b"shared");
        for size in [0, 8 * MIB] {
            let error = file.file().set_len(size).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }

    proptest! {
        #[test]
        fn regions_hold_all_bytes_and_stay_out_of_the_gap(size in 1..1u64 << 40) {
            let regions = regions(size);
            prop_assert_eq!(regions.iter().map(|r| r.1).sum::<u64>(), size);
            for (start, bytes) in regions {
                prop_assert!(start + bytes <= GAP_START || start >= GAP_END);
            }
        }
    }
}
