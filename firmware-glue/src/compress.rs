//! The compressions of CBFS files and payload segments, as coreboot unpacks them.
//!
//! What is compressed here is unpacked again and compared before anyone gets it: a compressor that fails must not end as
//! an empty kernel in flash.

use std::fmt;
use std::io::{self, Read as _, Write as _};

use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use lzma_rust2::{LzmaOptions, LzmaReader, LzmaWriter};
use thiserror::Error;

/// Largest unpacked size in bytes that is believed: no flash holds what unpacks to more, and a damaged header may say 4 GiB.
pub const MAX_UNPACKED: usize = 256 << 20;

/// Property byte, size of the dictionary, unpacked size.
const LZMA_HEADER: usize = 1 + 4 + 8;
/// zstd's strongest without a window that would need more memory than coreboot has.
const ZSTD_LEVEL: i32 = 19;

/// A compression that coreboot knows, by its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// As it is.
    #[default]
    None,
    /// LZMA with its 13-byte "alone" header.
    Lzma,
    /// An LZ4 frame of independent blocks.
    Lz4,
    /// Zstandard; coreboot since December 2025, if it was built with it.
    Zstd,
}

impl Method {
    /// coreboot's number.
    pub fn number(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Lzma => 1,
            Self::Lz4 => 2,
            Self::Zstd => 3,
        }
    }

    /// By coreboot's number.
    pub fn of_number(number: u32) -> Result<Self, CompressError> {
        [Self::None, Self::Lzma, Self::Lz4, Self::Zstd]
            .into_iter()
            .find(|method| method.number() == number)
            .ok_or(CompressError::Unknown { number })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Lzma => "LZMA",
            Self::Lz4 => "LZ4",
            Self::Zstd => "zstd",
        })
    }
}

/// Why something cannot be compressed or unpacked.
#[derive(Debug, Error)]
pub enum CompressError {
    /// A number that coreboot has not given out.
    #[error("Compression {number} is not known; 0 none, 1 LZMA, 2 LZ4 and 3 zstd are")]
    Unknown {
        /// The number.
        number: u32,
    },
    /// The compressor failed, or what it made does not unpack to what went in.
    #[error("Compressing {len} bytes by {method} failed; nothing was written")]
    Compress {
        /// The compression.
        method: Method,
        /// Bytes to compress.
        len: usize,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The data are damaged.
    #[error(
        "{len} bytes cannot be unpacked by {method}: they are damaged or of another compression"
    )]
    Unpack {
        /// The compression.
        method: Method,
        /// Bytes to unpack.
        len: usize,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The data unpack to another size than the header says.
    #[error("{method} data unpack to {actual} bytes, their header says {said}")]
    Size {
        /// The compression.
        method: Method,
        /// Bytes that came out; at most one more than `said`.
        actual: usize,
        /// Bytes that should have.
        said: usize,
    },
    /// The header says a size that cannot be.
    #[error(
        "The unpacked size is said to be {said} bytes, more than the {MAX_UNPACKED} that are believed"
    )]
    TooLarge {
        /// Bytes.
        said: usize,
    },
}

/// `data`, compressed. It has been unpacked again and was the same; it may be longer than `data`.
pub fn compress(method: Method, data: &[u8]) -> Result<Vec<u8>, CompressError> {
    let failed = |source| CompressError::Compress {
        method,
        len: data.len(),
        source,
    };
    let packed = match method {
        Method::None => return Ok(data.to_vec()),
        Method::Lzma => lzma(data),
        Method::Lz4 => lz4(data),
        Method::Zstd => zstd::bulk::compress(data, ZSTD_LEVEL),
    }
    .map_err(failed)?;
    let same = unpack(method, &packed, data.len()).is_ok_and(|unpacked| unpacked == data);
    if same {
        Ok(packed)
    } else {
        Err(failed(io::Error::other(
            "What came out does not unpack to what went in",
        )))
    }
}

/// What `data` unpack to: exactly `size` bytes.
pub fn unpack(method: Method, data: &[u8], size: usize) -> Result<Vec<u8>, CompressError> {
    if size > MAX_UNPACKED {
        return Err(CompressError::TooLarge { said: size });
    }
    let failed = |source| CompressError::Unpack {
        method,
        len: data.len(),
        source,
    };
    // One byte more than there should be is enough to know; a file that unpacks to gigabytes is not unpacked.
    let limit = size as u64 + 1;
    let mut out = Vec::new();
    match method {
        Method::None => out.extend_from_slice(data.get(..size + 1).unwrap_or(data)),
        Method::Lzma => {
            unlzma(data, size, &mut out).map_err(failed)?;
        }
        Method::Lz4 => {
            let mut frame = FrameDecoder::new(data).take(limit);
            frame.read_to_end(&mut out).map_err(failed)?;
        }
        Method::Zstd => {
            let frame = zstd::stream::read::Decoder::new(data).map_err(failed)?;
            let frame = frame.single_frame();
            frame.take(limit).read_to_end(&mut out).map_err(failed)?;
        }
    }
    if out.len() == size {
        Ok(out)
    } else {
        Err(CompressError::Size {
            method,
            actual: out.len(),
            said: size,
        })
    }
}

