//! How much the other end of a socket has not read yet.
#![expect(unsafe_code, reason = "one request of sockets, which writes a number")]

use std::io;
use std::os::unix::net::UnixStream;

use vmm_sys_util::ioctl::ioctl_with_mut_ref;

/// `SIOCOUTQ`.
const UNREAD: libc::c_ulong = libc::TIOCOUTQ;

/// Whether the other end of `socket` has read all that was written.
pub(super) fn is_read(socket: &UnixStream) -> io::Result<bool> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: this request writes one `int`, which `bytes` is.
    let done = unsafe { ioctl_with_mut_ref(socket, UNREAD, &mut bytes) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes == 0)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn what_is_not_read_is_seen() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(is_read(&ours).unwrap());
        ours.write_all(&[7; 3]).unwrap();
        assert!(!is_read(&ours).unwrap());
        theirs.read_exact(&mut [0; 3]).unwrap();
        assert!(is_read(&ours).unwrap());
    }
}
