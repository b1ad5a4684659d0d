//! One writer, or readers alone, for a file that is a guest's disk or memory.

use std::fs::{File, TryLockError};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

/// How long a lock is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time between two looks at it.
const PAUSE: Duration = Duration::from_millis(5);

/// Why a file cannot be locked.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another guest has it.
    #[error(
        "It is in use by another guest or device; only what all of them have read-only can be shared"
    )]
    InUse,
    /// Locking fails.
    #[error("It cannot be locked against use by another guest")]
    Failed(#[source] io::Error),
}

/// Locks `file` for one writer, or for readers alone, as long as it is open.
///
/// A VMM that has ended may hold its lock for another moment: the kernel lets go of an io_uring's files in the
/// background. A guest that reboots must not fail for that, so the lock is waited for, up to a second.
pub fn lock(file: &File, read_only: bool) -> Result<(), LockError> {
    let until = Instant::now() + PATIENCE;
    loop {
        let locked = if read_only {
            file.try_lock_shared()
        } else {
            file.try_lock()
        };
        match locked {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(LockError::Failed(error)),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                return Err(LockError::InUse);
            }
            Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::NamedTempFile;

    use super::*;

    #[test]
    fn lock_of_a_writer_that_goes_meanwhile_is_taken() {
        let image = NamedTempFile::new().unwrap();
        let writer = image.reopen().unwrap();
        lock(&writer, false).unwrap();
        let going = thread::spawn(move || {
            thread::sleep(4 * PAUSE);
            drop(writer);
        });
        lock(image.as_file(), false).unwrap();
        going.join().unwrap();
    }
}
