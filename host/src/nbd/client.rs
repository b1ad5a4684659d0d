//! Reading an export, one request after the other: for whoever has no guest's device to wait for.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use boot_entry::{BootError, Bytes};
use devices::virtio::block::nbd::protocol::{READ, REPLY_LEN, Reply, Request};
use devices::virtio::block::nbd::{NbdError, negotiate};

/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes of one request: what every server takes.
const MAX: usize = 1 << 20;

/// An export that was agreed on.
pub struct Client {
    stream: Mutex<UnixStream>,
    len: u64,
}

impl Client {
    /// Agrees with the server at `socket` on its only export. The stream, and the bytes of the export.
    ///
    /// # Errors
    /// There is no server, or it has something else.
    pub fn connect(socket: &Path) -> Result<(UnixStream, u64), NbdError> {
        let stream = UnixStream::connect(socket).map_err(NbdError::Stream)?;
        let export = negotiate(&stream, "")?;
        Ok((stream, export.len))
    }

    /// Reads over a stream on which an export of `len` bytes was agreed on.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn over(stream: UnixStream, len: u64) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let stream = Mutex::new(stream);
        Ok(Self { stream, len })
    }

    fn fetch(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, part) in (0_u64..).step_by(MAX).zip(buffer.chunks_mut(MAX)) {
            let request = Request {
                flags: 0,
                command: READ,
                handle: at,
                offset: offset + at,
                len: u32::try_from(part.len()).unwrap_or(u32::MAX),
            };
            stream.write_all(&request.encode())?;
            let mut reply = [0; REPLY_LEN];
            stream.read_exact(&mut reply)?;
            let reply = Reply::decode(&reply).map_err(io::Error::other)?;
            if reply.error != 0 {
                return Err(io::Error::from_raw_os_error(reply.error.cast_signed()));
            }
            if reply.handle != request.handle {
                return Err(io::ErrorKind::InvalidData.into());
            }
            stream.read_exact(part)?;
        }
        Ok(())
    }
}

impl Bytes for Client {
    fn length(&self) -> u64 {
        self.len
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BootError> {
        self.fetch(offset, buffer)
            .map_err(|source| BootError::Read { offset, source })
    }
}
