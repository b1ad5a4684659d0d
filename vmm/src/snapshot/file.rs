//! The state file: a header that says what it is, and the state as JSON, of which every bit is checked.
//!
//! ```text
//!   offset  bytes
//!   0x00    8      "DRMASNAP"
//!   0x08    4      version of the format, little-endian
//!   0x0c    4      zero
//!   0x10    8      bytes of the state, little-endian
//!   0x18    32     BLAKE3 of the 24 bytes before and of the state
//!   0x38           the state
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Serializer;

use super::blob::Blobs;
use super::state::State;

const MAGIC: [u8; 8] = *b"DRMASNAP";
/// The version that is written. All from 1 on are read.
pub const VERSION: u32 = 2;
/// Bytes of the header before the hash, and with it.
const PLAIN_LEN: usize = 24;
const HEADER_LEN: usize = PLAIN_LEN + blake3::OUT_LEN;
/// Most bytes of a state: far more than one with the most vCPUs and devices has, and little enough to be held in memory.
const MAX_LEN: u64 = 64 << 20;

/// Why a state file cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant describes it and its values"
)]
pub enum FileError {
    #[error("Cannot {what} {path}", path = .path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not a regular file", path = .path.display())]
    NotAFile { path: PathBuf },
    #[error(
        "{path} is in use: a guest runs from it, it is a disk of one, or it was named twice",
        path = .path.display()
    )]
    InUse { path: PathBuf },
    #[error("{path} is no snapshot's state: it does not begin with \"DRMASNAP\"", path = .path.display())]
    Foreign { path: PathBuf },
    #[error(
        "{path} is of version {found} of the format, this VMM knows those up to {VERSION}: use the VMM that wrote it, or a newer one",
        path = .path.display()
    )]
    Version { path: PathBuf, found: u32 },
    #[error(
        "{path} has {found} bytes and should have {expected}: it was not written to its end, or cut off",
        path = .path.display()
    )]
    Length {
        path: PathBuf,
        found: u64,
        expected: u64,
    },
    #[error("{path} says that its state has {found} bytes, more than the {MAX_LEN} permitted", path = .path.display())]
    TooLong { path: PathBuf, found: u64 },
    #[error("{path} is damaged: its hash is another one", path = .path.display())]
    Damaged { path: PathBuf },
    #[error("{path} is whole and says something else than a state", path = .path.display())]
    Meaning {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("The state cannot be put into words")]
    Words(#[source] serde_json::Error),
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io { what, path, source }
}

/// Makes the file at `path`, or empties the one that is there: from now on there is nothing in it that could be taken for a
/// whole one.
pub fn create(path: &Path) -> Result<File, FileError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed("make", path))?;
    let metadata = file.metadata().map_err(failed("look at", path))?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile { path: path.into() });
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(FileError::InUse { path: path.into() }),
        Err(TryLockError::Error(source)) => return Err(failed("lock", path)(source)),
    }
    file.set_len(0).map_err(failed("empty", path))?;
    Ok(file)
}

/// Puts `file`, which is at `path`, and its name on the medium.
pub fn sync(file: &File, path: &Path) -> Result<(), FileError> {
    file.sync_all().map_err(failed("write back", path))?;
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let opened = File::open(folder).and_then(|folder| folder.sync_all());
    opened.map_err(failed("write back the folder", folder))
}

/// The bytes of a state file with `state`.
pub fn encode(state: &State) -> Result<Vec<u8>, FileError> {
    let mut body = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut body, Blobs);
    state.serialize(&mut serializer).map_err(FileError::Words)?;
    Ok(enclose(&body, VERSION))
}

