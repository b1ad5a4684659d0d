//! Session tokens: they say by themselves until when they are good, so none are kept, however many a guest asks for.

use std::fmt::Write;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The lifetimes that a guest may ask for, in seconds.
pub(super) const LIFETIME: std::ops::RangeInclusive<u64> = 1..=21_600;

/// Bytes of a token: end of its life, a number, and the proof that both are ours.
const TOKEN_LEN: usize = 8 + 8 + blake3::OUT_LEN;

/// Makes tokens and knows them again.
pub(super) struct Tokens {
    key: [u8; blake3::KEY_LEN],
    start: Instant,
    made: AtomicU64,
}

impl Tokens {
    /// Nobody has a token of these.
    pub(super) fn new() -> io::Result<Self> {
        let mut key = [0; blake3::KEY_LEN];
        // Once, at the start: later, a thread that talks to guests may not ask for it.
        getrandom::fill(&mut key).map_err(io::Error::other)?;
        Ok(Self {
            key,
            start: Instant::now(),
            made: AtomicU64::new(0),
        })
    }

    /// A token that is good for `seconds` after `now`.
    pub(super) fn make(&self, seconds: u64, now: Instant) -> String {
        let end = self
            .millis(now)
            .saturating_add(seconds.saturating_mul(1000));
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let mut token = [0; TOKEN_LEN];
        token[..8].copy_from_slice(&end.to_le_bytes());
        token[8..16].copy_from_slice(&number.to_le_bytes());
        let proof = blake3::keyed_hash(&self.key, &token[..16]);
        token[16..].copy_from_slice(proof.as_bytes());
        token.iter().fold(String::new(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Whether `token` is ours and good at `now`.
    pub(super) fn is_good(&self, token: &[u8], now: Instant) -> bool {
        let mut bytes = [0; TOKEN_LEN];
        if token.len() != 2 * TOKEN_LEN {
            return false;
        }
        for (byte, digits) in bytes.iter_mut().zip(token.as_chunks().0) {
            match (digit(digits, 0), digit(digits, 1)) {
                (Some(high), Some(low)) => *byte = high << 4 | low,
                _ => return false,
            }
        }
        let (signed, proof) = bytes.split_at(16);
        let expected = blake3::keyed_hash(&self.key, signed);
        let (Some(end), Ok(proof)) = (signed.first_chunk(), blake3::Hash::from_slice(proof)) else {
            return false;
        };
        // Compared in constant time, whatever differs.
        expected == proof && self.millis(now) < u64::from_le_bytes(*end)
    }

    fn millis(&self, now: Instant) -> u64 {
        let since = now.checked_duration_since(self.start);
        u64::try_from(since.unwrap_or(Duration::ZERO).as_millis()).unwrap_or(u64::MAX)
    }
}

fn digit(digits: &[u8; 2], at: usize) -> Option<u8> {
    let value = char::from(digits[at]).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_good_until_their_end() {
        let tokens = Tokens::new().unwrap();
        let now = Instant::now();
        let token = tokens.make(10, now);
        assert!(tokens.is_good(token.as_bytes(), now));
        assert!(tokens.is_good(token.as_bytes(), now + Duration::from_secs(9)));
        assert!(!tokens.is_good(token.as_bytes(), now + Duration::from_secs(11)));
        assert_ne!(token, tokens.make(10, now));
    }

    #[test]
    fn tokens_of_others_and_changed_ones_are_not_good() {
        let (tokens, others) = (Tokens::new().unwrap(), Tokens::new().unwrap());
        let now = Instant::now();
        assert!(!tokens.is_good(others.make(10, now).as_bytes(), now));
        let token = tokens.make(10, now);
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            assert!(!tokens.is_good(&changed, now), "{at}");
        }
        for bad in ["", "00", &token[1..], &format!("{token}0"), &"ü".repeat(48)] {
            assert!(!tokens.is_good(bad.as_bytes(), now));
        }
    }
}
