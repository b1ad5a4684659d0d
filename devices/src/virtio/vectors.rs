//! Vectored system calls straight between a descriptor and guest memory: no byte is copied twice.
#![expect(
    unsafe_code,
    reason = "vectored I/O between a descriptor and guest memory"
)]

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use libc::{c_int, iovec};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::queue::QueueError;
use crate::memory::{self, GuestMemory, GuestSlice};

/// The most pieces one system call takes (`IOV_MAX`), less those of our own before and after them.
pub const MAX_PIECES: usize = 1024 - 2;

/// Pieces of guest memory in a row, as readable or writable by one system call. Made to be used again and again.
pub struct GuestVectors {
    memory: Arc<GuestMemory>,
    /// The first is a place for bytes of our own before the guest's.
    vectors: Vec<iovec>,
    addresses: Vec<GuestAddress>,
    len: usize,
    tracked: bool,
}

// SAFETY: the pointers are into `memory`, which is mapped as long as this value lives, and is accessed by all threads by
// volatile means only.
unsafe impl Send for GuestVectors {}

/// Nothing, or what is read into or written from memory of our own.
fn own(bytes: &mut [u8]) -> iovec {
    iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

/// The result of a system call that returns a length.
fn length(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

impl GuestVectors {
    /// No pieces yet, of `memory`.
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        let tracked = memory.iter().any(|region| region.bitmap().is_some());
        Self {
            memory,
            vectors: vec![own(&mut [])],
            addresses: Vec::new(),
            len: 0,
            tracked,
        }
    }

    /// The memory the pieces are of.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Bytes of all pieces.
    pub fn len(&self) -> usize {
        self.len
    }

    /// There is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many pieces there are. A system call takes [`MAX_PIECES`].
    pub fn pieces(&self) -> usize {
        self.addresses.len()
    }

    /// Removes all pieces.
    pub fn clear(&mut self) {
        self.vectors.truncate(1);
        self.addresses.clear();
        self.len = 0;
    }

    /// Removes the first `pieces`.
    pub fn drop_front(&mut self, pieces: usize) {
        self.addresses.drain(..pieces);
        let dropped = self.vectors.drain(1..=pieces);
        self.len -= dropped.map(|vector| vector.iov_len).sum::<usize>();
    }

    /// Drops the first `len` bytes.
    pub fn skip(&mut self, len: usize) {
        let mut left = len;
        while let Some(first) = self.vectors.get_mut(1)
            && left > 0
        {
            if left >= first.iov_len {
                left -= first.iov_len;
                self.drop_front(1);
            } else {
                first.iov_base = first.iov_base.wrapping_byte_add(left);
                first.iov_len -= left;
                self.len -= left;
                self.addresses[0] = self.addresses[0].unchecked_add(left as u64);
                left = 0;
            }
        }
    }

    /// Drops all but the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        while self.len > len
            && let Some(last) = self.vectors.last_mut()
        {
            let cut = (self.len - len).min(last.iov_len);
            last.iov_len -= cut;
            self.len -= cut;
            if last.iov_len == 0 {
                self.vectors.pop();
                self.addresses.pop();
            }
        }
    }

    /// Adds `ranges` of guest memory at the end.
    pub fn push(&mut self, ranges: &[(GuestAddress, u32)]) -> Result<(), QueueError> {
        // A copy of the handle, since a slice borrows the memory and not this value.
        let memory = Arc::clone(&self.memory);
        for &(mut address, len) in ranges {
            if let Some(slice) = memory::contiguous(&memory, address, len as usize) {
                self.push_slice(address, &slice);
                continue;
            }
            for slice in GuestMemoryBackend::get_slices(&*memory, address, len as usize) {
                let slice = slice.map_err(QueueError::Memory)?;
                self.push_slice(address, &slice);
                address = address.unchecked_add(slice.len() as u64);
            }
        }
        Ok(())
    }

    #[inline]
    fn push_slice(&mut self, address: GuestAddress, slice: &GuestSlice<'_>) {
        self.vectors.push(iovec {
            // The guard only does something for memory of Xen's.
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        });
        self.addresses.push(address);
        self.len += slice.len();
    }

    fn count(&self) -> c_int {
        c_int::try_from(self.vectors.len()).unwrap_or(c_int::MAX)
    }

    /// Fills the pieces, then `rest`, by one `readv` of `fd`.
    pub fn read_from(&mut self, fd: RawFd, rest: &mut [u8]) -> io::Result<usize> {
        self.vectors[0] = own(&mut []);
        self.vectors.push(own(rest));
        // SAFETY: all but the last vector are mapped guest memory, accessed by volatile means only; the last is `rest`,
        // which is borrowed for the call.
        let result = unsafe { libc::readv(fd, self.vectors.as_ptr(), self.count()) };
        self.vectors.pop();
        let read = length(result)?;
        self.mark_written(read);
        Ok(read)
    }

    /// Writes `first`, then the pieces, by one `writev` to `fd`.
    pub fn write_to(&mut self, first: &mut [u8], fd: RawFd) -> io::Result<usize> {
        self.vectors[0] = own(first);
        // SAFETY: all but the first vector are mapped guest memory; the first is `first`, which is borrowed for the call.
        let result = unsafe { libc::writev(fd, self.vectors.as_ptr(), self.count()) };
        self.vectors[0] = own(&mut []);
        length(result)
    }

    /// Copies `data` to the bytes from `offset` on, as far as there are that many.
    pub fn write_at(&self, mut offset: usize, mut data: &[u8]) -> Result<(), QueueError> {
        for (address, vector) in self.addresses.iter().zip(&self.vectors[1..]) {
            if data.is_empty() {
                break;
            }
            if offset < vector.iov_len {
                let (now, later) = data.split_at(data.len().min(vector.iov_len - offset));
                let at = address.unchecked_add(offset as u64);
                let written = self.memory.write_slice(now, at);
                written.map_err(QueueError::Memory)?;
                data = later;
            }
            offset = offset.saturating_sub(vector.iov_len);
        }
        Ok(())
    }

    /// Copies bytes from the first on into `data` and returns how many there were.
    pub fn read(&self, data: &mut [u8]) -> Result<usize, QueueError> {
        let mut filled = 0;
        for (address, vector) in self.addresses.iter().zip(&self.vectors[1..]) {
            let now = vector.iov_len.min(data.len() - filled);
            let part = &mut data[filled..filled + now];
            let read = self.memory.read_slice(part, *address);
            read.map_err(QueueError::Memory)?;
            filled += now;
        }
        Ok(filled)
    }

    /// The kernel wrote the first `len` bytes behind the dirty bitmap's back.
    fn mark_written(&self, len: usize) {
        if !self.tracked {
            return;
        }
        let mut left = len;
        for (address, vector) in self.addresses.iter().zip(&self.vectors[1..]) {
            let now = left.min(vector.iov_len);
            for slice in GuestMemoryBackend::get_slices(&*self.memory, *address, now).flatten() {
                slice.bitmap().mark_dirty(0, slice.len());
            }
            left -= now;
            if left == 0 {
                break;
            }
        }
    }
}

