//! HTTP/1.1 over a Unix socket, as much of it as the API needs.

mod connection;
mod message;
mod server;

pub use server::{BindError, Server, Stopper};

/// Most bytes of a request's body, unless the command line says otherwise (Firecracker's default).
pub const DEFAULT_MAX_BODY: usize = 51_200;

/// Says each of `pieces` to the server in turn, on a connection of its own, and returns what it answers: for fuzz targets
/// and tests, which need no socket with a name.
#[cfg(any(test, feature = "test-utils"))]
pub fn converse<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    handler: &mut impl crate::Handler,
) -> std::io::Result<Vec<u8>> {
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    let (near, mut far) = UnixStream::pair()?;
    far.set_nonblocking(true)?;
    let mut connection = connection::Connection::new(near, DEFAULT_MAX_BODY)?;
    let (mut answers, mut buffer) = (Vec::new(), [0; 4096]);
    for piece in pieces {
        match far.write(piece) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        loop {
            let next = connection.serve(handler, Instant::now());
            while let Ok(length @ 1..) = far.read(&mut buffer) {
                answers.extend_from_slice(&buffer[..length]);
            }
            if next == connection::Next::Close {
                return Ok(answers);
            }
            if !connection.has_more() {
                break;
            }
        }
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Answer, Request};

    /// The end of the head that `has_more` once looked for, and the parser skips: the server was busy for ever.
    #[test]
    fn empty_lines_before_a_request_are_waited_out_and_not_gone_through_again_and_again() {
        let mut handler = |_: Request| Ok(Answer::Done);
        let request = b"GET / HTTP/1.1\r\n\r\n";
        for pieces in [
            vec![&b"\r\n\r\n"[..]],
            vec![b"\r\n\r\n", request],
            vec![b"\r\n\r\n\r\n", request, b"\r\n\r\n"],
        ] {
            let asked = pieces.len() > 1;
            let answers = converse(pieces, &mut handler).unwrap();
            assert_eq!(answers.starts_with(b"HTTP/1.1 204"), asked);
        }
    }
}
