//! The way to the host.
#![expect(unsafe_code, reason = "vsock has no safe form in libc")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// The host's port for agents.
const PORT: u32 = 1024;
/// The longest order.
const MAX_LINE: usize = 256;

/// What the host wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A sign of life so often.
    Every(Duration),
    /// That the guest shuts down.
    PowerOff,
}

impl Order {
    /// An order in the form of a JSON object with one field; `None` for one that is not known.
    pub fn read(line: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?.trim();
        let field = text.strip_prefix('{')?.strip_suffix('}')?;
        let (key, value) = field.split_once(':')?;
        match (key.trim(), value.trim()) {
            ("\"every_ms\"", number) => {
                Some(Self::Every(Duration::from_millis(number.parse().ok()?)))
            }
            ("\"do\"", "\"poweroff\"") => Some(Self::PowerOff),
            _ => None,
        }
    }
}

/// A connection to the host.
pub struct Host {
    socket: OwnedFd,
    line: [u8; MAX_LINE],
    len: usize,
}

impl Host {
    /// Calls the host; `None` if nobody answers. The kernel waits for two seconds at most.
    pub fn call() -> Option<Self> {
        // SAFETY: a plain structure of numbers.
        let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
        address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).ok()?;
        address.svm_cid = libc::VMADDR_CID_HOST;
        address.svm_port = PORT;
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        // SAFETY: the call takes numbers only.
        let socket = unsafe { libc::socket(libc::AF_VSOCK, kind, 0) };
        if socket < 0 {
            return None;
        }
        // SAFETY: it is new, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let size = libc::socklen_t::try_from(size_of_val(&address)).ok()?;
        // SAFETY: the address is one of vsock's, of that size.
        let connected =
            unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size) };
        (connected == 0).then(|| Self::new(socket))
    }

    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            line: [0; MAX_LINE],
            len: 0,
        }
    }

    /// For polling.
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Hands over the lines that the host has said; false if it is gone.
    pub fn listen(&mut self, mut each: impl FnMut(&[u8])) -> bool {
        loop {
            let free = &mut self.line[self.len..];
            if free.is_empty() {
                return false;
            }
            // SAFETY: it writes to `free`, of that length.
            let got = unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    free.as_mut_ptr().cast(),
                    free.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            match usize::try_from(got) {
                Ok(0) => return false,
                Ok(length) => self.len += length,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    return matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    );
                }
            }
            while let Some(end) = self.line[..self.len].iter().position(|b| *b == b'\n') {
                each(&self.line[..end]);
                self.line.copy_within(end + 1..self.len, 0);
                self.len -= end + 1;
            }
        }
    }

    /// Says a line; false if the host is gone. One that does not listen is not waited for.
    pub fn say(&mut self, line: &[u8]) -> bool {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: it reads `line`, of that length.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                line.as_ptr().cast(),
                line.len(),
                flags,
            )
        };
        match usize::try_from(sent) {
            // Half a line would be nonsense with the next.
            Ok(length) => length == line.len(),
            Err(_) => io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn orders_are_read_and_what_is_not_known_is_none() {
        let every = |ms| Some(Order::Every(Duration::from_millis(ms)));
        assert_eq!(Order::read(b"{\"every_ms\":5000}"), every(5000));
        assert_eq!(Order::read(b" { \"every_ms\" : 1 } "), every(1));
        assert_eq!(Order::read(b"{\"do\":\"poweroff\"}"), Some(Order::PowerOff));
        for line in [
            "{\"do\":\"dance\"}",
            "{\"every_ms\":-1}",
            "{\"every_ms\":1,\"do\":2}",
            "",
            "{}",
        ] {
            assert_eq!(Order::read(line.as_bytes()), None, "{line}");
        }
    }

    fn pair() -> (Host, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Host::new(ours.into()), theirs)
    }

    #[test]
    fn lines_go_both_ways_and_an_end_is_noticed() {
        let (mut host, mut other) = pair();
        let mut lines = Vec::new();
        assert!(host.listen(|line| lines.push(line.to_vec())));
        other.write_all(b"{\"every").unwrap();
        assert!(host.listen(|line| lines.push(line.to_vec())));
        other.write_all(b"_ms\":1}\nnext\n").unwrap();
        assert!(host.listen(|line| lines.push(line.to_vec())));
        assert_eq!(lines, [b"{\"every_ms\":1}".to_vec(), b"next".to_vec()]);
        assert!(host.say(b"{}\n"));
        let mut said = [0; 3];
        other.read_exact(&mut said).unwrap();
        drop(other);
        assert!(!host.listen(|_| {}));
        assert!(!host.say(b"{}\n"), "and no signal that kills");
    }

    #[test]
    fn a_host_that_never_ends_its_line_is_left() {
        let (mut host, mut other) = pair();
        other.write_all(&[b'x'; MAX_LINE]).unwrap();
        assert!(!host.listen(|_| panic!("there is no line")));
    }

    proptest! {
        #[test]
        fn any_order_is_read_or_not_known(line in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Order::read(&line);
        }
    }
}
