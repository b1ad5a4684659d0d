//! A netlink socket for requests and their acknowledgements. The kernel answers within the call that sends, so nothing
//! here waits.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc::{MSG_DONTWAIT, NLMSG_ERROR};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{SndBuf, SndBufForce};

/// Acknowledgements repeat their request unless they are capped; ours are short either way.
const RECEIVE: usize = 32 * 1024;
/// Room for some 10,000 packet filter rules, taken only while they are sent.
const SEND: usize = 4 << 20;
const HEADER: usize = 16;

/// The socket.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one for a protocol of netlink(7).
    ///
    /// # Errors
    /// The kernel has no such protocol.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Not every kernel knows it, and without it answers are longer, not wrong.
        let _ = socket.set_cap_ack(true);
        // A batch is one message to the socket and must fit. Without the right to more than the usual maximum, that.
        if setsockopt(&socket, SndBufForce, &SEND).is_err() {
            let _ = setsockopt(&socket, SndBuf, &SEND);
        }
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// A number for the next message.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends messages, the last of which asks for an acknowledgement; the first refusal is the error.
    ///
    /// # Errors
    /// The kernel refused one of the messages.
    pub fn send(&mut self, messages: &[u8]) -> io::Result<()> {
        self.socket.send(messages, 0)?;
        let mut answered = false;
        let mut refused = None;
        let mut buffer = vec![0; RECEIVE];
        loop {
            match self.socket.recv(&mut &mut buffer[..], MSG_DONTWAIT) {
                Ok(length) => {
                    for code in codes(&buffer[..length.min(RECEIVE)]) {
                        answered = true;
                        if code != 0 {
                            refused.get_or_insert(code);
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // So many refusals that they found no room; the rest of them is read before anything else is asked.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    refused.get_or_insert(Errno::ENOBUFS as i32);
                }
                Err(error) => return Err(error),
            }
        }
        match refused {
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            None if answered => Ok(()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The error numbers in a run of netlink messages; 0 is an acknowledgement.
fn codes(mut bytes: &[u8]) -> Vec<i32> {
    let mut codes = Vec::new();
    while let (Some(length), Some(kind)) = (field::<4>(bytes, 0), field::<2>(bytes, 4)) {
        let length = usize::try_from(u32::from_ne_bytes(length)).unwrap_or(usize::MAX);
        if length < HEADER || length > bytes.len() {
            break;
        }
        if i32::from(u16::from_ne_bytes(kind)) == NLMSG_ERROR
            && let Some(code) = field::<4>(bytes, HEADER)
        {
            codes.push(i32::from_ne_bytes(code).saturating_neg());
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    codes
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(code: i32) -> Vec<u8> {
        let mut bytes = vec![36, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend((-code).to_ne_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn every_message_of_a_run_is_read() {
        let bytes = [error(0), error(17)].concat();
        assert_eq!(codes(&bytes), [0, 17]);
        assert_eq!(codes(&bytes[..50]), [0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = codes(&bytes);
        }
    }
}
