//! What the VMM and the store's service say to each other on the live channel, a connected Unix stream socket.
//!
//! ```text
//!   offset  bytes
//!   0       1      kind
//!   1       3      zero
//!   4       4      bytes of the payload, little-endian; at most 1 MiB and 8
//!   8              the payload: nothing, JSON, or little-endian numbers and bytes
//! ```
//!
//! One snapshot, in this order, where pages may come anywhere between MEMORY and END:
//!
//! ```text
//!   store                     VMM
//!   TAKE {number, full} ────►
//!                       ◄──── MEMORY {number, full, len}
//!                             stops the guest
//!                       ◄──── FREEZE
//!   FROZEN ─────────────────► saves the state, lets the guest go on
//!                       ◄──── STATE, in as many frames as it takes
//!                       ◄──── PAGES ...; of one that comes again the last one counts
//!                       ◄──── END {number, pause_us, pages}
//!   KEPT {number} ──────────► the next one counts from here
//! ```
//!
//! Instead of any message of its own the VMM may say FAILED, the store LOST; both end the snapshot, and the next one counts
//! from the one before. Both can be on their way at once: after LOST, whatever comes before the next MEMORY is of the one
//! that was given up, and FAILED with its number as well. A FREEZE is answered by FROZEN even if it comes too late. TAKE while
//! neither KEPT nor LOST was said of the one before means LOST; in the middle of a snapshot it is an error.
//!
//! Whether there is a snapshot to count from is the VMM's to say: MEMORY is full if nothing is known of changes since, as of
//! a guest that has just been started, and after somebody else took a snapshot by the API. A guest that was loaded from a
//! snapshot with `track_dirty_pages` counts from that one.
//!
//! All that comes from the other side is taken for hostile: a [`Decoder`] holds one frame at most, and
//! the first error is the end of the channel.

use std::io::{self, Read};
use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Most bytes of pages, or of the state, in one frame.
pub const MAX_DATA: usize = 1 << 20;
/// Most bytes of a payload.
pub const MAX_PAYLOAD: usize = MAX_DATA + NUMBER;
/// Most bytes of a payload that is JSON.
pub const MAX_JSON: usize = 4096;
/// Most bytes of a whole state: as a state file may have, with its header.
pub const MAX_STATE: u64 = (64 << 20) + 4096;
/// Bytes of what is before a payload.
pub const HEADER: usize = 8;
/// Bytes of a number before data.
const NUMBER: usize = 8;
/// Most bytes of a reason, as it is sent: in JSON each of them has six at most, and so it fits.
const MAX_REASON: usize = 512;

const TAKE: u8 = 1;
const FROZEN: u8 = 2;
const KEPT: u8 = 3;
const LOST: u8 = 4;
const MEMORY: u8 = 16;
const FREEZE: u8 = 17;
const STATE: u8 = 18;
const PAGES: u8 = 19;
const END: u8 = 20;
const FAILED: u8 = 21;

/// Why what was said is not understood. The channel is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The number of something else.
    #[error("A frame of kind {found} came, which this side does not get")]
    Kind {
        /// As it came.
        found: u8,
    },
    /// What is to be zero is not.
    #[error("The three bytes after a frame's kind {kind} are {found:?}, they are to be zero")]
    Padding {
        /// Of what kind.
        kind: u8,
        /// As they came.
        found: [u8; 3],
    },
    /// Too much or too little.
    #[error("A frame of kind {kind} has a payload of {found} bytes, it is to have {expected}")]
    Length {
        /// Of what kind.
        kind: u8,
        /// As it came.
        found: u32,
        /// What it may be, in words.
        expected: &'static str,
    },
    /// JSON of something else.
    #[error("A frame of kind {kind} does not say what it is to say")]
    Json {
        /// Of what kind.
        kind: u8,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// Pages are not where pages are.
    #[error("Pages are to be at multiples of 4096 below 2^63, not at {offset:#x}")]
    Place {
        /// As it came.
        offset: u64,
    },
    /// The state is longer than any state is, or shorter than its part.
    #[error(
        "The state is said to have {total} bytes, with {part} of them in one frame; at most {MAX_STATE} are permitted"
    )]
    State {
        /// As it came.
        total: u64,
        /// Of this frame.
        part: usize,
    },
    /// The other side has ended in the middle of a frame.
    #[error("The channel has ended in the middle of a frame, {missing} bytes before its end")]
    Cut {
        /// Bytes that did not come.
        missing: usize,
    },
    /// The host gives nothing.
    #[error("Cannot read from the live channel")]
    Io(#[from] io::Error),
}

