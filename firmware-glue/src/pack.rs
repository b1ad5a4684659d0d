//! Putting files into someone's image: what is replaced only when told, what it comes to, and what to cut when it does not
//! fit.

use std::fmt::Write as _;
use std::ops::Range;

use thiserror::Error;

use crate::cbfs::{EditError, Editor, NewFile};
use crate::hash::{Digest, sha256};
use crate::image::{Image, ImageError};
use crate::layout::{GUEST_PREFIX, PAYLOAD};
use crate::rom::{Part, human_size};

/// What may be replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replace {
    /// `fallback/payload`: what the board boots now.
    pub payload: bool,
    /// Any other file of the same name as one of ours.
    pub others: bool,
}

/// Why the files are not in the image.
#[derive(Debug, Error)]
pub enum PackError {
    /// The board has a payload.
    #[error("The image has a {PAYLOAD} ({}), which its board boots now: replace it (--replace-payload), or give ours another name (--name img/daruma: SeaBIOS lists what is below img/)", human_size(*.size))]
    PayloadExists {
        /// Its size in bytes.
        size: usize,
    },
    /// Another file of this name with other contents.
    #[error("The image has another file {name} ({}): replace it (--replace-files), or leave ours out", human_size(*.size))]
    Exists {
        /// The name.
        name: String,
        /// Size of the file in the image, in bytes.
        size: usize,
    },
    /// No room; lists what is there and says what to cut.
    #[error("{}", no_room_text(.full))]
    Full {
        /// All about it.
        full: Box<Full>,
    },
    /// The image cannot be changed.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// A region without enough room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Full {
    /// Its name.
    pub region: String,
    /// The file that did not fit.
    pub name: String,
    /// What it needs in one piece, in bytes.
    pub needed: usize,
    /// The largest free piece.
    pub largest: usize,
    /// Free bytes in all, before any of our files.
    pub free: usize,
    /// What is missing, at least.
    pub missing: usize,
    /// Files that would have been added.
    pub new: Vec<Part>,
    /// Files that are in the region and would stay.
    pub old: Vec<Part>,
    /// Guests' files without which all else fits: tried. Empty if that is not enough.
    pub leave_out: Vec<String>,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is new.
    Added,
    /// One of that name was there.
    Replaced,
    /// The same was there.
    Kept,
}

/// One file of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// What became of it.
    pub action: Action,
    /// Where its data lie in the image.
    pub data: Range<usize>,
    /// SHA-256 of the data as stored: what a measuring coreboot extends PCR 2 with.
    pub sha256: Digest,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Name of the region.
    pub region: String,
    /// All files, the largest first.
    pub changes: Vec<Change>,
    /// Whether a hash vouches for the files of the region, and was made anew.
    pub anchor: bool,
    /// What is still free in the region, in bytes.
    pub free: usize,
}

/// Puts `files` into the region, or leaves the image as it is.
pub fn pack(
    image: &mut Image,
    region: Option<&str>,
    mut files: Vec<NewFile>,
    replace: Replace,
) -> Result<Report, PackError> {
    let found = image.region(region)?.clone();
    let anchor = image.check_anchor().map_err(ImageError::Anchor)? && image.region(None)? == &found;
    // The largest first: the small ones find room in what is left.
    files.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.name().cmp(b.name())));
    let (changes, free) = image.edit(region, |editor| {
        let actions = make_room(editor, &files, replace, &found.name)?;
        let free = editor.free();
        let mut changes = Vec::new();
        for (file, action) in files.iter().zip(actions) {
            let data = match action {
                Action::Kept => editor
                    .cbfs()
                    .find(file.name())
                    .map(|file| file.data_range())
                    .unwrap_or_default(),
                _ => editor
                    .add(file)
                    .map_err(|error| no_room(error, editor, &files, &free, &found.name))?,
            };
            changes.push(Change {
                name: file.name().to_owned(),
                action,
                data: found.range.start + data.start..found.range.start + data.end,
                sha256: sha256(file.data()),
            });
        }
        Ok::<_, PackError>((changes, total(editor)))
    })?;
    Ok(Report {
        region: found.name,
        changes,
        anchor,
        free,
    })
}

/// Removes what is to be replaced; says what becomes of each file.
fn make_room(
    editor: &mut Editor<'_>,
    files: &[NewFile],
    replace: Replace,
    region: &str,
) -> Result<Vec<Action>, PackError> {
    let mut actions = Vec::new();
    for file in files {
        let name = file.name();
        let (kept, size) = match editor.cbfs().find(name) {
            Ok(old) => (
                old.kind() == file.kind() && old.data() == file.data(),
                old.data().len(),
            ),
            Err(_) => {
                actions.push(Action::Added);
                continue;
            }
        };
        if kept {
            actions.push(Action::Kept);
            continue;
        }
        match name {
            PAYLOAD if !replace.payload => return Err(PackError::PayloadExists { size }),
            PAYLOAD => {}
            _ if !replace.others => {
                let name = name.to_owned();
                return Err(PackError::Exists { name, size });
            }
            _ => {}
        }
        editor
            .remove(name)
            .map_err(|error| edit_error(error, region))?;
        actions.push(Action::Replaced);
    }
    Ok(actions)
}

