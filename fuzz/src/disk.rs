//! What targets that have a disk share.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use arbitrary::{Result, Unstructured};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::driver::World;

/// A file in memory of `len` bytes that starts with `contents`.
pub fn file_of(contents: &[u8], len: u64) -> File {
    let file: OwnedFd = memfd_create("fuzz", MFdFlags::MFD_CLOEXEC).expect("a file in memory");
    let file = File::from(file);
    file.write_all_at(contents, 0).expect("room in memory");
    if len > contents.len() as u64 {
        file.set_len(len).expect("room in memory");
    }
    file
}

/// Requests of a disk.
pub struct Requests {
    sectors: u64,
}

impl Requests {
    /// For a disk of `sectors`.
    pub fn new(sectors: u64) -> Self {
        Self { sectors }
    }
}

impl World for Requests {
    fn request(&mut self, _index: u16, input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
        let kind = match input.arbitrary::<u8>()? {
            0 => input.arbitrary::<u32>()?,
            // In, out, flush, identify, discard, write zeroes.
            other => [0, 1, 4, 8, 11, 13][usize::from(other % 6)],
        };
        let sector = |input: &mut Unstructured<'_>| -> Result<u64> {
            Ok(match input.arbitrary::<u8>()? {
                0 => input.arbitrary()?,
                1 => self.sectors - 1,
                other => u64::from(other) % self.sectors,
            })
        };
        let mut header = Vec::with_capacity(64);
        header.extend(kind.to_le_bytes());
        header.extend([0; 4]);
        header.extend(sector(input)?.to_le_bytes());
        if kind >= 11 {
            for _ in 0..input.int_in_range(0..=2)? {
                header.extend(sector(input)?.to_le_bytes());
                let count = match input.arbitrary::<u8>()? {
                    0 => input.arbitrary::<u32>()?,
                    other => other.into(),
                };
                header.extend(count.to_le_bytes());
                header.extend(u32::from(input.arbitrary::<u8>()? & 3).to_le_bytes());
            }
        } else if kind == 1 {
            header.extend([0x77; 512]);
        }
        Ok(header)
    }
}

/// An empty qcow2 image of version 3 for a disk of `len` bytes, with clusters of 2 to the power of `cluster_bits` bytes:
/// header, refcount table, refcount block, L1 table, a cluster each.
pub fn qcow2(cluster_bits: u32, len: u64) -> Vec<u8> {
    let cluster = 1_u64 << cluster_bits;
    let mut image = vec![0; usize::try_from(4 * cluster).expect("a small cluster")];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let at = |clusters: u64| usize::try_from(clusters * cluster).expect("a small cluster");
    // What one entry of the L1 table covers: a cluster full of 64-bit entries, each of a cluster.
    let entries = u32::try_from(len.div_ceil(cluster * (cluster / 8))).expect("a small disk");
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &cluster_bits.to_be_bytes());
    put(24, &len.to_be_bytes());
    put(36, &entries.to_be_bytes());
    put(40, &(3 * cluster).to_be_bytes());
    put(48, &cluster.to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(at(1), &(2 * cluster).to_be_bytes());
    for used in 0..4 {
        put(at(2) + 2 * used, &1_u16.to_be_bytes());
    }
    image
}