/// What the store says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Take a snapshot.
    Take(Take),
    /// The disks are frozen: the guest may go on.
    Frozen,
    /// The snapshot is durable: changes count from it.
    Kept(Kept),
    /// The snapshot is lost: changes count from the one before.
    Lost(Failure),
}

/// Take a snapshot.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Take {
    /// What it is called on this channel: another one each time.
    pub number: u64,
    /// All memory, and not only what has changed.
    pub full: bool,
}

/// A snapshot is durable.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Which.
    pub number: u64,
}

/// There is no snapshot.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Which.
    pub number: u64,
    /// Why, for people. What is over 512 bytes is not sent.
    pub reason: String,
}

/// What the VMM says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A snapshot begins.
    Memory(Memory),
    /// The guest stands still: freeze the disks and say so.
    Freeze,
    /// Some of the state, in order.
    State(StatePart),
    /// Some of the memory.
    Pages(Pages),
    /// All of the snapshot was said.
    End(End),
    /// There will be no snapshot; the guest runs on as before.
    Failed(Failure),
}

/// A snapshot begins.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Which.
    pub number: u64,
    /// What is not sent is zero; otherwise, it is as in the snapshot before, the last one that was kept.
    pub full: bool,
    /// Bytes of the guest's memory: all regions one after the other, as in the memory file of `/snapshot/create`.
    pub len: u64,
}

/// All of a snapshot was said.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Which.
    pub number: u64,
    /// For how long the guest stood still, in microseconds.
    pub pause_us: u64,
    /// How many pages were sent; one that was sent again counts again.
    pub pages: u64,
}

/// Whole pages of memory that are next to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    /// With the number before them.
    payload: Vec<u8>,
}

/// Some of the state: bytes of a state file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePart {
    /// With the number before them.
    payload: Vec<u8>,
}

