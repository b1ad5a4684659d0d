//! What one life of process 1 hands over to the next in the same process: a text, and the descriptors that the text names.
//!
//! All of it lies ready at any time, for a signal handler that can allocate nothing and take no lock.
#![expect(
    unsafe_code,
    reason = "descriptors of an earlier program are known by their numbers only"
)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Descriptors that can be handed over: four of each of a hundred guests, and those of the store.
const MAX_FDS: usize = 512;
const NONE: RawFd = -1;

/// The text lies in memory that the kernel keeps over exec.
static TEXT: OnceLock<File> = OnceLock::new();
/// Handed over and not taken yet.
static INHERITED: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
static FDS: [AtomicI32; MAX_FDS] = [const { AtomicI32::new(NONE) }; MAX_FDS];

/// Lays ready what the next life is to have, in place of what was before. Descriptors that there is no room for are not
/// handed over.
///
/// # Errors
/// The kernel has no memory for the text.
pub fn lay_ready(text: &[u8], fds: impl IntoIterator<Item = RawFd>) -> io::Result<()> {
    let file = match TEXT.get() {
        Some(file) => file,
        None => {
            let file = memfd_create(c"handover", MFdFlags::MFD_CLOEXEC)?.into();
            TEXT.get_or_init(|| file)
        }
    };
    // A text that is cut off is refused by who reads it.
    file.set_len(0)?;
    file.write_all_at(text, 0)?;
    let mut fds = fds.into_iter();
    for place in &FDS {
        place.store(fds.next().unwrap_or(NONE), Ordering::Relaxed);
    }
    Ok(())
}

/// Has all that lies ready stay open over exec; the text's descriptor, if there is a text. May be called by a signal
/// handler.
pub fn keep_open() -> Option<RawFd> {
    let text = TEXT.get()?.as_raw_fd();
    let fds = FDS.iter().map(|place| place.load(Ordering::Relaxed));
    for fd in fds.filter(|fd| *fd != NONE).chain([text]) {
        // SAFETY: the call takes numbers only; one that is closed by now is refused.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
    Some(text)
}

/// Reads what an earlier life has laid ready, by the number that [`keep_open`] had returned there.
///
/// # Errors
/// There is no such descriptor.
pub fn read(text: RawFd) -> io::Result<Vec<u8>> {
    inherit([text]);
    let mut file = File::from(take(text)?);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Notes which descriptors were handed over; to be called once, before anything is started: other programs do not have
/// them from then on. Numbers that were not handed over are passed over.
pub fn inherit(fds: impl IntoIterator<Item = RawFd>) {
    let mut inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    for fd in fds.into_iter().filter(|fd| *fd > libc::STDERR_FILENO) {
        // All that is opened in this life is closed at exec.
        // SAFETY: the call takes numbers only.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == 0 {
            // SAFETY: the call takes numbers only.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
            inherited.insert(fd);
        }
    }
}

/// Takes a descriptor that was handed over, each once.
///
/// # Errors
/// None of this number was.
pub fn take(fd: RawFd) -> io::Result<OwnedFd> {
    let mut inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    if !inherited.remove(&fd) {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: it was open when this program began, nobody else in it has it, and it is taken only once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::io::{Write, pipe};
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn what_lies_ready_last_is_what_is_read_and_each_descriptor_is_taken_once() {
        let (reader, mut writer) = pipe().unwrap();
        let reader = OwnedFd::from(reader);
        lay_ready(b"a long first text", [7, 8, 9]).unwrap();
        lay_ready(b"second", [reader.as_raw_fd()]).unwrap();
        // Closed at exec: it would not be there.
        inherit([reader.as_raw_fd()]);
        assert!(take(reader.as_raw_fd()).is_err());
        let text = keep_open().unwrap();
        // As the next program would find them: open numbers that belong to nobody.
        let reader = reader.into_raw_fd();
        let copy = TEXT.get().unwrap().try_clone().unwrap().into_raw_fd();
        assert_ne!(copy, text);
        // SAFETY: the call takes numbers only.
        unsafe { libc::fcntl(copy, libc::F_SETFD, 0) };
        assert_eq!(read(copy).unwrap(), b"second");
        inherit([reader, -1, 0, RawFd::MAX]);
        writer.write_all(b"x").unwrap();
        let mut taken = File::from(take(reader).unwrap());
        let mut byte = [0];
        taken.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
        assert!(take(reader).is_err(), "it is taken already");
        assert!(take(-1).is_err() && take(0).is_err() && take(RawFd::MAX).is_err());
    }
}