fn enclose(body: &[u8], version: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    bytes.extend(MAGIC);
    bytes.extend(version.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend((body.len() as u64).to_le_bytes());
    let hash = hash(&bytes, body);
    bytes.extend(hash.as_bytes());
    bytes.extend(body);
    bytes
}

fn hash(plain: &[u8], body: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(plain).update(body);
    hasher.finalize()
}

/// Fills `file`, which is at `path` and empty, with `bytes`, and returns when they are on the medium.
pub fn write(file: &File, path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    file.write_all_at(bytes, 0).map_err(failed("write", path))?;
    sync(file, path)
}

/// The state in the file at `path`.
pub fn read(path: &Path) -> Result<State, FileError> {
    let (_, body) = open(path)?;
    serde_json::from_slice(&body).map_err(|source| FileError::Meaning {
        path: path.into(),
        source,
    })
}

/// The version of the format that the file at `path` is of. The file is whole.
pub fn version(path: &Path) -> Result<u32, FileError> {
    open(path).map(|(version, _)| version)
}

/// Version and state, whole and undamaged.
fn open(path: &Path) -> Result<(u32, Vec<u8>), FileError> {
    // A FIFO that nobody writes to must not keep us waiting: whether it is a file is seen before.
    let metadata = std::fs::metadata(path).map_err(failed("open", path))?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile { path: path.into() });
    }
    let file = File::open(path).map_err(failed("open", path))?;
    let found = file.metadata().map_err(failed("look at", path))?.len();
    let mut header = [0; HEADER_LEN];
    let length = |expected| FileError::Length {
        path: path.into(),
        found,
        expected,
    };
    if found < HEADER_LEN as u64 {
        return Err(length(HEADER_LEN as u64));
    }
    file.read_exact_at(&mut header, 0)
        .map_err(failed("read", path))?;
    let (plain, hashed) = header.split_at(PLAIN_LEN);
    if plain[..8] != MAGIC {
        return Err(FileError::Foreign { path: path.into() });
    }
    let word =
        |at: usize| u32::from_le_bytes([plain[at], plain[at + 1], plain[at + 2], plain[at + 3]]);
    let version = word(8);
    if version == 0 || version > VERSION {
        return Err(FileError::Version {
            path: path.into(),
            found: version,
        });
    }
    let len = u64::from(word(16)) | u64::from(word(20)) << 32;
    if len > MAX_LEN {
        return Err(FileError::TooLong {
            path: path.into(),
            found: len,
        });
    }
    let expected = HEADER_LEN as u64 + len;
    if found != expected {
        return Err(length(expected));
    }
    let mut body = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
    let mut rest = file.take(expected);
    rest.read_to_end(&mut body).map_err(failed("read", path))?;
    let body = body.split_off(HEADER_LEN.min(body.len()));
    if hash(plain, &body).as_bytes() != hashed {
        return Err(FileError::Damaged { path: path.into() });
    }
    Ok((version, body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn error(bytes: &[u8]) -> String {
        open(file(bytes).path()).unwrap_err().to_string()
    }

    #[test]
    fn what_was_written_is_read_and_the_version_said() {
        let bytes = enclose(b"{}", VERSION);
        let file = file(&bytes);
        assert_eq!(open(file.path()).unwrap(), (VERSION, b"{}".to_vec()));
        assert_eq!(version(file.path()).unwrap(), VERSION);
        // Whole, and no state.
        assert!(matches!(read(file.path()), Err(FileError::Meaning { .. })));
    }

    #[test]
    fn a_newer_version_a_foreign_file_and_a_lie_about_the_length_are_told_apart() {
        let newer = error(&enclose(b"{}", VERSION + 1));
        assert!(
            newer.contains("version 3") && newer.contains("newer one"),
            "{newer}"
        );
        assert!(error(&[7; 100]).contains("does not begin"));
        let mut lie = enclose(b"{}", VERSION);
        lie[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(error(&lie).contains("more than"));
        lie[16..24].copy_from_slice(&1000_u64.to_le_bytes());
        assert!(error(&lie).contains("should have 1056"));
        assert!(error(&[]).contains("has 0 bytes"));
    }

    #[test]
    fn a_state_of_version_1_is_read_and_written_anew() {
        let older = include_bytes!("older/state-1.json");
        let older = read(file(&enclose(older, 1)).path()).unwrap();
        let bytes = encode(&older).unwrap();
        let newer = file(&bytes);
        assert_eq!(version(newer.path()).unwrap(), VERSION);
        let words = |state: &State| serde_json::to_value(state).unwrap();
        assert_eq!(words(&read(newer.path()).unwrap()), words(&older));
        assert_eq!(older.vcpus[0].regs.rip, 0x10_000c);
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [folder.path(), &fifo, Path::new("/dev/zero")] {
            assert!(matches!(read(path), Err(FileError::NotAFile { .. })));
        }
        for path in [&*fifo, Path::new("/dev/null")] {
            assert!(matches!(create(path), Err(FileError::NotAFile { .. })));
        }
        let nowhere = folder.path().join("no/where");
        assert!(
            create(&nowhere)
                .unwrap_err()
                .to_string()
                .contains("no/where")
        );
    }

    proptest! {
        #[test]
        fn every_flipped_bit_and_every_cut_is_seen(
            body in prop::collection::vec(any::<u8>(), 0..200),
            place in any::<prop::sample::Index>(),
            bit in 0..8_u32,
            cut in any::<prop::sample::Index>(),
        ) {
            let good = enclose(&body, VERSION);
            let mut flipped = good.clone();
            let place = place.index(good.len());
            flipped[place] ^= 1_u8 << bit;
            prop_assert!(open(file(&flipped).path()).is_err());
            let shorter = &good[..cut.index(good.len())];
            prop_assert!(open(file(shorter).path()).is_err());
            let mut longer = good;
            longer.push(0);
            prop_assert!(open(file(&longer).path()).is_err());
        }
    }
}
