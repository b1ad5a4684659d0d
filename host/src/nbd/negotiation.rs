//! The beginning of a connection: options and answers, until the client has chosen an export or goes.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use devices::virtio::block::nbd::protocol::{
    self, ANSWER_ACK, ANSWER_INFO, ANSWER_INVALID, ANSWER_SERVER, ANSWER_UNKNOWN,
    ANSWER_UNSUPPORTED, FIXED_NEWSTYLE, Info, MAX_DATA, MAX_OPTION, NO_ZEROES, OPTION_ABORT,
    OPTION_EXPORT_NAME, OPTION_GO, OPTION_INFO, OPTION_LEN, OPTION_LIST,
};

use super::{Export, Exports};

/// How long a client has for each thing it says, and for taking each answer. Afterwards, as long as it likes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most options of one client, which needs one or two.
const MAX_OPTIONS: usize = 64;
/// Zeroes behind the answer to `NBD_OPT_EXPORT_NAME`, for who has not declined them.
const ZEROES: usize = 124;

/// Talks with a client until it has chosen an export. `None` where it goes instead, or breaks the protocol.
pub(super) fn negotiate(stream: UnixStream, exports: &Exports) -> Option<(UnixStream, &Export)> {
    let mut talk = Talk {
        stream,
        zeroes: true,
    };
    // Whatever the reason is, a client that has chosen nothing has lost nothing.
    let export = talk.run(exports).ok().flatten()?;
    let stream = talk.stream;
    stream.set_read_timeout(None).ok()?;
    stream.set_write_timeout(None).ok()?;
    Some((stream, export))
}

struct Talk {
    stream: UnixStream,
    /// The client wants the old padding.
    zeroes: bool,
}

impl Talk {
    fn run<'a>(&mut self, exports: &'a Exports) -> io::Result<Option<&'a Export>> {
        self.stream.set_read_timeout(Some(PATIENCE))?;
        self.stream.set_write_timeout(Some(PATIENCE))?;
        let ours = FIXED_NEWSTYLE | NO_ZEROES;
        self.stream.write_all(&protocol::greeting(ours))?;
        let flags = u32::from_be_bytes(self.array()?);
        if flags & !u32::from(ours) != 0 || flags & u32::from(FIXED_NEWSTYLE) == 0 {
            return Ok(None);
        }
        self.zeroes = flags & u32::from(NO_ZEROES) == 0;
        for _ in 0..MAX_OPTIONS {
            let start: [u8; OPTION_LEN] = self.array()?;
            let (option, len) = protocol::read_option(&start).map_err(io::Error::other)?;
            if len > MAX_OPTION {
                return Ok(None);
            }
            let mut data = vec![0; len as usize];
            self.stream.read_exact(&mut data)?;
            match option {
                OPTION_EXPORT_NAME => return self.old_way(&data, exports),
                OPTION_ABORT => {
                    self.answer(option, ANSWER_ACK, &[])?;
                    return Ok(None);
                }
                OPTION_LIST if data.is_empty() => {
                    for name in exports.0.keys() {
                        self.answer(option, ANSWER_SERVER, &protocol::text(name))?;
                    }
                    self.answer(option, ANSWER_ACK, &[])?;
                }
                OPTION_LIST => self.answer(option, ANSWER_INVALID, b"a list is of all exports")?,
                OPTION_INFO | OPTION_GO => {
                    let chosen = self.describe(option, &data, exports)?;
                    if option == OPTION_GO && chosen.is_some() {
                        return Ok(chosen);
                    }
                }
                _ => self.answer(option, ANSWER_UNSUPPORTED, &[])?,
            }
        }
        Ok(None)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn answer(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        self.stream.write_all(&protocol::answer(option, kind, data))
    }

    /// Says what an export is.
    fn describe<'a>(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &'a Exports,
    ) -> io::Result<Option<&'a Export>> {
        let name = match protocol::read_ask_for(data) {
            Ok((name, _)) => name,
            Err(error) => {
                self.answer(option, ANSWER_INVALID, error.to_string().as_bytes())?;
                return Ok(None);
            }
        };
        let Some(export) = exports.find(name) else {
            self.answer(option, ANSWER_UNKNOWN, b"there is no such export")?;
            return Ok(None);
        };
        let info = Info::Export {
            len: export.disk.size(),
            flags: export.flags(),
        };
        self.answer(option, ANSWER_INFO, &info.encode())?;
        // Whether it was asked for or not: who does not know it passes over it.
        let info = Info::BlockSize {
            min: 1,
            preferred: 4096,
            max: MAX_DATA,
        };
        self.answer(option, ANSWER_INFO, &info.encode())?;
        self.answer(option, ANSWER_ACK, &[])?;
        Ok(Some(export))
    }

    /// The choice that knows no refusal but hanging up.
    fn old_way<'a>(&mut self, name: &[u8], exports: &'a Exports) -> io::Result<Option<&'a Export>> {
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::InvalidData)?;
        let Some(export) = exports.find(name) else {
            return Ok(None);
        };
        let mut bytes = export.disk.size().to_be_bytes().to_vec();
        bytes.extend(export.flags().to_be_bytes());
        if self.zeroes {
            bytes.extend([0; ZEROES]);
        }
        self.stream.write_all(&bytes)?;
        Ok(Some(export))
    }
}