/// The number at the beginning of `payload`.
fn number(payload: &[u8]) -> u64 {
    payload
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Pages {
    /// Where the first one is: bytes from the beginning of the memory.
    pub fn offset(&self) -> u64 {
        number(&self.payload)
    }

    /// What is in them.
    pub fn bytes(&self) -> &[u8] {
        self.payload.get(NUMBER..).unwrap_or_default()
    }
}

impl StatePart {
    /// Bytes of the whole state.
    pub fn total(&self) -> u64 {
        number(&self.payload)
    }

    /// These ones of it.
    pub fn bytes(&self) -> &[u8] {
        self.payload.get(NUMBER..).unwrap_or_default()
    }
}

/// What one of the two sides says.
pub trait Message: Sized {
    /// What `payload` may be long after a header with `kind`.
    fn lengths(kind: u8) -> Option<Lengths>;
    /// What `payload`, of a length that is permitted, says.
    fn decode(kind: u8, payload: Vec<u8>) -> Result<Self, ProtocolError>;
    /// The whole frame.
    fn encode(&self) -> Vec<u8>;
    /// Its buffer, for the next one.
    fn into_buffer(self) -> Vec<u8>;
}

/// Which lengths a kind's payload may have.
#[derive(Clone, Copy, Debug)]
pub enum Lengths {
    /// None.
    Empty,
    /// Of JSON.
    Json,
    /// Of a number and bytes.
    Data,
    /// Of a number and whole pages.
    Pages,
}

impl Lengths {
    fn permit(self, len: usize) -> bool {
        match self {
            Self::Empty => len == 0,
            Self::Json => (2..=MAX_JSON).contains(&len),
            Self::Data => (NUMBER + 1..=MAX_PAYLOAD).contains(&len),
            Self::Pages => {
                (NUMBER + PAGE..=MAX_PAYLOAD).contains(&len) && (len - NUMBER).is_multiple_of(PAGE)
            }
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Empty => "none",
            Self::Json => "2 to 4096",
            Self::Data => "9 to 1048584",
            Self::Pages => "8 and 1 to 256 times 4096",
        }
    }
}

/// The header of a frame. Payloads are as long as [`Lengths`] permits, and so the length fits.
fn header(kind: u8, len: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = kind;
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    header[4..].copy_from_slice(&len.to_le_bytes());
    header
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend(header(kind, payload.len()));
    frame.extend(payload);
    frame
}

fn json(kind: u8, value: &impl Serialize) -> Vec<u8> {
    // Of numbers and a string; none of them can fail.
    let payload = serde_json::to_vec(value).unwrap_or_default();
    frame(kind, &payload)
}

fn failure(kind: u8, failure: &Failure) -> Vec<u8> {
    let mut end = failure.reason.len().min(MAX_REASON);
    while !failure.reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = failure.reason.get(..end).unwrap_or_default().to_owned();
    let number = failure.number;
    json(kind, &Failure { number, reason })
}

fn parse<T: DeserializeOwned>(kind: u8, payload: &[u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(payload).map_err(|source| ProtocolError::Json { kind, source })
}

impl Message for Order {
    fn lengths(kind: u8) -> Option<Lengths> {
        match kind {
            TAKE | KEPT | LOST => Some(Lengths::Json),
            FROZEN => Some(Lengths::Empty),
            _ => None,
        }
    }

    fn decode(kind: u8, payload: Vec<u8>) -> Result<Self, ProtocolError> {
        match kind {
            TAKE => Ok(Self::Take(parse(kind, &payload)?)),
            FROZEN => Ok(Self::Frozen),
            KEPT => Ok(Self::Kept(parse(kind, &payload)?)),
            LOST => Ok(Self::Lost(parse(kind, &payload)?)),
            found => Err(ProtocolError::Kind { found }),
        }
    }

    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Take(take) => json(TAKE, take),
            Self::Frozen => frame(FROZEN, &[]),
            Self::Kept(kept) => json(KEPT, kept),
            Self::Lost(lost) => failure(LOST, lost),
        }
    }

    fn into_buffer(self) -> Vec<u8> {
        Vec::new()
    }
}

impl Message for Report {
    fn lengths(kind: u8) -> Option<Lengths> {
        match kind {
            MEMORY | END | FAILED => Some(Lengths::Json),
            FREEZE => Some(Lengths::Empty),
            STATE => Some(Lengths::Data),
            PAGES => Some(Lengths::Pages),
            _ => None,
        }
    }

    fn decode(kind: u8, payload: Vec<u8>) -> Result<Self, ProtocolError> {
        match kind {
            MEMORY => Ok(Self::Memory(parse(kind, &payload)?)),
            FREEZE => Ok(Self::Freeze),
            STATE => {
                let part = StatePart { payload };
                let (total, len) = (part.total(), part.bytes().len());
                if total > MAX_STATE || total < len as u64 {
                    return Err(ProtocolError::State { total, part: len });
                }
                Ok(Self::State(part))
            }
            PAGES => {
                let pages = Pages { payload };
                let offset = pages.offset();
                if !offset.is_multiple_of(PAGE as u64) || offset >= 1 << 63 {
                    return Err(ProtocolError::Place { offset });
                }
                Ok(Self::Pages(pages))
            }
            END => Ok(Self::End(parse(kind, &payload)?)),
            FAILED => Ok(Self::Failed(parse(kind, &payload)?)),
            found => Err(ProtocolError::Kind { found }),
        }
    }

    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Memory(memory) => json(MEMORY, memory),
            Self::Freeze => frame(FREEZE, &[]),
            Self::State(part) => frame(STATE, &part.payload),
            Self::Pages(pages) => frame(PAGES, &pages.payload),
            Self::End(end) => json(END, end),
            Self::Failed(failed) => failure(FAILED, failed),
        }
    }

    fn into_buffer(self) -> Vec<u8> {
        match self {
            Self::State(StatePart { payload }) | Self::Pages(Pages { payload }) => payload,
            Self::Memory(_) | Self::Freeze | Self::End(_) | Self::Failed(_) => Vec::new(),
        }
    }
}

