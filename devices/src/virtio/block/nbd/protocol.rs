//! What client and server say to each other: the Network Block Device protocol, fixed newstyle negotiation and simple
//! replies. All numbers are big-endian. Lengths that a peer says are checked here, before anybody makes room for them.

use thiserror::Error;

/// What a server says first: `NBDMAGIC`.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// What follows it, and what every option begins with: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Flag of both sides: fixed newstyle negotiation.
pub const FIXED_NEWSTYLE: u16 = 1;
/// Flag of both sides: no 124 zeroes after `NBD_OPT_EXPORT_NAME`.
pub const NO_ZEROES: u16 = 1 << 1;

/// `NBD_OPT_EXPORT_NAME`: the old way to choose an export.
pub const OPTION_EXPORT_NAME: u32 = 1;
/// `NBD_OPT_ABORT`: the client goes.
pub const OPTION_ABORT: u32 = 2;
/// `NBD_OPT_LIST`: which exports are there?
pub const OPTION_LIST: u32 = 3;
/// `NBD_OPT_INFO`: what is this export?
pub const OPTION_INFO: u32 = 6;
/// `NBD_OPT_GO`: the same, and use it.
pub const OPTION_GO: u32 = 7;

/// `NBD_REP_ACK`: that was all.
pub const ANSWER_ACK: u32 = 1;
/// `NBD_REP_SERVER`: an export.
pub const ANSWER_SERVER: u32 = 2;
/// `NBD_REP_INFO`: something about an export.
pub const ANSWER_INFO: u32 = 3;
/// Answers from here on are errors.
pub const ANSWER_ERROR: u32 = 1 << 31;
/// `NBD_REP_ERR_UNSUP`: no such option.
pub const ANSWER_UNSUPPORTED: u32 = ANSWER_ERROR | 1;
/// `NBD_REP_ERR_INVALID`: the option's data is wrong.
pub const ANSWER_INVALID: u32 = ANSWER_ERROR | 3;
/// `NBD_REP_ERR_UNKNOWN`: no such export.
pub const ANSWER_UNKNOWN: u32 = ANSWER_ERROR | 6;
/// `NBD_REP_ERR_TOO_BIG`: the option's data is too long.
pub const ANSWER_TOO_BIG: u32 = ANSWER_ERROR | 9;

/// `NBD_INFO_EXPORT`: length and flags.
pub const INFO_EXPORT: u16 = 0;
/// `NBD_INFO_BLOCK_SIZE`: what lengths are good.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// `NBD_FLAG_HAS_FLAGS`.
pub const HAS_FLAGS: u16 = 1;
/// `NBD_FLAG_READ_ONLY`.
pub const READ_ONLY: u16 = 1 << 1;
/// `NBD_FLAG_SEND_FLUSH`.
pub const SEND_FLUSH: u16 = 1 << 2;
/// `NBD_FLAG_SEND_FUA`.
pub const SEND_FUA: u16 = 1 << 3;
/// `NBD_FLAG_SEND_TRIM`.
pub const SEND_TRIM: u16 = 1 << 5;
/// `NBD_FLAG_SEND_WRITE_ZEROES`.
pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
/// `NBD_FLAG_CAN_MULTI_CONN`: a flush on one connection is one for all of them.
pub const CAN_MULTI_CONN: u16 = 1 << 8;

/// `NBD_CMD_READ`.
pub const READ: u16 = 0;
/// `NBD_CMD_WRITE`.
pub const WRITE: u16 = 1;
/// `NBD_CMD_DISC`: the client goes; not answered.
pub const DISCONNECT: u16 = 2;
/// `NBD_CMD_FLUSH`.
pub const FLUSH: u16 = 3;
/// `NBD_CMD_TRIM`.
pub const TRIM: u16 = 4;
/// `NBD_CMD_WRITE_ZEROES`.
pub const WRITE_ZEROES: u16 = 6;

/// `NBD_CMD_FLAG_FUA`: durable before it is answered.
pub const FUA: u16 = 1;
/// `NBD_CMD_FLAG_NO_HOLE`: zeroes that keep their place.
pub const NO_HOLE: u16 = 1 << 1;

