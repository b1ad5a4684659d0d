//! Adding and removing files of a CBFS that exists: everything else stays where it is, byte for byte.

use std::ops::Range;

use thiserror::Error;

use super::master::POINTER_SIZE;
use super::new_file::{NewFile, Place};
use super::writer::{ERASED, FREE_METADATA, WriteError, free_space};
use super::{ALIGNMENT, Cbfs, CbfsError, Kind, MAX_METADATA};
use crate::bytes::align_up;

/// Why a CBFS cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EditError {
    /// Nothing in the region begins like a file.
    #[error(
        "The region ({len:#x} bytes) is no CBFS: it does not begin with a file or with free space"
    )]
    NoCbfs {
        /// Bytes in the region.
        len: usize,
    },
    /// A file header is damaged, so what is free cannot be known.
    #[error("The region cannot be changed safely, a file in it is damaged")]
    Damaged(#[source] CbfsError),
    /// The file cannot be written at all.
    #[error(transparent)]
    File(#[from] WriteError),
    /// There is a file of that name.
    #[error("There is a file {name} already")]
    Exists {
        /// The name.
        name: String,
    },
    /// No file of that name.
    #[error("There is no file {name}")]
    Missing {
        /// The name.
        name: String,
    },
    /// Others find CBFS by it.
    #[error("{name} is what old programs find CBFS by, and stays")]
    Needed {
        /// The name.
        name: String,
    },
    /// No free piece is large enough.
    #[error(
        "{name} needs {needed:#x} bytes in one piece; the largest that is free has {largest:#x} of {free:#x} in all"
    )]
    Full {
        /// The name.
        name: String,
        /// Bytes that the file needs, with its header.
        needed: usize,
        /// Bytes in the largest free piece.
        largest: usize,
        /// All free bytes.
        free: usize,
    },
    /// The place that the file must have is not free, or cannot have a header before it.
    #[error("{name} must lie at {place:#x}, which is not free or leaves no room for its header")]
    PlaceTaken {
        /// The name.
        name: String,
        /// Offset of the data in the region.
        place: u32,
    },
    /// An alignment must be a power of two.
    #[error("{name} cannot be aligned to {alignment}, which is no power of two")]
    Alignment {
        /// The name.
        name: String,
        /// The alignment in bytes.
        alignment: u32,
    },
}

/// A region of flash whose CBFS is changed in place.
#[derive(Debug)]
pub struct Editor<'a> {
    region: &'a mut [u8],
    /// Bytes before the end that are not ours: the pointer to the master header.
    reserved: usize,
}

impl<'a> Editor<'a> {
    /// The CBFS in `region`. Every header in it must be sound.
    pub fn new(region: &'a mut [u8]) -> Result<Self, EditError> {
        let cbfs = Cbfs::new(region);
        let first = cbfs.walk().next();
        if !matches!(first, Some(Ok(file)) if file.start() == 0) {
            if let Some(Err(error)) = first {
                return Err(EditError::Damaged(error));
            }
            return Err(EditError::NoCbfs { len: region.len() });
        }
        for file in cbfs.walk() {
            file.map_err(EditError::Damaged)?;
        }
        // Old tools write the pointer to the master header into the end of what is free.
        let last = region.last_chunk::<POINTER_SIZE>();
        let reserved = match last {
            Some(bytes) if *bytes != [ERASED; POINTER_SIZE] => POINTER_SIZE,
            _ => 0,
        };
        Ok(Self { region, reserved })
    }

    /// Makes all of `region` one piece of free space.
    pub fn format(region: &'a mut [u8]) -> Self {
        region.copy_from_slice(&free_space(region.len()));
        Self {
            region,
            reserved: 0,
        }
    }

