//! BLAKE3 of pages, several at a time where the processor can.

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::OnceLock;

use blake3::IncrementCounter;
use blake3::platform::Platform;

use crate::PAGE;

/// BLAKE3 of a page or of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Hash of `data`.
    pub fn of(data: &[u8]) -> Self {
        Self(*blake3::hash(data).as_bytes())
    }

    /// From 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text)
            .ok()
            .map(|hash| Self(*hash.as_bytes()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A map by digest: the key is random already, so hashing it again would be waste. A guest chooses pages, but no
/// digests.
pub type DigestMap<V> = std::collections::HashMap<Digest, V, BuildHasherDefault<Prefix>>;

/// The first eight bytes of a digest.
#[derive(Default)]
pub struct Prefix(u64);

impl Hasher for Prefix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some((first, _)) = bytes.split_first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    // The length of the array, which `Hash` writes first in some versions.
    fn write_usize(&mut self, _: usize) {}
}

/// Pages hashed together: eight lanes of 32 bits are AVX2's width.
pub const LANES: usize = 8;

// BLAKE3's constants: section 2.2 of its specification.
const IV: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const PARENT: u8 = 4;
const ROOT: u8 = 8;
/// Bytes in a leaf of BLAKE3's tree.
const LEAF: usize = 1024;

/// Hashes of pages.
///
/// One page has only four leaves, which leaves half of a processor's lanes empty. So this takes the same leaf of eight
/// pages at once, by the interface that the crate has for its benchmarks: it is public, but promised to nobody, which is
/// why a test holds it against the ordinary one.
pub fn pages(pages: &[&[u8; PAGE]]) -> Vec<Digest> {
    let mut digests = Vec::with_capacity(pages.len());
    let mut groups = pages.chunks_exact(LANES);
    let platform = Platform::detect();
    for group in &mut groups {
        digests.extend(lanes(platform, group));
    }
    digests.extend(groups.remainder().iter().map(|page| Digest::of(*page)));
    digests
}

fn lanes(platform: Platform, pages: &[&[u8; PAGE]]) -> [Digest; LANES] {
    // [leaf][page]
    let mut leaves = [[0; 32 * LANES]; PAGE / LEAF];
    for (index, values) in leaves.iter_mut().enumerate() {
        let mut inputs = [&[0; LEAF]; LANES];
        for (input, page) in inputs.iter_mut().zip(pages) {
            if let Some((leaf, _)) = page[index * LEAF..].split_first_chunk() {
                *input = leaf;
            }
        }
        let (start, end) = (CHUNK_START, CHUNK_END);
        let counter = index as u64;
        platform.hash_many(
            &inputs,
            &IV,
            counter,
            IncrementCounter::No,
            0,
            start,
            end,
            values,
        );
    }
    let [first, second, third, fourth] = &leaves;
    let left = parents(platform, first, second, 0);
    let right = parents(platform, third, fourth, 0);
    let roots = parents(platform, &left, &right, ROOT);
    let mut digests = [Digest([0; 32]); LANES];
    for (digest, root) in digests.iter_mut().zip(roots.as_chunks().0) {
        *digest = Digest(*root);
    }
    digests
}

fn parents(
    platform: Platform,
    left: &[u8; 32 * LANES],
    right: &[u8; 32 * LANES],
    flag: u8,
) -> [u8; 32 * LANES] {
    let mut blocks = [[0; 64]; LANES];
    let children = left
        .as_chunks::<32>()
        .0
        .iter()
        .zip(right.as_chunks::<32>().0);
    for (block, (left, right)) in blocks.iter_mut().zip(children) {
        block[..32].copy_from_slice(left);
        block[32..].copy_from_slice(right);
    }
    let inputs = blocks.each_ref();
    let mut values = [0; 32 * LANES];
    platform.hash_many(
        &inputs,
        &IV,
        0,
        IncrementCounter::No,
        PARENT | flag,
        0,
        0,
        &mut values,
    );
    values
}

/// Hash of a page of zeros, where one is stored as such.
pub fn zero_page() -> Digest {
    static DIGEST: OnceLock<Digest> = OnceLock::new();
    *DIGEST.get_or_init(|| Digest::of(&[0; PAGE]))
}

/// Whether a page holds nothing but zeros.
pub fn is_zero(page: &[u8; PAGE]) -> bool {
    // Most pages that hold something say so at once.
    page[..64].iter().fold(0, |all, byte| all | byte) == 0
        && page.iter().fold(0, |all, byte| all | byte) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_at_once_hash_as_one_alone() {
        let pages: Vec<[u8; PAGE]> = (0..21_u8)
            .map(|seed| std::array::from_fn(|at| seed.wrapping_mul(31) ^ (at * 7).to_le_bytes()[0]))
            .collect();
        let references: Vec<&[u8; PAGE]> = pages.iter().collect();
        for count in 0..=pages.len() {
            let digests = super::pages(&references[..count]);
            assert_eq!(digests.len(), count);
            for (digest, page) in digests.iter().zip(&pages) {
                assert_eq!(*digest, Digest::of(page));
            }
        }
    }

    #[test]
    fn one_bit_is_not_zero() {
        let mut page = [0; PAGE];
        assert!(is_zero(&page));
        for at in [0, 63, 64, PAGE - 1] {
            page[at] = 0x80;
            assert!(!is_zero(&page));
            page[at] = 0;
        }
    }

    #[test]
    fn hexadecimal_comes_back() {
        let digest = Digest::of(b"x");
        assert_eq!(Digest::from_hex(&digest.to_string()), Some(digest));
        assert_eq!(Digest::from_hex("0g"), None);
    }
}