/// The beginning of a frame of pages: `len` bytes of them follow, whole pages and [`MAX_DATA`] at most, from `offset` on.
pub fn pages_header(offset: u64, len: usize) -> [u8; HEADER + NUMBER] {
    debug_assert!(Lengths::Pages.permit(NUMBER + len), "{len} bytes");
    data_header(PAGES, offset, len)
}

fn data_header(kind: u8, number: u64, len: usize) -> [u8; HEADER + NUMBER] {
    let mut bytes = [0; HEADER + NUMBER];
    bytes[..HEADER].copy_from_slice(&header(kind, NUMBER + len));
    bytes[HEADER..].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The frames that say `state`, which is not longer than [`MAX_STATE`], one after the other.
pub fn encode_state(state: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let total = state.len() as u64;
    state.chunks(MAX_DATA).map(move |part| {
        let mut frame = Vec::with_capacity(HEADER + NUMBER + part.len());
        frame.extend(data_header(STATE, total, part.len()));
        frame.extend(part);
        frame
    })
}

/// Puts frames together as their bytes come.
#[derive(Debug)]
pub struct Decoder<M> {
    header: [u8; HEADER],
    /// Of the header.
    got: usize,
    payload: Vec<u8>,
    /// Of the payload.
    filled: usize,
    _messages: PhantomData<fn() -> M>,
}

impl<M> Default for Decoder<M> {
    fn default() -> Self {
        Self {
            header: [0; HEADER],
            got: 0,
            payload: Vec::new(),
            filled: 0,
            _messages: PhantomData,
        }
    }
}

impl<M: Message> Decoder<M> {
    /// Between two frames.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next message of `source`, or `None` where that ends between two frames. It reads no further than the message.
    ///
    /// An error of `source` leaves the decoder as it is: of one that does not block, call again when there is more to read.
    ///
    /// # Errors
    /// What came is not a message of this side's, or `source` has failed.
    pub fn receive(&mut self, source: &mut impl Read) -> Result<Option<M>, ProtocolError> {
        while self.got < HEADER {
            let place = self.header.get_mut(self.got..).unwrap_or_default();
            match read(source, place)? {
                0 if self.got == 0 => return Ok(None),
                0 => return Err(self.cut(HEADER - self.got)),
                count => self.got += count,
            }
            if self.got == HEADER {
                let len = self.check()?;
                self.payload.resize(len, 0);
                self.filled = 0;
            }
        }
        while self.filled < self.payload.len() {
            let missing = self.payload.len() - self.filled;
            let place = self.payload.get_mut(self.filled..).unwrap_or_default();
            match read(source, place)? {
                0 => return Err(self.cut(missing)),
                count => self.filled += count,
            }
        }
        self.got = 0;
        let payload = std::mem::take(&mut self.payload);
        M::decode(self.header[0], payload).map(Some)
    }

    /// Takes back the buffer of a message that is done with, for one of the next.
    pub fn recycle(&mut self, message: M) {
        if self.got == 0 {
            self.payload = message.into_buffer();
        }
    }

    /// The length that the header says.
    fn check(&self) -> Result<usize, ProtocolError> {
        let [kind, padding @ .., a, b, c, d] = self.header;
        if padding != [0; 3] {
            let found = padding;
            return Err(ProtocolError::Padding { kind, found });
        }
        let found = u32::from_le_bytes([a, b, c, d]);
        let lengths = M::lengths(kind).ok_or(ProtocolError::Kind { found: kind })?;
        match usize::try_from(found) {
            Ok(len) if lengths.permit(len) => Ok(len),
            _ => Err(ProtocolError::Length {
                kind,
                found,
                expected: lengths.words(),
            }),
        }
    }

    fn cut(&self, missing: usize) -> ProtocolError {
        ProtocolError::Cut { missing }
    }
}

fn read(source: &mut impl Read, place: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(place) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A source that lies about its buffer is of no use.
            Ok(count) if count > place.len() => return Err(io::ErrorKind::InvalidData.into()),
            result => return result,
        }
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