/// Whether `fd` takes a write now. If it does not, it will say so when it does, also to who waits for edges.
pub fn is_writable(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one valid pollfd.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLOUT != 0
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    use proptest::prelude::*;
    use vm_memory::GuestMemoryRegion;

    use super::*;
    use crate::memory::{self, RegionSpec};

    fn tracked() -> Arc<GuestMemory> {
        let spec = |base, len| RegionSpec {
            base: GuestAddress(base),
            len,
            file: None,
        };
        // Two regions side by side: a buffer may lie in both.
        Arc::new(memory::map(vec![spec(0, 0x4000), spec(0x4000, 0x4000)], true).unwrap())
    }

    proptest! {
        #[test]
        fn bytes_go_where_the_pieces_are(
            ranges in prop::collection::vec((0_u64..0x7000, 1_u32..0x1000), 1..20),
            dropped in 0_usize..5,
            extra in 0_usize..100,
        ) {
            // One after the other, so that no two pieces overlap.
            let mut at = 0;
            let ranges: Vec<_> = ranges.iter().map_while(|&(gap, len)| {
                let start = at + gap % 0x100;
                at = start + u64::from(len);
                (at <= 0x8000).then_some((GuestAddress(start), len))
            }).collect();
            let memory = tracked();
            let mut vectors = GuestVectors::new(memory.clone());
            vectors.push(&ranges).unwrap();
            let skipped = dropped.min(vectors.pieces());
            let before = vectors.len();
            vectors.drop_front(skipped);
            prop_assert!(before >= vectors.len());
            let (skip, keep) = (extra, vectors.len() / 2 + extra);
            let room = vectors.len().saturating_sub(skip).min(keep);
            vectors.skip(skip);
            vectors.truncate(keep);
            prop_assert_eq!(vectors.len(), room);

            let data: Vec<u8> = (0..room + extra).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let (mut reader, mut writer) = io::pipe().unwrap();
            writer.write_all(&data).unwrap();
            let mut rest = vec![0; extra];
            prop_assert_eq!(vectors.read_from(reader.as_raw_fd(), &mut rest).unwrap(), room + extra);
            prop_assert_eq!(&rest[..], &data[room..]);
            vectors.write_at(room / 2, b"!").unwrap();
            let mut copy = vec![0; room + extra];
            prop_assert_eq!(vectors.read(&mut copy).unwrap(), room);
            prop_assert!(room == 0 || copy[room / 2] == b'!');
            let shorter = room.saturating_sub(1);
            let mut start = vec![0; shorter];
            prop_assert_eq!(vectors.read(&mut start).unwrap(), shorter);
            prop_assert_eq!(&start[..], &copy[..shorter]);
            prop_assert_eq!(vectors.write_to(&mut [7, 8], writer.as_raw_fd()).unwrap(), room + 2);
            let mut back = vec![0; room + 2];
            reader.read_exact(&mut back).unwrap();
            let mut expected = [&[7, 8], &data[..room]].concat();
            if room > 0 {
                expected[2 + room / 2] = b'!';
            }
            prop_assert_eq!(back, expected);
            if let Some(address) = vectors.addresses.last() {
                let region = memory.find_region(*address).unwrap();
                let offset = usize::try_from(address.0 - region.start_addr().0).unwrap();
                prop_assert!(region.bitmap().dirty_at(offset));
            }
            vectors.clear();
            prop_assert!(vectors.is_empty() && vectors.pieces() == 0);
        }
    }
}