/// `NBD_EPERM`: the export is read-only.
pub const EPERM: u32 = 1;
/// `NBD_EIO`.
pub const EIO: u32 = 5;
/// `NBD_EINVAL`.
pub const EINVAL: u32 = 22;
/// `NBD_ENOSPC`: also for what lies beyond the end.
pub const ENOSPC: u32 = 28;

/// Most data bytes of a request where nothing else was agreed on, and the most anybody here takes.
pub const MAX_DATA: u32 = 32 << 20;
/// Longest name of an export in bytes.
pub const MAX_NAME: usize = 256;
/// Longest data of an option or of an answer to one: a name, a description, and what goes with them.
pub const MAX_OPTION: u32 = 8 << 10;

/// Bytes of what a server says first: magic, option magic, flags.
pub const GREETING_LEN: usize = 18;
/// Bytes of an option before its data.
pub const OPTION_LEN: usize = 16;
/// Bytes of an answer to an option before its data.
pub const ANSWER_LEN: usize = 20;
/// Bytes of a request before its data.
pub const REQUEST_LEN: usize = 28;
/// Bytes of a reply before its data.
pub const REPLY_LEN: usize = 16;

/// What a peer says that breaks the protocol.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// Something else than the protocol.
    #[error("The peer says {found:#x} where the protocol has {expected:#x} ({what})")]
    Magic {
        /// What it should begin.
        what: &'static str,
        /// What was said.
        found: u64,
        /// What it must be.
        expected: u64,
    },
    /// More than anybody makes room for.
    #[error("The peer announces {len} bytes of {what}, permitted are {max}")]
    TooLong {
        /// What of.
        what: &'static str,
        /// How many.
        len: u32,
        /// The most.
        max: u32,
    },
    /// A message that is not as long as what it says it has.
    #[error("The peer's {what} is cut short")]
    Short {
        /// What.
        what: &'static str,
    },
    /// A name that is no text.
    #[error("The peer's name of an export is not UTF-8")]
    Name,
}

/// Takes numbers off the front of a message.
struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(what: &'static str, rest: &'a [u8]) -> Self {
        Self { what, rest }
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], ProtocolError> {
        let (bytes, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(ProtocolError::Short { what: self.what })?;
        self.rest = rest;
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let mut number = [0; N];
        number.copy_from_slice(self.bytes(N)?);
        Ok(number)
    }

    fn u16(&mut self) -> Result<u16, ProtocolError> {
        self.number().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.number().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.number().map(u64::from_be_bytes)
    }

    fn magic(&mut self, expected: u64) -> Result<(), ProtocolError> {
        match self.u64()? {
            found if found == expected => Ok(()),
            found => Err(self.wrong(found, expected)),
        }
    }

    fn short_magic(&mut self, expected: u32) -> Result<(), ProtocolError> {
        match self.u32()? {
            found if found == expected => Ok(()),
            found => Err(self.wrong(found.into(), expected.into())),
        }
    }

    fn wrong(&self, found: u64, expected: u64) -> ProtocolError {
        let what = self.what;
        ProtocolError::Magic {
            what,
            found,
            expected,
        }
    }

    /// A length of what follows the message.
    fn len(&mut self) -> Result<u32, ProtocolError> {
        let (len, max) = (self.u32()?, MAX_OPTION);
        let what = self.what;
        if len > max {
            return Err(ProtocolError::TooLong { what, len, max });
        }
        Ok(len)
    }

    fn name(&mut self) -> Result<&'a str, ProtocolError> {
        let (len, max) = (self.u32()?, MAX_NAME);
        if len as usize > max {
            return Err(ProtocolError::TooLong {
                what: "a name",
                len,
                max: u32::try_from(max).unwrap_or(u32::MAX),
            });
        }
        std::str::from_utf8(self.bytes(len as usize)?).map_err(|_| ProtocolError::Name)
    }
}

/// What a server says first, with its handshake `flags`.
pub fn greeting(flags: u16) -> Vec<u8> {
    let mut bytes = MAGIC.to_be_bytes().to_vec();
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes
}

