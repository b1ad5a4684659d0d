//! The initial RAM file system's place and its bytes.

use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use super::{BootError, open};
use crate::memory::GuestMemory;

/// Pages are the unit in which a kernel gives the initrd's memory back.
const PAGE: u64 = 4096;

/// An initrd in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd {
    /// Guest address of its first byte.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// Reads the file straight into guest memory, as high as `limit` (exclusive) permits and above `kernel_end`.
pub fn load(
    memory: &GuestMemory,
    path: &Path,
    kernel_end: u64,
    limit: u64,
) -> Result<Initrd, BootError> {
    let mut file = open(path)?;
    let size = file
        .metadata()
        .map_err(|source| BootError::read(path, source))?
        .len();
    let address = place(path, size, kernel_end, limit)?;
    let length = usize::try_from(size).map_err(|_| too_large(path, size, kernel_end, limit))?;
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, length)
        .map_err(|source| BootError::Copy {
            path: path.into(),
            source,
        })?;
    Ok(Initrd { address, size })
}

fn place(path: &Path, size: u64, kernel_end: u64, limit: u64) -> Result<u64, BootError> {
    if size == 0 {
        return Err(BootError::InitrdEmpty { path: path.into() });
    }
    let address = limit
        .checked_sub(size)
        .map(|address| address & !(PAGE - 1))
        .filter(|address| *address >= kernel_end);
    address.ok_or_else(|| too_large(path, size, kernel_end, limit))
}

fn too_large(path: &Path, size: u64, kernel_end: u64, limit: u64) -> BootError {
    let free = limit.saturating_sub(kernel_end.next_multiple_of(PAGE));
    BootError::InitrdTooLarge {
        path: path.into(),
        size,
        free,
        kernel_end,
        limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::ram;
    use proptest::prelude::*;
    use std::io::Write;

    #[test]
    fn an_initrd_larger_than_memory_is_refused_with_the_numbers() {
        let memory = ram(4);
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        let text = load(&memory, file.path(), 2 << 20, 4 << 20)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("is 8388608 bytes, 2097152 are free"),
            "{text}"
        );
    }

    #[test]
    fn an_empty_initrd_is_refused() {
        let memory = ram(4);
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = load(&memory, file.path(), 2 << 20, 4 << 20).unwrap_err();
        assert!(matches!(error, BootError::InitrdEmpty { .. }));
    }

    #[test]
    fn bytes_arrive_at_a_page_boundary_near_the_limit() {
        let memory = ram(4);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"070701").unwrap();
        let initrd = load(&memory, file.path(), 2 << 20, 4 << 20).unwrap();
        assert_eq!(
            initrd,
            Initrd {
                address: (4 << 20) - 4096,
                size: 6
            }
        );
        let mut bytes = [0; 6];
        memory
            .read_slice(&mut bytes, GuestAddress(initrd.address))
            .unwrap();
        assert_eq!(&bytes, b"070701");
    }

    proptest! {
        #[test]
        fn a_place_is_between_kernel_and_limit(size: u64, kernel_end in 0..1u64 << 33, limit in 0..1u64 << 33) {
            if let Ok(address) = place(Path::new("i"), size, kernel_end, limit) {
                prop_assert!(address >= kernel_end && address + size <= limit && address % PAGE == 0);
            }
        }
    }
}
