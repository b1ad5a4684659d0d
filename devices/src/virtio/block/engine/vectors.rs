//! Where a request's buffers are in this process, as the vectored system calls take them.

use std::io;

use libc::iovec;
use vm_memory::GuestMemoryBackend;

use crate::memory::{self, GuestMemory, GuestSlice};
use crate::virtio::chain::Buffers;

/// The most vectors one system call takes (`IOV_MAX`).
pub(in crate::virtio::block) const MAX_VECTORS: usize = 1024;

/// An array of vectors, consumed from the front. Meant to be used again and again, so that a request costs no
/// allocation.
#[derive(Default)]
pub(in crate::virtio::block) struct Vectors {
    list: Vec<iovec>,
    first: usize,
}

// SAFETY: addresses of guest memory, which belongs to no thread. Whoever gives them to the kernel answers for them being
// mapped.
unsafe impl Send for Vectors {}

impl Vectors {
    /// Becomes `buffers`, which lie in `memory`.
    pub(super) fn load(&mut self, memory: &GuestMemory, buffers: &Buffers) -> io::Result<()> {
        self.list.clear();
        self.first = 0;
        for &(address, len) in buffers.ranges() {
            if let Some(slice) = memory::contiguous(memory, address, len as usize) {
                self.push(&slice);
                continue;
            }
            for slice in GuestMemoryBackend::get_slices(memory, address, len as usize) {
                self.push(&slice.map_err(io::Error::other)?);
            }
        }
        Ok(())
    }

    fn push(&mut self, slice: &GuestSlice<'_>) {
        self.list.push(iovec {
            // The guard only does something for memory of Xen's.
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        });
    }

    /// What one system call can take of what is left.
    pub(in crate::virtio::block) fn front(&self) -> &[iovec] {
        let rest = &self.list[self.first..];
        &rest[..rest.len().min(MAX_VECTORS)]
    }

    /// Nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.first == self.list.len()
    }

    /// Drops the first `moved` bytes.
    pub(in crate::virtio::block) fn advance(&mut self, mut moved: usize) {
        for vector in &mut self.list[self.first..] {
            if moved < vector.iov_len {
                vector.iov_base = vector.iov_base.wrapping_byte_add(moved);
                vector.iov_len -= moved;
                return;
            }
            moved -= vector.iov_len;
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_advanced_over_their_ends() {
        let vector = |base: usize, iov_len| iovec {
            iov_base: std::ptr::without_provenance_mut(base),
            iov_len,
        };
        let mut vectors = Vectors {
            list: vec![vector(0x1000, 10), vector(0x2000, 20), vector(0x3000, 30)],
            first: 0,
        };
        vectors.advance(9);
        assert_eq!((vectors.front().len(), vectors.front()[0].iov_len), (3, 1));
        vectors.advance(1 + 20 + 5);
        let front = vectors.front();
        assert_eq!(
            (front.len(), front[0].iov_base.addr(), front[0].iov_len),
            (1, 0x3005, 25)
        );
        vectors.advance(25);
        assert!(vectors.is_empty());
    }

    #[test]
    fn one_call_gets_no_more_than_the_kernel_takes() {
        let vector = iovec {
            iov_base: std::ptr::without_provenance_mut(0x1000),
            iov_len: 1,
        };
        let mut vectors = Vectors {
            list: vec![vector; 1500],
            first: 0,
        };
        assert_eq!(vectors.front().len(), 1024);
        vectors.advance(1024);
        assert_eq!(vectors.front().len(), 476);
    }
}
