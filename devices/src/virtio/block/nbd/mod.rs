//! A disk that a server has: an export of the Network Block Device protocol, over a stream that somebody has connected.
//!
//! ```text
//!   negotiation: which export, how long, read-only? ──► Nbd, a backend of the block device
//!                                                        │ attach
//!   server ◄── requests, as many as there are ── link ◄──┘ work of the engine
//!          ─── replies in any order ──────────►
//! ```
//!
//! What the server says decides about nothing but the disk's contents: lengths and handles are checked, and the first thing
//! it says that breaks the protocol is the last that is listened to. From then on, as when it has gone, every request fails.

mod link;
mod negotiation;
pub mod protocol;

use std::io;
use std::os::unix::net::UnixStream;

use thiserror::Error;

use self::link::Link;
pub use self::negotiation::{Export, negotiate};
use self::protocol::ProtocolError;
use super::SECTOR_SIZE;
use super::backend::{Action, Backend, Job, Start};
use super::engine::Engine;

/// Why a server's export cannot be a disk.
#[derive(Debug, Error)]
pub enum NbdError {
    /// It goes, or says nothing for too long.
    #[error("Cannot agree with the NBD server on an export")]
    Stream(#[source] io::Error),
    /// It does not speak the protocol.
    #[error("The NBD server breaks the protocol")]
    Protocol(#[from] ProtocolError),
    /// It knows only what was before 2013.
    #[error("The NBD server does not know fixed newstyle negotiation")]
    OldStyle,
    /// It will not give the export.
    #[error(
        "The NBD server refuses the export {name:?}: error {code:#x}{text}",
        text = if .message.is_empty() { String::new() } else { format!(", {message:?}") }
    )]
    Refused {
        /// The export's name.
        name: String,
        /// `NBD_REP_ERR_*`.
        code: u32,
        /// What the server says about it.
        message: String,
    },
    /// It answers more than once, or something else.
    #[error("The NBD server's answers make no sense: {0}")]
    Answers(&'static str),
    /// It has no sectors, or part of one.
    #[error("The export is {len} bytes long; a disk is one or more whole sectors of 512 bytes")]
    NotWholeSectors {
        /// Its length in bytes.
        len: u64,
    },
    /// A guest's disk has sectors of 512 bytes.
    #[error("The export takes requests of {min} to {max} bytes, a disk's are from 512 bytes on")]
    BlockSize {
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// What a disk that is written to must be able to do.
    #[error("The export is writable but has no {lacking}: serve it read-only or by another server")]
    Lacks {
        /// Flush, durable writes, write zeroes.
        lacking: &'static str,
    },
    /// There is no timer.
    #[error("Cannot make the timer of an NBD disk")]
    Timer(#[source] io::Error),
}

/// A disk that a server has.
pub struct Nbd {
    export: Export,
    read_only: bool,
    /// Until it is attached to its engine.
    link: Option<Link>,
}

impl Nbd {
    /// A disk that is the export called `name` of the server behind `stream`; the empty name is the server's default.
    /// The guest cannot write if `read_only`, or if the export is.
    ///
    /// # Errors
    /// The server has no such export within a few seconds, or it is not fit for a disk.
    pub fn new(stream: UnixStream, name: &str, read_only: bool) -> Result<Self, NbdError> {
        let export = negotiate(&stream, name)?;
        let read_only = read_only || export.has(protocol::READ_ONLY);
        if export.len == 0 || export.len % SECTOR_SIZE != 0 {
            return Err(NbdError::NotWholeSectors { len: export.len });
        }
        let (min, max) = (export.min, export.max);
        if u64::from(min) > SECTOR_SIZE || u64::from(max) < SECTOR_SIZE {
            return Err(NbdError::BlockSize { min, max });
        }
        for (flag, lacking) in [
            (protocol::SEND_FLUSH, "flush"),
            (protocol::SEND_FUA, "durable writes (FUA)"),
            (protocol::SEND_WRITE_ZEROES, "write zeroes"),
        ] {
            if !read_only && !export.has(flag) {
                return Err(NbdError::Lacks { lacking });
            }
        }
        let link = Link::new(stream, max).map_err(NbdError::Timer)?;
        Ok(Self {
            export,
            read_only,
            link: Some(link),
        })
    }
}

impl Backend for Nbd {
    fn len(&self) -> u64 {
        self.export.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn attach(&mut self, engine: &mut Engine) -> io::Result<()> {
        let link = self.link.take().ok_or(io::ErrorKind::NotConnected)?;
        engine.attach_remote(Box::new(link))
    }

    fn start(&mut self, engine: &mut Engine, token: u16, job: &Job<'_>) -> Start {
        match job.action {
            // A wish, which not every server can fulfil.
            Action::Discard if !self.export.has(protocol::SEND_TRIM) => Start::Done(Ok(())),
            Action::Flush if !self.export.has(protocol::SEND_FLUSH) => Start::Done(Ok(())),
            _ => engine.start(token, job),
        }
    }
}

#[cfg(test)]
mod tests;
