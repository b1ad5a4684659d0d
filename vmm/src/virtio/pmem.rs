//! Persistent memory: a file, mapped into the VMM and from there into the guest.
//!
//! The mapping is shared: guests with the same file have the same pages of the host's page cache, and no other copy.
//! The memory is not part of the guest's RAM, so no virtio device moves data to or from it: what is read-only stays so
//! whatever addresses a driver puts into its rings. That leaves the guest's own stores, which the page tables stop, those
//! of KVM and those of this process.
#![expect(unsafe_code, reason = "maps files and hands the mappings to KVM")]

use std::fs::File;
use std::io;
use std::path::Path;
use std::ptr;

use devices::file_lock;
use devices::virtio::pmem::{Backing, Pmem};

use super::VirtioError;
use crate::config::{MemorySize, PmemConfig};
use crate::jail::opened;
use crate::layout::MIB;
use crate::metrics;
use crate::pci::PciLayout;

/// Linux maps persistent memory in sections of 2 MiB (`SUBSECTION_SIZE`).
const ALIGNMENT: u64 = 2 * MIB;

/// Memory of the guest that is none of its RAM.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Physical address in the guest.
    pub guest: u64,
    /// Address in this process. Mapped until the process ends.
    pub host: u64,
    /// Bytes, a multiple of 2 MiB.
    pub size: u64,
    /// Stores of the guest do not reach it.
    pub read_only: bool,
}

/// Where the next device's memory goes: beyond everything else in the address space.
pub(super) struct Places(u64);

impl Places {
    pub(super) fn new(ram: MemorySize) -> Self {
        // The same with and without PCI.
        Self(PciLayout::new(ram, 0, 0).high.1 + 1)
    }

    fn take(&mut self, size: u64) -> u64 {
        let place = self.0;
        self.0 += size;
        place
    }
}

/// Maps the file of `pmem`.
pub(super) fn make(pmem: &PmemConfig, places: &mut Places) -> Result<(Pmem, Region), VirtioError> {
    let failed = |source| VirtioError::Pmem {
        id: pmem.id.clone(),
        path: pmem.path.clone(),
        source,
    };
    let file = open(&pmem.path, pmem.read_only).map_err(failed)?;
    file_lock::lock(&file, pmem.read_only).map_err(|error| failed(io::Error::other(error)))?;
    let length = file.metadata().map_err(failed)?.len();
    let size = length
        .checked_next_multiple_of(ALIGNMENT)
        .filter(|size| (1..=1 << 40).contains(size))
        .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let host = map(&file, length, size, pmem.read_only).map_err(failed)?;
    let region = Region {
        guest: places.take(size),
        host,
        size,
        read_only: pmem.read_only,
    };
    let medium = Medium {
        file,
        read_only: pmem.read_only,
    };
    let device = Pmem::new(region.guest, size, medium);
    metrics::process().watch("pmem", Some(&pmem.id), &device);
    Ok((device, region))
}

/// Opens what [`make`] needs.
pub(super) fn open_ahead(pmem: &PmemConfig) -> Result<(), VirtioError> {
    opened::keep_file(&pmem.path, !pmem.read_only).map_err(|source| VirtioError::Pmem {
        id: pmem.id.clone(),
        path: pmem.path.clone(),
        source,
    })
}

fn open(path: &Path, read_only: bool) -> io::Result<File> {
    opened::file(path, !read_only)
}

