//! A short name kept inline, so that errors can carry it where there is no allocator.

use core::fmt;

/// The longest name kept; a longer one is cut and shown with `…`.
const CAPACITY: usize = 64;

/// A copy of a file's or area's name for messages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; CAPACITY],
    len: usize,
    cut: bool,
}

impl Name {
    /// Copies as much of `name` as fits.
    pub fn new(name: &str) -> Self {
        let mut len = name.len().min(CAPACITY);
        while !name.is_char_boundary(len) {
            len -= 1;
        }
        let mut bytes = [0; CAPACITY];
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self {
            bytes,
            len,
            cut: len < name.len(),
        }
    }

    /// The name, or as much of it as was kept.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        if self.cut { f.write_str("…") } else { Ok(()) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_at_a_character() {
        let long = "é".repeat(40);
        let name = Name::new(&long);
        assert_eq!(name.as_str(), "é".repeat(32));
        assert!(name.to_string().ends_with('…'));
        assert_eq!(Name::new("daruma/kernel").to_string(), "daruma/kernel");
    }
}