/// The handshake flags in what a server says first.
///
/// # Errors
/// It is no greeting.
pub fn read_greeting(bytes: &[u8]) -> Result<u16, ProtocolError> {
    let mut reader = Reader::new("the greeting", bytes);
    reader.magic(MAGIC)?;
    reader.magic(OPTION_MAGIC)?;
    reader.u16()
}

/// An option with its `data`.
pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The option that `bytes` begin, and how long its data is: that may be more than anybody should make room for.
///
/// # Errors
/// They begin none.
pub fn read_option(bytes: &[u8; OPTION_LEN]) -> Result<(u32, u32), ProtocolError> {
    let mut reader = Reader::new("an option", bytes);
    reader.magic(OPTION_MAGIC)?;
    Ok((reader.u32()?, reader.u32()?))
}

/// The answer `kind` to `option` with its `data`.
pub fn answer(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The answer to an option that `bytes` begin: the option, the kind of answer, and how long its data is.
///
/// # Errors
/// They begin none, or one that is too long.
pub fn read_answer(bytes: &[u8; ANSWER_LEN]) -> Result<(u32, u32, u32), ProtocolError> {
    let mut reader = Reader::new("an answer", bytes);
    reader.magic(OPTION_REPLY_MAGIC)?;
    Ok((reader.u32()?, reader.u32()?, reader.len()?))
}

/// Data of `NBD_OPT_GO` and `NBD_OPT_INFO`: asks for the export `name`, and how long its requests may be.
pub fn ask_for(name: &str) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend(1_u16.to_be_bytes());
    bytes.extend(INFO_BLOCK_SIZE.to_be_bytes());
    bytes
}

/// The name of the export in the data of `NBD_OPT_GO` and `NBD_OPT_INFO`, and whether lengths are asked for.
///
/// # Errors
/// The data is not as it should be.
pub fn read_ask_for(bytes: &[u8]) -> Result<(&str, bool), ProtocolError> {
    let mut reader = Reader::new("question for an export", bytes);
    let name = reader.name()?;
    let mut sizes = false;
    for _ in 0..reader.u16()? {
        sizes |= reader.u16()? == INFO_BLOCK_SIZE;
    }
    if !reader.rest.is_empty() {
        return Err(ProtocolError::Short { what: reader.what });
    }
    Ok((name, sizes))
}

/// `text` after its length.
pub fn text(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
        .to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// Something about an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Info {
    /// Its length in bytes, and its flags.
    Export {
        /// Bytes.
        len: u64,
        /// What it is and can do.
        flags: u16,
    },
    /// Which lengths and offsets are good, in bytes.
    BlockSize {
        /// Of which all must be multiples.
        min: u32,
        /// What is best.
        preferred: u32,
        /// The most data of one request.
        max: u32,
    },
    /// Something nobody has asked for.
    Other,
}

impl Info {
    /// The data of an `NBD_REP_INFO`.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Export { len, flags } => {
                let mut bytes = INFO_EXPORT.to_be_bytes().to_vec();
                bytes.extend(len.to_be_bytes());
                bytes.extend(flags.to_be_bytes());
                bytes
            }
            Self::BlockSize {
                min,
                preferred,
                max,
            } => {
                let mut bytes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
                for number in [min, preferred, max] {
                    bytes.extend(number.to_be_bytes());
                }
                bytes
            }
            Self::Other => u16::MAX.to_be_bytes().to_vec(),
        }
    }

    /// Reads the data of an `NBD_REP_INFO`.
    ///
    /// # Errors
    /// It is too short.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new("answer about an export", bytes);
        Ok(match reader.u16()? {
            INFO_EXPORT => Self::Export {
                len: reader.u64()?,
                flags: reader.u16()?,
            },
            INFO_BLOCK_SIZE => Self::BlockSize {
                min: reader.u32()?,
                preferred: reader.u32()?,
                max: reader.u32()?,
            },
            _ => Self::Other,
        })
    }
}

/// A request, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// [`FUA`], [`NO_HOLE`].
    pub flags: u16,
    /// [`READ`], [`WRITE`] …
    pub command: u16,
    /// By which its reply is known.
    pub handle: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub len: u32,
}

