//! Sockets that come as numbers.
#![expect(unsafe_code, reason = "takes over sockets, which come as numbers")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use super::Failure;

/// Takes over the socket that the parent gave with `flag`. Nobody else was given it.
pub(super) fn take_socket(flag: &str, fd: RawFd) -> Result<UnixStream, Failure> {
    let mut kind: libc::c_int = 0;
    let mut length: libc::socklen_t = 4;
    // SAFETY: `kind` is a valid place of `length` bytes for the answer.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut length,
        )
    };
    if result != 0 || kind != libc::SOCK_STREAM {
        return Err(Failure::arguments(format!(
            "{flag} {fd} is not a connected stream socket"
        )));
    }
    // SAFETY: it is open, it is above the standard streams, and the parent gave it to this process for this use: nothing
    // else here owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(owned.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::CODE_BAD_ARGUMENTS;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_descriptor_that_is_no_socket_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let failure = take_socket("--control-fd", file.as_raw_fd()).unwrap_err();
        assert_eq!(failure.code, CODE_BAD_ARGUMENTS);
    }
}
