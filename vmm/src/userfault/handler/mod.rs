//! The program that serves a guest's memory out of a snapshot, as a library.
//!
//! ```text
//!   VMM ──connect──► Connection::accept ◄── userfaultfd, where the memory is
//!    │                    │
//!    │ page fault         ▼
//!    └──────────────► serve ──► PageSource: what is in that page?
//!                       │  nobody waits: pages known to be needed, then all others
//!    ◄── ALL_SERVED ────┘
//! ```
//!
//! What a VMM says is not trusted: a guest may have taken it over. It can have its own memory served, and nothing else.

mod serve;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::mapping::{Mapping, MappingError, Places};
use super::{PAGE, Userfault, UserfaultError};

pub use self::serve::{End, Report};

/// What the handler says to the VMM when every page was served that is not zero: the VMM then needs it no more, takes its
/// memory out of the handler's control, and closes the connection. Beyond Firecracker's protocol.
pub const ALL_SERVED: u8 = 1;

/// Bytes of a page.
const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_BYTES as u64 == PAGE);

/// One page.
pub type Page = [u8; PAGE_BYTES];

/// Why a page cannot be had.
pub type SourceError = Box<dyn Error + Send + Sync>;

/// Most bytes of the VMM's message.
const MAX_MESSAGE: usize = 16 << 10;
/// Most descriptors that a message can have, by the kernel: none of them is to be lost.
const MAX_DESCRIPTORS: usize = 253;
/// How long a VMM may take for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeroes, whatever is in the buffer.
    Zero,
    /// What is in the buffer.
    Data,
}

/// Where pages come from.
pub trait PageSource {
    /// Puts the page at `offset` of the snapshot's memory into `page`. Each is mostly asked for once.
    ///
    /// # Errors
    /// It cannot be had, or is not what it was. The VMM ends then: its guest is not to see anything else.
    fn page(&mut self, offset: u64, page: &mut Page) -> Result<Content, SourceError>;
}

impl<F> PageSource for F
where
    F: FnMut(u64, &mut Page) -> Result<Content, SourceError>,
{
    fn page(&mut self, offset: u64, page: &mut Page) -> Result<Content, SourceError> {
        self(offset, page)
    }
}

/// What is served before it is asked for.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Offsets of pages that are needed soon, in their order. What is no page's offset is passed over.
    pub prefetch: Vec<u64>,
    /// After this time all other pages are served, too, and the VMM is on its own. Faults before that time are of the
    /// guest's working set. `None`: never.
    pub fill_after: Option<Duration>,
}

/// Why memory is not served.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// The connection fails.
    #[error("Cannot hear from the VMM where its memory is")]
    Receive(#[source] io::Error),
    /// The VMM has gone.
    #[error("The VMM has closed the connection before it said where its memory is")]
    Silent,
    /// Not one descriptor.
    #[error("The VMM has sent {found} descriptors instead of its userfaultfd")]
    Descriptors {
        /// How many.
        found: usize,
    },
    /// Not a userfaultfd.
    #[error("The VMM has sent something else than a userfaultfd")]
    Userfault(#[source] UserfaultError),
    /// No JSON.
    #[error("The VMM does not say where its memory is")]
    Message(#[source] serde_json::Error),
    /// JSON that cannot be.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// Faults cannot be read or waited for.
    #[error("Cannot wait for the VMM's page faults")]
    Wait(#[source] io::Error),
    /// A fault of something else.
    #[error("The VMM asks for a page at {address:#x}, where it has no memory of its guest")]
    Outside {
        /// Of the fault.
        address: u64,
    },
    /// More threads wait than a VMM has.
    #[error("The VMM waits for {found} pages at once, more than a VMM does")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// The VMM says something in the middle.
    #[error("The VMM says something unexpected while its memory is served")]
    Unexpected,
    /// A page cannot be put in its place.
    #[error("Cannot give the VMM its page at {offset:#x}")]
    Place {
        /// Which.
        offset: u64,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A page cannot be had.
    #[error("Cannot have the page at {offset:#x} of the snapshot's memory")]
    Source {
        /// Which.
        offset: u64,
        /// Cause.
        #[source]
        source: SourceError,
    },
}

/// A VMM that waits for its memory.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    userfault: Userfault,
    places: Places,
}

impl Connection {
    /// Hears from the VMM at the other end of `stream`, which has at most five seconds, where the `len` bytes of its
    /// memory are.
    ///
    /// # Errors
    /// It says nothing, or what cannot be.
    pub fn accept(stream: UnixStream, len: u64) -> Result<Self, HandlerError> {
        stream
            .set_read_timeout(Some(PATIENCE))
            .map_err(HandlerError::Receive)?;
        let (message, descriptors) = receive(&stream).map_err(HandlerError::Receive)?;
        if message.is_empty() {
            return Err(HandlerError::Silent);
        }
        let found = descriptors.len();
        let mut descriptors = descriptors.into_iter();
        let (Some(descriptor), None) = (descriptors.next(), descriptors.next()) else {
            return Err(HandlerError::Descriptors { found });
        };
        let userfault = Userfault::from_fd(descriptor).map_err(HandlerError::Userfault)?;
        let mappings: Vec<Mapping> =
            serde_json::from_slice(&message).map_err(HandlerError::Message)?;
        Ok(Self {
            stream,
            userfault,
            places: Places::new(mappings, len)?,
        })
    }

    /// Serves the VMM's memory from `source` until the VMM is gone or needs it no more. For a thread of its own.
    ///
    /// # Errors
    /// A page cannot be served, or the VMM does what no VMM does. The connection is closed then, which ends the VMM.
    pub fn serve(self, plan: &Plan, source: &mut impl PageSource) -> Result<Report, HandlerError> {
        serve::serve(self, plan, source)
    }
}

/// The first message, and what came with it.
fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut message = vec![0; MAX_MESSAGE];
    let mut space = nix::cmsg_space!([i32; MAX_DESCRIPTORS]);
    let mut vectors = [IoSliceMut::new(&mut message)];
    let received = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut vectors,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for part in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            for number in numbers {
                // SAFETY: the kernel has made this descriptor for this message just now: nobody else owns it.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
    let length = received.bytes;
    message.truncate(length);
    Ok((message, descriptors))
}
