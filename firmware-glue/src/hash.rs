//! The two digests a ROM uses: SHA-256, which coreboot and cbfstool know, and BLAKE3, which costs an eighth as much in
//! software and is what the ROM stage checks.

use core::fmt;

#[cfg(feature = "std")]
use sha2::Sha512;
use sha2::{Digest as _, Sha256};

/// Bytes in a BLAKE3 or SHA-256 digest.
pub const DIGEST_SIZE: usize = 32;

/// A 256-bit digest, shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; DIGEST_SIZE]);

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

/// BLAKE3 of `data`.
pub fn blake3(data: &[u8]) -> Digest {
    Digest(*::blake3::hash(data).as_bytes())
}

/// SHA-256 of `data`.
pub fn sha256(data: &[u8]) -> Digest {
    Digest(Sha256::digest(data).into())
}

/// SHA-512 of `data`.
#[cfg(feature = "std")]
pub(crate) fn sha512(data: &[u8]) -> [u8; 64] {
    Sha512::digest(data).into()
}

/// SHA-256 of the concatenation of `parts`; stops at the first error.
pub fn sha256_of_parts<'a, E>(
    parts: impl IntoIterator<Item = Result<&'a [u8], E>>,
) -> Result<Digest, E> {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part?);
    }
    Ok(Digest(hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_match_the_published_ones_of_the_empty_string() {
        assert_eq!(
            sha256(b"").to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            blake3(b"").to_string(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn parts_hash_like_their_concatenation() {
        let parts: [Result<&[u8], ()>; 3] = [Ok(b"ab"), Ok(b""), Ok(b"c")];
        assert_eq!(sha256_of_parts(parts), Ok(sha256(b"abc")));
    }
}
