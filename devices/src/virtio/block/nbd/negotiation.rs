//! The beginning of a connection: which export it is for, and what that is.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::NbdError;
use super::protocol::{
    self, ANSWER_ACK, ANSWER_ERROR, ANSWER_INFO, ANSWER_LEN, FIXED_NEWSTYLE, GREETING_LEN, Info,
    MAX_DATA, NO_ZEROES, OPTION_GO,
};

/// How long a server has for all of it: guests start in milliseconds, and one that says nothing must not hold up a host.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most answers to one question: the four kinds of information that there are, some more that may come, and the end.
const MAX_ANSWERS: usize = 32;

/// What a server has said of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Bytes.
    pub len: u64,
    /// What it is and can do ([`protocol::READ_ONLY`] …).
    pub flags: u16,
    /// Bytes of which offsets and lengths must be multiples.
    pub min: u32,
    /// The most data bytes of one request, a multiple of a sector.
    pub max: u32,
}

impl Export {
    /// Whether it has a flag.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A stream that does not wait for ever.
struct Patient<'a> {
    stream: &'a UnixStream,
    epoll: Epoll,
    deadline: Instant,
}

impl<'a> Patient<'a> {
    fn new(stream: &'a UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event)?;
        Ok(Self {
            stream,
            epoll,
            deadline: Instant::now() + PATIENCE,
        })
    }

    /// What is read is little and follows an answer of ours, which is as little: only reading has to be waited for.
    fn wait(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut events = [EpollEvent::default()];
        match self.epoll.wait(milliseconds.max(1), &mut events) {
            Err(error) if error.kind() != ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    fn fill(&self, mut bytes: &mut [u8]) -> io::Result<()> {
        let mut stream = self.stream;
        while !bytes.is_empty() {
            match stream.read(bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => bytes = &mut bytes[read..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait()?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn array<const N: usize>(&self) -> Result<[u8; N], NbdError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes).map_err(NbdError::Stream)?;
        Ok(bytes)
    }

    fn say(&self, bytes: &[u8]) -> Result<(), NbdError> {
        let mut stream = self.stream;
        stream.write_all(bytes).map_err(NbdError::Stream)
    }

    /// An answer to an option of ours: its kind and its data.
    fn answer(&self, option: u32) -> Result<(u32, Vec<u8>), NbdError> {
        let start: [u8; ANSWER_LEN] = self.array()?;
        let (to, kind, len) = protocol::read_answer(&start)?;
        if to != option {
            return Err(NbdError::Answers("one is to a question never asked"));
        }
        let mut data = vec![0; len as usize];
        self.fill(&mut data).map_err(NbdError::Stream)?;
        Ok((kind, data))
    }
}

/// Agrees with the server behind `stream` on the use of its export `name`. The stream does not block afterwards.
///
/// # Errors
/// The server has no such export, or does not say so in time.
pub fn negotiate(stream: &UnixStream, name: &str) -> Result<Export, NbdError> {
    let peer = Patient::new(stream).map_err(NbdError::Stream)?;
    let greeting: [u8; GREETING_LEN] = peer.array()?;
    let flags = protocol::read_greeting(&greeting)?;
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(NbdError::OldStyle);
    }
    let ours = u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES));
    let question = protocol::option(OPTION_GO, &protocol::ask_for(name));
    peer.say(&[&ours.to_be_bytes()[..], &question].concat())?;

    let (mut export, mut sizes) = (None, (1, MAX_DATA));
    for _ in 0..MAX_ANSWERS {
        let (kind, data) = peer.answer(OPTION_GO)?;
        match kind {
            ANSWER_INFO => match Info::decode(&data)? {
                Info::Export { len, flags } => export = Some((len, flags)),
                Info::BlockSize { min, max, .. } => sizes = (min, max),
                Info::Other => {}
            },
            ANSWER_ACK => {
                let (len, flags) = export.ok_or(NbdError::Answers("no length of the export"))?;
                // Work is cut at whole sectors.
                let max = sizes.1.min(MAX_DATA) & !511;
                return Ok(Export {
                    len,
                    flags,
                    min: sizes.0,
                    max,
                });
            }
            code if code >= ANSWER_ERROR => {
                let message: String = String::from_utf8_lossy(&data).chars().take(200).collect();
                return Err(NbdError::Refused {
                    name: name.into(),
                    code,
                    message,
                });
            }
            _ => return Err(NbdError::Answers("one of no kind that fits the question")),
        }
    }
    Err(NbdError::Answers("too many of them"))
}
