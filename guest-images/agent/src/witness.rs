//! Whether what is read from the medium is what was written there: this program's own file, read past the page cache.
//!
//! The file cannot be written to while it runs. If it changes, somebody has written to the disk below the file system.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Read at once. Direct reads want whole blocks, of a place in memory that begins with one.
const PIECE: usize = 16 * 1024;
/// The file has a few hundred KiB.
const MAX_PIECES: usize = 64;

#[repr(C, align(4096))]
struct Buffer([u8; PIECE]);

/// A file and what was in it.
pub struct Witness {
    file: File,
    hashes: [u64; MAX_PIECES],
    count: usize,
    buffer: Box<Buffer>,
}

/// What the medium says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Testimony {
    /// What was written.
    Same,
    /// Something else.
    Noise,
    /// Nothing, for this reason of the system's.
    Error(i32),
}

impl Witness {
    /// Takes this program's file, unless it lies where the page cache is all there is.
    pub fn of_this_program() -> Option<Self> {
        Self::new(Path::new("/proc/self/exe"), libc::O_DIRECT).ok()
    }

    fn new(path: &Path, flags: i32) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)?;
        let mut witness = Self {
            file,
            hashes: [0; MAX_PIECES],
            count: 0,
            buffer: Box::new(Buffer([0; PIECE])),
        };
        for piece in 0..MAX_PIECES {
            let (hash, length) = witness.hash(piece)?;
            if length == 0 {
                break;
            }
            witness.hashes[piece] = hash;
            witness.count = piece + 1;
        }
        Ok(witness)
    }

    fn hash(&mut self, piece: usize) -> io::Result<(u64, usize)> {
        let length = self
            .file
            .read_at(&mut self.buffer.0, (piece * PIECE) as u64)?;
        // FNV-1a: noise is not meant to deceive.
        let hash = self.buffer.0[..length]
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
        Ok((hash, length))
    }

    /// Reads one piece, another one for each `turn`.
    pub fn ask(&mut self, turn: usize) -> Testimony {
        let Some(piece) = turn.checked_rem(self.count) else {
            return Testimony::Same;
        };
        match self.hash(piece) {
            Ok((hash, _)) if hash == self.hashes[piece] => Testimony::Same,
            Ok(_) => Testimony::Noise,
            Err(error) => Testimony::Error(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_piece_is_noticed_in_its_turn_and_an_empty_file_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, vec![7; 3 * PIECE - 100]).unwrap();
        let mut witness = Witness::new(&path, 0).unwrap();
        assert_eq!(witness.count, 3);
        let other = OpenOptions::new().write(true).open(&path).unwrap();
        other.write_at(b"noise", 2 * PIECE as u64).unwrap();
        let found: Vec<_> = (0..6).map(|turn| witness.ask(turn)).collect();
        let round = [Testimony::Same, Testimony::Same, Testimony::Noise];
        assert_eq!(found, [round, round].concat());
        std::fs::write(&path, b"").unwrap();
        assert_eq!(Witness::new(&path, 0).unwrap().ask(3), Testimony::Same);
        assert!(Witness::new(folder.path(), 0).is_err());
    }

    #[test]
    fn what_cannot_be_read_is_an_error_of_the_systems() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, vec![7; PIECE]).unwrap();
        let mut witness = Witness::new(&path, 0).unwrap();
        witness.file = OpenOptions::new().write(true).open(&path).unwrap();
        assert_eq!(witness.ask(0), Testimony::Error(libc::EBADF));
    }
}