/// Maps `length` bytes of `file`, and zeroes that are nobody's up to `size`. Returns the address, a multiple of 2 MiB.
fn map(file: &File, length: u64, size: u64, read_only: bool) -> io::Result<u64> {
    use std::os::fd::AsRawFd;

    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let bytes = |value: u64| usize::try_from(value).map_err(too_large);
    let (length, size, alignment) = (bytes(length)?, bytes(size)?, bytes(ALIGNMENT)?);
    let mut protection = libc::PROT_READ;
    if !read_only {
        protection |= libc::PROT_WRITE;
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe { libc::mmap(ptr::null_mut(), size + alignment, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = start.cast::<u8>();
    let start = start.wrapping_add(start.align_offset(alignment));
    let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the file takes the place of the first part of the mapping made just now, which nobody else knows.
    let mapped =
        unsafe { libc::mmap(start.cast(), length, protection, flags, file.as_raw_fd(), 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(start.addr() as u64)
}

/// The file behind the memory.
struct Medium {
    file: File,
    read_only: bool,
}

impl Backing for Medium {
    fn flush(&mut self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        // Writes out what was stored through the mapping as well: both are the same pages.
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kvm_ioctls::VcpuExit;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::config::VcpuCount;
    use crate::memory::testing::ram;
    use crate::vm::Vm;

    fn config(path: &Path, read_only: bool) -> PmemConfig {
        PmemConfig {
            id: "p".into(),
            path: path.into(),
            is_root: false,
            read_only,
        }
    }

    fn make_one(path: &Path, read_only: bool) -> Result<Region, VirtioError> {
        let ram = MemorySize::from_mib("m", 128).unwrap();
        make(&config(path, read_only), &mut Places::new(ram)).map(|(_, region)| region)
    }

    #[test]
    fn memory_is_padded_aligned_and_beyond_everything_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "x").unwrap();
        let memory = MemorySize::from_mib("m", 5000).unwrap();
        let mut places = Places::new(memory);
        let regions = [true, true].map(|read_only| {
            let (_, region) = make(&config(file.path(), read_only), &mut places).unwrap();
            assert_eq!((region.size, region.host % ALIGNMENT), (ALIGNMENT, 0));
            region
        });
        assert_eq!(regions[0].guest, PciLayout::new(memory, 0, 0).high.1 + 1);
        assert_eq!(regions[1].guest, regions[0].guest + ALIGNMENT);
    }

    #[test]
    fn an_empty_or_missing_file_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none");
        for _ in 0..2 {
            let error = make_one(&path, true).unwrap_err();
            assert!(error.is_configuration());
            assert!(error.to_string().contains("none"), "{error}");
            fs::write(&path, "").unwrap();
        }
    }

    /// What a guest of a few instructions does to the memory of a file: stores 0x77 in its first byte, reads it back.
    /// Returns whether the store came out of the guest, and what was read.
    fn store_and_load(path: &Path, read_only: bool) -> (bool, u8) {
        let region = make_one(path, read_only).unwrap();
        let result = run_over(region);
        unmap(region);
        result
    }

    fn run_over(region: Region) -> (bool, u8) {
        const PLACE: u32 = 0x4000_0000;
        let memory = ram(2);
        // mov byte [PLACE], 0x77; mov al, [PLACE]; out 0x10, al; hlt
        let mut code = vec![0xc6, 0x05];
        code.extend(PLACE.to_le_bytes());
        code.extend([0x77, 0xa0]);
        code.extend(PLACE.to_le_bytes());
        code.extend([0xe6, 0x10, 0xf4]);
        memory.write_slice(&code, GuestAddress(0x1000)).unwrap();
        let vm = Vm::new(&memory, VcpuCount::new("v", 1).unwrap(), false).unwrap();
        let region = Region {
            guest: PLACE.into(),
            ..region
        };
        vm.add_regions(&memory, &[region]).unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        let flat = |kind| kvm_bindings::kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector: 8,
            type_: kind,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        sregs.cs = flat(11);
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
            *segment = flat(3);
        }
        sregs.cr0 |= 1;
        vcpu.set_sregs(&sregs).unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rip, regs.rflags) = (0x1000, 2);
        vcpu.set_regs(&regs).unwrap();
        let mut came_out = false;
        loop {
            match vcpu.run().unwrap() {
                VcpuExit::MmioWrite(address, data) => {
                    assert_eq!((address, data), (PLACE.into(), &[0x77][..]));
                    came_out = true;
                }
                VcpuExit::IoOut(0x10, data) => return (came_out, data[0]),
                exit => panic!("{exit:?}"),
            }
        }
    }

    /// Lets go of the file of `region`, as the end of its guest's process does.
    fn unmap(region: Region) {
        let (start, size) = (region.host as *mut libc::c_void, region.size);
        // SAFETY: the mapping is the test's own, and the guest that had it is gone.
        let result = unsafe { libc::munmap(start, usize::try_from(size).unwrap()) };
        assert_eq!(result, 0);
    }

    #[test]
    fn file_has_one_writer_or_many_readers_as_long_as_it_is_mapped() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [0; 4096]).unwrap();
        let refused = |read_only| {
            let error = make_one(file.path(), read_only).unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains("in use"), "{source}");
        };
        let writer = make_one(file.path(), false).unwrap();
        refused(false);
        refused(true);
        unmap(writer);
        let readers = [true, true].map(|_| make_one(file.path(), true).unwrap());
        refused(false);
        readers.into_iter().for_each(unmap);
        unmap(make_one(file.path(), false).unwrap());
    }

    #[test]
    fn file_that_a_drive_writes_is_refused_under_whatever_name() {
        let folder = tempfile::tempdir().unwrap();
        let (path, alias) = (folder.path().join("disk"), folder.path().join("alias"));
        fs::write(&path, [0; 4096]).unwrap();
        std::os::unix::fs::symlink(&path, &alias).unwrap();
        let drive = devices::virtio::block::RawFile::new(open(&path, false).unwrap(), false);
        let error = make_one(&alias, true).unwrap_err();
        assert!(error.is_configuration());
        drop(drive);
        unmap(make_one(&alias, true).unwrap());
    }

    #[test]
    fn a_guests_stores_reach_a_writable_file_and_never_a_read_only_one() {
        if std::env::var_os("DARUMA_NO_KVM").is_some() {
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [0x11; 4096]).unwrap();
        assert_eq!(store_and_load(file.path(), true), (true, 0x11));
        assert_eq!(fs::read(file.path()).unwrap(), [0x11; 4096]);
        assert_eq!(store_and_load(file.path(), false), (false, 0x77));
        // Without a flush already: it is the page cache's page, which the next guest has as well.
        assert_eq!(fs::read(file.path()).unwrap()[0], 0x77);
        assert_eq!(store_and_load(file.path(), true), (true, 0x77));
    }

    #[test]
    fn a_flush_of_a_writable_file_succeeds_and_of_a_read_only_one_is_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for read_only in [true, false] {
            let file = file.reopen().unwrap();
            assert!(Medium { file, read_only }.flush().is_ok());
        }
    }
}