fn edit_error(source: EditError, region: &str) -> PackError {
    PackError::Image(ImageError::Edit {
        region: region.to_owned(),
        source,
    })
}

fn total(editor: &Editor<'_>) -> usize {
    editor.free().iter().map(Range::len).sum()
}

fn no_room(
    error: EditError,
    editor: &Editor<'_>,
    files: &[NewFile],
    free: &[Range<usize>],
    region: &str,
) -> PackError {
    let EditError::Full {
        name,
        needed,
        largest,
        ..
    } = error
    else {
        return edit_error(error, region);
    };
    let is_new = |name: &str| files.iter().any(|file| file.name() == name);
    let old = editor
        .cbfs()
        .files()
        .filter_map(Result::ok)
        .filter(|file| !is_new(file.name()))
        .map(|file| Part {
            name: file.name().to_owned(),
            size: file.data().len(),
        })
        .collect();
    let new: Vec<Part> = files
        .iter()
        .map(|file| Part {
            name: file.name().to_owned(),
            size: file.len(),
        })
        .collect();
    let all: usize = files.iter().map(NewFile::room).sum();
    let leave_out = what_to_leave_out(files, free);
    let free = free.iter().map(Range::len).sum();
    PackError::Full {
        full: Box::new(Full {
            region: region.to_owned(),
            missing: all.saturating_sub(free).max(needed.saturating_sub(largest)),
            name,
            needed,
            largest,
            free,
            new,
            old,
            leave_out,
        }),
    }
}

fn no_room_text(full: &Full) -> String {
    let mut out = format!(
        "{} has no room for {}: it needs {} in one piece, and the largest free one has {}. {} are missing at least ({} were free). To go in (+), and in it:",
        full.region,
        full.name,
        human_size(full.needed),
        human_size(full.largest),
        human_size(full.missing),
        human_size(full.free),
    );
    let mut parts: Vec<(&Part, char)> = full.new.iter().map(|part| (part, '+')).collect();
    parts.extend(full.old.iter().map(|part| (part, ' ')));
    parts.sort_by(|(a, _), (b, _)| b.size.cmp(&a.size).then_with(|| a.name.cmp(&b.name)));
    for (part, mark) in &parts {
        // Writing to a string cannot fail.
        let _ = write!(out, "\n{mark} {:>12}  {}", human_size(part.size), part.name);
    }
    let others = replaceable(full);
    let _ = match (&full.leave_out[..], &others[..]) {
        ([], []) => write!(
            out,
            "\nLeaving out every guest is not enough: it takes a larger region, or a smaller payload"
        ),
        ([], others) => write!(
            out,
            "\nLeaving out every guest is not enough: take out of the image what its board can do without, such as {}",
            others.join(" and ")
        ),
        (names, _) => write!(
            out,
            "\nLeave out {} (--without NAME), and put it on a disk (disk:… in the machine's TOML)",
            names.join(" and ")
        ),
    };
    out
}

/// The smallest guest's file without which the others fit, or else the fewest of the largest.
fn what_to_leave_out(files: &[NewFile], free: &[Range<usize>]) -> Vec<String> {
    // Sorted by size, the largest first.
    let guests: Vec<&str> = files
        .iter()
        .map(NewFile::name)
        .filter(|name| name.starts_with(GUEST_PREFIX))
        .collect();
    let fits_without = |names: &[&str]| {
        let left = files.iter().filter(|file| !names.contains(&file.name()));
        fit(left, free.to_vec())
    };
    let one = guests.iter().rev().map(std::slice::from_ref);
    let more = (2..=guests.len()).map(|count| &guests[..count]);
    let found = one.chain(more).find(|names| fits_without(names));
    found
        .unwrap_or_default()
        .iter()
        .map(|&name| name.to_owned())
        .collect()
}

/// Whether `files` fit, each in the first piece that takes it.
fn fit<'a>(files: impl IntoIterator<Item = &'a NewFile>, mut free: Vec<Range<usize>>) -> bool {
    files.into_iter().all(|file| {
        let piece = free.iter_mut().find(|piece| piece.len() >= file.unpadded());
        piece
            .map(|piece| piece.start = (piece.start + file.room()).min(piece.end))
            .is_some()
    })
}

/// Files in the image that are no firmware: other payloads, pictures, option ROMs for booting from the network.
fn replaceable(full: &Full) -> Vec<&str> {
    let droppable = |part: &&Part| {
        part.name.starts_with("img/")
            || part.name.starts_with("genroms/")
            || part.name.starts_with("bootsplash")
            || part.name == PAYLOAD
    };
    full.old
        .iter()
        .filter(droppable)
        .map(|part| &*part.name)
        .collect()
}

#[cfg(test)]
mod tests;
