//! A connection after its negotiation: requests, each answered before the next is looked at.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use devices::virtio::block::nbd::protocol::{
    DISCONNECT, EINVAL, EIO, ENOSPC, EPERM, FLUSH, FUA, MAX_DATA, NO_HOLE, READ, REPLY_LEN,
    REQUEST_LEN, Reply, Request, TRIM, WRITE, WRITE_ZEROES,
};

use super::{Export, Report};

/// Requests are read ahead this far: with one system call, as many as a client has sent.
const AHEAD: usize = 64 << 10;
/// Data is written to the disk in pieces, and replies are sent, once there are so many bytes.
const PIECE: usize = 1 << 20;

/// Serves `export` to the client until it goes or breaks the protocol.
pub(super) fn serve(stream: UnixStream, export: &Export, report: &Report) {
    let Ok(writer) = stream.try_clone() else {
        return;
    };
    let mut connection = Connection {
        reader: BufReader::with_capacity(AHEAD, stream),
        writer,
        export,
        report,
        failures: 0,
        replies: Vec::new(),
        data: Vec::new(),
    };
    // A client that is gone has nobody to be told.
    let _ = connection.run();
}

struct Connection<'a> {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    export: &'a Export,
    report: &'a Report,
    /// How often the disk has failed.
    failures: u64,
    /// Those that were not sent, with their data.
    replies: Vec<u8>,
    /// Of one piece of a write.
    data: Vec<u8>,
}

/// The number of an error, as the protocol has it.
type Failure = u32;

impl Connection<'_> {
    fn run(&mut self) -> io::Result<()> {
        loop {
            // Only where nobody waits for a reply may a request be waited for.
            if self.reader.buffer().len() < REQUEST_LEN {
                self.send()?;
            }
            let mut bytes = [0; REQUEST_LEN];
            self.reader.read_exact(&mut bytes)?;
            let request = Request::decode(&bytes).map_err(io::Error::other)?;
            let handle = request.handle;
            let result = match request.command {
                DISCONNECT => return Ok(()),
                READ => {
                    self.read(&request)?;
                    continue;
                }
                WRITE => self.write(&request)?,
                FLUSH if request.offset == 0 && request.len == 0 => self.flush(),
                TRIM | WRITE_ZEROES => self.zero(&request),
                _ => Err(EINVAL),
            };
            let error = result.err().unwrap_or(0);
            self.replies.extend(Reply { error, handle }.encode());
        }
    }

    fn send(&mut self) -> io::Result<()> {
        self.writer.write_all(&self.replies)?;
        self.replies.clear();
        self.replies.shrink_to(PIECE);
        Ok(())
    }

    /// Whether a request makes sense, before the disk is asked.
    fn check(&self, request: &Request, flags: u16, beyond: Failure) -> Result<(), Failure> {
        let changes = request.command != READ;
        if changes && self.export.read_only {
            return Err(EPERM);
        }
        if request.flags & !flags != 0 {
            return Err(EINVAL);
        }
        let end = request.offset.checked_add(request.len.into());
        if end.is_none_or(|end| end > self.export.disk.size()) {
            return Err(beyond);
        }
        Ok(())
    }

    /// What the client is told of the disk's answer.
    fn judge(&mut self, request: &str, result: store::Result<()>) -> Result<(), Failure> {
        result.map_err(|error| {
            self.failures += 1;
            if self.failures.is_power_of_two() {
                let mut causes = String::new();
                let mut source = std::error::Error::source(&error);
                while let Some(cause) = source {
                    causes.push_str(&format!(": {cause}"));
                    source = cause.source();
                }
                (self.report)(&format!(
                    "A disk fails to {request} (occurrence {}): {error}{causes}",
                    self.failures
                ));
            }
            EIO
        })
    }

    fn read(&mut self, request: &Request) -> io::Result<()> {
        let handle = request.handle;
        let len = request.len as usize;
        if self.replies.len() + len > PIECE {
            self.send()?;
        }
        let mut checked = self.check(request, FUA, EINVAL);
        if request.len > MAX_DATA {
            checked = Err(EINVAL);
        }
        let start = self.replies.len();
        let result = checked.and_then(|()| {
            self.replies.extend(Reply { error: 0, handle }.encode());
            self.replies.resize(start + REPLY_LEN + len, 0);
            let data = &mut self.replies[start + REPLY_LEN..];
            let read = self.export.disk.read_at(request.offset, data);
            self.judge("read", read)
        });
        if let Err(error) = result {
            // A reply is good or bad in its first bytes: so the disk is asked before they go.
            self.replies.truncate(start);
            self.replies.extend(Reply { error, handle }.encode());
        }
        Ok(())
    }

    fn write(&mut self, request: &Request) -> io::Result<Result<(), Failure>> {
        if request.len > MAX_DATA {
            // Taking it all for nothing would be what the limit is against.
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut result = self.check(request, FUA, ENOSPC);
        let (mut offset, mut left) = (request.offset, request.len as usize);
        let mut data = std::mem::take(&mut self.data);
        while left > 0 {
            let piece = left.min(PIECE);
            data.resize(piece, 0);
            self.reader.read_exact(&mut data)?;
            if result.is_ok() {
                let written = self.export.disk.write_at(offset, &data);
                result = self.judge("write", written);
            }
            offset = offset.wrapping_add(piece as u64);
            left -= piece;
        }
        self.data = data;
        Ok(result.and_then(|()| self.make_durable(request)))
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let flushed = self.export.disk.flush();
        self.judge("flush", flushed)
    }

    fn make_durable(&mut self, request: &Request) -> Result<(), Failure> {
        if request.flags & FUA == 0 {
            return Ok(());
        }
        self.flush()
    }

    /// Both give zeroes. A hole is made also where the client wants none: a disk has no room of its own that it could
    /// keep, so there is nothing that zeroes written out would make sure of.
    fn zero(&mut self, request: &Request) -> Result<(), Failure> {
        let (flags, beyond) = match request.command {
            TRIM => (FUA, EINVAL),
            _ => (FUA | NO_HOLE, ENOSPC),
        };
        self.check(request, flags, beyond)?;
        let zeroed = self.export.disk.discard(request.offset, request.len.into());
        self.judge("discard", zeroed)?;
        self.make_durable(request)
    }
}