impl Request {
    /// As it is sent.
    pub fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut bytes = [0; REQUEST_LEN];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.handle.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// As it was received. Its numbers say anything.
    ///
    /// # Errors
    /// It is no request.
    pub fn decode(bytes: &[u8; REQUEST_LEN]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new("a request", bytes);
        reader.short_magic(REQUEST_MAGIC)?;
        Ok(Self {
            flags: reader.u16()?,
            command: reader.u16()?,
            handle: reader.u64()?,
            offset: reader.u64()?,
            len: reader.u32()?,
        })
    }
}

/// A simple reply, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// 0, or what went wrong: [`EIO`] …
    pub error: u32,
    /// The request's.
    pub handle: u64,
}

impl Reply {
    /// As it is sent.
    pub fn encode(&self) -> [u8; REPLY_LEN] {
        let mut bytes = [0; REPLY_LEN];
        bytes[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_be_bytes());
        bytes[8..].copy_from_slice(&self.handle.to_be_bytes());
        bytes
    }

    /// As it was received.
    ///
    /// # Errors
    /// It is no simple reply.
    pub fn decode(bytes: &[u8; REPLY_LEN]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new("a reply", bytes);
        reader.short_magic(REPLY_MAGIC)?;
        Ok(Self {
            error: reader.u32()?,
            handle: reader.u64()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            (flags, command) in any::<(u16, u16)>(),
            (handle, offset) in any::<(u64, u64)>(),
            (len, error) in any::<(u32, u32)>(),
            name in "\\PC{0,60}",
        ) {
            let request = Request { flags, command, handle, offset, len };
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
            let reply = Reply { error, handle };
            prop_assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
            for info in [
                Info::Export { len: offset, flags },
                Info::BlockSize { min: len, preferred: error, max: 3 },
            ] {
                prop_assert_eq!(Info::decode(&info.encode()), Ok(info));
            }
            let question = ask_for(&name);
            prop_assert_eq!(read_ask_for(&question), Ok((&*name, true)));
            prop_assert_eq!(read_greeting(&greeting(flags)), Ok(flags));
            let option = option(error, name.as_bytes());
            let (start, data) = option.split_first_chunk().unwrap();
            prop_assert_eq!(read_option(start), Ok((error, data.len().try_into().unwrap())));
            let answer = answer(error, len, name.as_bytes());
            let (start, data) = answer.split_first_chunk().unwrap();
            prop_assert_eq!(read_answer(start), Ok((error, len, data.len().try_into().unwrap())));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_greeting(&bytes);
            if let Ok((name, _)) = read_ask_for(&bytes) {
                prop_assert!(name.len() <= MAX_NAME);
            }
            let _ = Info::decode(&bytes);
            if let Some(start) = bytes.first_chunk() {
                let _ = Request::decode(start);
            }
        }
    }

    #[test]
    fn lengths_beyond_reason_are_refused() {
        let mut bytes = text("export");
        bytes[0] = 0x7f;
        let error = read_ask_for(&bytes).unwrap_err();
        assert!(
            matches!(error, ProtocolError::TooLong { max: 256, .. }),
            "{error}"
        );
        let answer = answer(OPTION_GO, ANSWER_INFO, &[]);
        let mut start: [u8; ANSWER_LEN] = answer.try_into().unwrap();
        start[16..].copy_from_slice(&(MAX_OPTION + 1).to_be_bytes());
        let error = read_answer(&start).unwrap_err();
        assert!(
            matches!(
                error,
                ProtocolError::TooLong {
                    max: MAX_OPTION,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn questions_with_more_or_less_than_they_say_are_refused() {
        let mut bytes = ask_for("x");
        bytes.push(0);
        assert!(read_ask_for(&bytes).is_err());
        bytes.truncate(bytes.len() - 2);
        assert!(read_ask_for(&bytes).is_err());
        let invalid = [[0, 0, 0, 1, 0xff].as_slice(), &[0, 0]].concat();
        assert_eq!(read_ask_for(&invalid), Err(ProtocolError::Name));
    }
}
