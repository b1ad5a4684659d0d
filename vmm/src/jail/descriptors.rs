//! Which descriptors are open.
#![expect(unsafe_code, reason = "closes descriptors by their numbers")]

use std::io;
use std::os::fd::RawFd;

use libc::c_uint;

/// Closes all descriptors but `kept`. Nothing in this process may own one of those that go.
///
/// # Errors
/// The kernel has no `close_range` (Linux 5.9).
pub fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<c_uint> = kept.iter().filter_map(|fd| (*fd).try_into().ok()).collect();
    kept.sort_unstable();
    let mut from = 0;
    for fd in kept {
        if from < fd {
            close(from, fd - 1)?;
        }
        from = fd + 1;
    }
    close(from, c_uint::MAX)
}

fn close(first: c_uint, last: c_uint) -> io::Result<()> {
    // SAFETY: who called made sure that nobody owns one of these.
    if unsafe { libc::close_range(first, last, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