fn lzma(data: &[u8]) -> io::Result<Vec<u8>> {
    // coreboot has room for the tables of lc + lp <= 3 only, which are the defaults.
    let mut options = LzmaOptions::with_preset(9);
    let dictionary = data.len().next_power_of_two().clamp(4096, 64 << 20);
    options.dict_size = u32::try_from(dictionary).unwrap_or(options.dict_size);
    let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, Some(data.len() as u64))?;
    writer.write_all(data)?;
    writer.finish()
}

fn unlzma(data: &[u8], size: usize, out: &mut Vec<u8>) -> io::Result<()> {
    let (Some(&properties), Some(said), Some(stream)) = (
        data.first(),
        crate::bytes::le64(data, 5),
        data.get(LZMA_HEADER..),
    ) else {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    };
    if said != size as u64 {
        return Err(io::Error::other(format!(
            "The LZMA header says {said} bytes, {size} are expected"
        )));
    }
    if size == 0 {
        return Ok(());
    }
    // Nothing can repeat from farther back than there are bytes, whatever the header says of its dictionary.
    let dictionary = u32::try_from(size.max(4096)).unwrap_or(u32::MAX);
    LzmaReader::new_with_props(stream, said, properties, dictionary, None)?
        .take(said)
        .read_to_end(out)?;
    Ok(())
}

fn lz4(data: &[u8]) -> io::Result<Vec<u8>> {
    // coreboot takes independent blocks only.
    let frame = FrameInfo::new()
        .block_mode(BlockMode::Independent)
        .block_size(BlockSize::Max4MB)
        .content_size(Some(data.len() as u64));
    let mut encoder = FrameEncoder::with_frame_info(frame, Vec::new());
    encoder.write_all(data)?;
    encoder.finish().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Method; 4] = [Method::None, Method::Lzma, Method::Lz4, Method::Zstd];

    #[test]
    fn each_method_makes_text_smaller_and_gives_it_back() {
        let text = b"a line of a log that is much like the next\n".repeat(300);
        for method in ALL {
            let packed = compress(method, &text).unwrap();
            assert!(
                method == Method::None || packed.len() < text.len() / 10,
                "{method}"
            );
            assert_eq!(unpack(method, &packed, text.len()).unwrap(), text);
        }
    }

    #[test]
    fn nothing_at_all_survives() {
        for method in ALL {
            let packed = compress(method, b"").unwrap();
            assert_eq!(unpack(method, &packed, 0).unwrap(), b"", "{method}");
        }
    }

    #[test]
    fn another_size_than_said_is_an_error() {
        for method in ALL {
            let packed = compress(method, &[7; 1000]).unwrap();
            for size in [0, 999, 1001] {
                assert!(unpack(method, &packed, size).is_err(), "{method} {size}");
            }
            let error = unpack(method, &packed, MAX_UNPACKED + 1).unwrap_err();
            assert!(matches!(error, CompressError::TooLarge { .. }));
        }
    }

    #[test]
    fn numbers_are_those_of_coreboot() {
        for method in ALL {
            assert_eq!(Method::of_number(method.number()).unwrap(), method);
        }
        assert!(Method::of_number(4).unwrap_err().to_string().contains('4'));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn any_bytes_survive(data in prop::collection::vec(0u8..4, 0..3000)) {
            for method in ALL {
                let packed = compress(method, &data).unwrap();
                prop_assert_eq!(&unpack(method, &packed, data.len()).unwrap(), &data);
            }
        }

        #[test]
        fn damaged_data_never_panic(
            changes in prop::collection::vec((0usize..200, any::<u8>()), 1..6),
            cut in 0usize..200,
        ) {
            let text: Vec<u8> = (0..600u32).map(|i| u8::try_from(i * i % 97).unwrap()).collect();
            for method in ALL {
                let mut packed = compress(method, &text).unwrap();
                for (at, value) in &changes {
                    if let Some(byte) = packed.get_mut(*at) {
                        *byte = *value;
                    }
                }
                let _ = unpack(method, &packed, text.len());
                let _ = unpack(method, &packed[..cut.min(packed.len())], text.len());
            }
        }
    }
}