    /// The files as they are now.
    pub fn cbfs(&self) -> Cbfs<'_> {
        Cbfs::new(self.region)
    }

    /// The free pieces, with neighbours as one.
    pub fn free(&self) -> Vec<Range<usize>> {
        let mut pieces: Vec<Range<usize>> = Vec::new();
        let mut files = self.cbfs().walk().filter_map(Result::ok).peekable();
        while let Some(file) = files.next() {
            if !file.kind().is_free() {
                continue;
            }
            let end = self.end_of(file.data_range().end, files.peek().map(super::File::start));
            match pieces.last_mut().filter(|last| last.end == file.start()) {
                Some(last) => last.end = end,
                None => pieces.push(file.start()..end),
            }
        }
        pieces
    }

    /// Where the room of something ends whose last byte is before `end`: at the file that begins at the next boundary, or
    /// there. What lies between files without belonging to one stays as it is.
    fn end_of(&self, end: usize, next: Option<usize>) -> usize {
        match (align_up(end, ALIGNMENT), next) {
            (Some(aligned), Some(next)) if aligned == next => next,
            _ => end.min(self.region.len() - self.reserved),
        }
    }

    /// Removes the first file called `name`; its room becomes free, as one with free space beside it. Returns where it was.
    pub fn remove(&mut self, name: &str) -> Result<Range<usize>, EditError> {
        let missing = || EditError::Missing {
            name: name.to_owned(),
        };
        let mut files = self.cbfs().walk().filter_map(Result::ok).peekable();
        let (mut before, mut found) = (None, None);
        while let Some(file) = files.next() {
            let next = files.peek();
            let range =
                file.start()..self.end_of(file.data_range().end, next.map(super::File::start));
            if !file.kind().is_free() && file.name() == name {
                if file.kind() == Kind::MASTER_HEADER {
                    return Err(EditError::Needed {
                        name: name.to_owned(),
                    });
                }
                found = Some(range);
                break;
            }
            before = Some((range, file.kind().is_free()));
        }
        let range = found.ok_or_else(missing)?;
        // All free files right before and right after become one with it.
        let mut whole = range.clone();
        if let Some((piece, true)) = before
            && piece.end == range.start
        {
            let free = self.free();
            whole.start = free
                .iter()
                .find(|free| free.end == range.start)
                .map_or(piece.start, |free| free.start);
        }
        if let Some(after) = self.free().iter().find(|free| free.start == range.end) {
            whole.end = after.end;
        }
        self.fill(whole);
        Ok(range)
    }

    /// Adds `file` where it must be, or in the first free piece that takes it. Returns where its data are.
    pub fn add(&mut self, file: &NewFile) -> Result<Range<usize>, EditError> {
        file.check()?;
        let name = || file.name().to_owned();
        if self.cbfs().find(file.name()).is_ok() {
            return Err(EditError::Exists { name: name() });
        }
        if let Place::Aligned(alignment) = file.place()
            && !alignment.is_power_of_two()
        {
            return Err(EditError::Alignment {
                name: name(),
                alignment,
            });
        }
        let free = self.free();
        let fit = free
            .iter()
            .find_map(|piece| Some((piece.clone(), Fit::of(file, piece)?)));
        let Some((piece, fit)) = fit else {
            return Err(match file.place() {
                Place::At(place) => EditError::PlaceTaken {
                    name: name(),
                    place,
                },
                _ => EditError::Full {
                    name: name(),
                    needed: file.metadata_size() + file.len(),
                    largest: free.iter().map(Range::len).max().unwrap_or(0),
                    free: free.iter().map(Range::len).sum(),
                },
            });
        };
        let data = fit.data_at..fit.data_at + file.len();
        let after = align_up(data.end, ALIGNMENT).map_or(piece.end, |after| after.min(piece.end));
        if fit.header_at > piece.start {
            self.fill(piece.start..fit.header_at);
        }
        let metadata = file.metadata(fit.data_at - fit.header_at);
        self.region[fit.header_at..fit.data_at].copy_from_slice(&metadata);
        self.region[data.clone()].copy_from_slice(file.data());
        self.region[data.end..after].fill(ERASED);
        self.fill(after..piece.end);
        Ok(data)
    }

    fn fill(&mut self, range: Range<usize>) {
        let space = free_space(range.len());
        self.region[range].copy_from_slice(&space);
    }
}

/// A place for a file in a free piece.
#[derive(Clone, Copy, Debug)]
struct Fit {
    header_at: usize,
    data_at: usize,
}

impl Fit {
    fn of(file: &NewFile, piece: &Range<usize>) -> Option<Self> {
        let metadata = file.metadata_size();
        let earliest = piece.start.checked_add(metadata)?;
        let data_at = match file.place() {
            Place::Anywhere => earliest,
            Place::Aligned(to) => align_up(earliest, to as usize)?,
            Place::At(at) => at as usize,
        };
        // A header begins at a boundary; one at a fixed place gets longer by what is left.
        let header_at = match file.place() {
            Place::Anywhere => piece.start,
            _ => data_at.checked_sub(metadata)? & !(ALIGNMENT - 1),
        };
        let end = data_at.checked_add(file.len())?;
        let gap = header_at.checked_sub(piece.start)?;
        (end <= piece.end
            && data_at - header_at <= MAX_METADATA
            && (gap == 0 || gap >= FREE_METADATA))
            .then_some(Self { header_at, data_at })
    }
}

#[cfg(test)]
mod tests;
