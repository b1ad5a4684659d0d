//! Memory maps: the window of flash below 4 GiB, and files in tmpfs that are filled in place.
#![expect(unsafe_code, reason = "mmap and the slices made of it")]

use std::ffi::c_void;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::ptr::NonNull;

use nix::fcntl::posix_fallocate;
use nix::libc::off_t;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// One mapping, taken down when dropped.
#[derive(Debug)]
struct Mapping {
    start: NonNull<c_void>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; access goes through `&self` and `&mut self`.
unsafe impl Send for Mapping {}
// SAFETY: through `&self` the bytes are only read.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, offset: off_t, length: usize, writable: bool) -> io::Result<Self> {
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let mut protection = ProtFlags::PROT_READ;
        protection.set(ProtFlags::PROT_WRITE, writable);
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let start = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, file, offset) }?;
        Ok(Self { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping, and no slice of it outlives `self`.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}

/// Physical memory that only firmware or the memory controller could change: flash.
#[derive(Debug)]
pub struct PhysicalWindow(Mapping);

impl PhysicalWindow {
    /// Maps `length` bytes from physical address `start`, read-only, through `/dev/mem`.
    pub fn open(start: u64, length: usize) -> io::Result<Self> {
        let memory = File::open("/dev/mem")?;
        let offset = off_t::try_from(start).map_err(|_| io::ErrorKind::InvalidInput)?;
        Mapping::new(&memory, offset, length, false).map(Self)
    }

    /// The bytes of the window.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable over its whole length while `self` lives. Flash is not written while the host
        // runs; readers copy what they use before they check it, so even a change would only fail that check.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr().cast(), self.0.length) }
    }
}

/// A new file that is written through memory, without a copy in between.
#[derive(Debug)]
pub struct NewFile(Mapping);

impl NewFile {
    /// Creates a file of `length` zero bytes. The folder must be ours alone.
    pub fn create(path: &Path, length: usize) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        // A hole that tmpfs cannot fill later would be a SIGBUS; now it is an error.
        let bytes = off_t::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        if let Err(error) = posix_fallocate(&file, 0, bytes) {
            let _ = fs::remove_file(path);
            return Err(error.into());
        }
        Mapping::new(&file, 0, length, true).map(Self)
    }

    /// The bytes of the file.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is writable over its whole length, which the file has; the file was just created in our own
        // folder, so nobody truncates it, and `&mut self` makes this the only slice.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr().cast(), self.0.length) }
    }
}
