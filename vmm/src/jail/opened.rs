//! What was opened before the jail closed, until it is asked for by its name.
//!
//! The code that makes devices and loads kernels asks for paths. In a jail there are none: so each place that opens one
//! asks here first, and what the configuration names is put here before the jail closes. What is not here is opened by
//! its path as ever: below the jail's root, if there is a jail.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// How something is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A file, for reading.
    Read,
    /// A file, for reading and writing.
    Write,
    /// A network interface, by its name.
    Tap,
    /// A socket that listens at a path.
    Listener,
    /// A connection to the socket at a path.
    Connection,
    /// A userfaultfd of this process, where there is no device that makes them.
    Userfault,
}

#[derive(Default)]
struct Opened {
    /// By what they are and how the configuration calls them; each is for one user.
    descriptors: HashMap<(Kind, PathBuf), Vec<OwnedFd>>,
    /// What the paths of files really are.
    real: HashMap<PathBuf, PathBuf>,
    closed: bool,
}

static OPENED: LazyLock<Mutex<Opened>> = LazyLock::new(Mutex::default);

fn opened() -> MutexGuard<'static, Opened> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps `descriptor` until somebody asks for `name`.
pub fn keep(kind: Kind, name: impl Into<PathBuf>, descriptor: impl Into<OwnedFd>) {
    let (name, descriptor) = (name.into(), descriptor.into());
    let mut opened = opened();
    opened
        .descriptors
        .entry((kind, name))
        .or_default()
        .push(descriptor);
}

/// Keeps the file at `path`.
///
/// # Errors
/// It cannot be opened.
pub fn keep_file(path: &Path, write: bool) -> io::Result<()> {
    let file = open_now(path, write)?;
    keep(kind(write), path, file);
    Ok(())
}

/// Notes what `path` really is, for [`canonicalize`].
pub fn note(path: &Path) {
    if let Ok(real) = fs::canonicalize(path) {
        let mut opened = opened();
        opened.real.insert(path.into(), real.clone());
        opened.real.insert(real.clone(), real);
    }
}

/// What was kept as `name`. For one user each.
pub fn take(kind: Kind, name: impl AsRef<Path>) -> Option<OwnedFd> {
    let key = (kind, name.as_ref().to_path_buf());
    opened().descriptors.get_mut(&key)?.pop()
}

/// The file at `path`: what was kept, or what is there.
///
/// # Errors
/// It cannot be opened.
pub fn file(path: &Path, write: bool) -> io::Result<File> {
    match take(kind(write), path) {
        Some(descriptor) => Ok(descriptor.into()),
        None => open_now(path, write),
    }
}

/// What `path` really is: as noted before the jail closed, or as it is now.
///
/// # Errors
/// There is no such file.
pub fn canonicalize(path: &Path) -> io::Result<PathBuf> {
    let opened = opened();
    if !opened.closed {
        drop(opened);
        return fs::canonicalize(path);
    }
    let path = plain(path);
    match opened.real.get(&path) {
        Some(real) => Ok(real.clone()),
        None => {
            drop(opened);
            fs::canonicalize(path)
        }
    }
}

/// The paths at which sockets listen.
pub(super) fn listeners() -> Vec<PathBuf> {
    let opened = opened();
    let listeners = opened
        .descriptors
        .keys()
        .filter(|(kind, _)| *kind == Kind::Listener);
    listeners.map(|(_, path)| path.clone()).collect()
}

/// From now on paths mean something else.
pub(super) fn close() {
    opened().closed = true;
}

/// Lets go of what nobody has asked for.
pub fn forget() {
    opened().descriptors.clear();
}

fn kind(write: bool) -> Kind {
    if write { Kind::Write } else { Kind::Read }
}

fn open_now(path: &Path, write: bool) -> io::Result<File> {
    File::options().read(true).write(write).open(path)
}

/// `path` without `.` and `..`, which can be told without looking only if no part of it is a link; what is noted has none.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_once_for_each_user() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "x").unwrap();
        keep_file(&path, false).unwrap();
        keep_file(&path, false).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(take(Kind::Write, &path).is_none());
        file(&path, false).unwrap();
        file(&path, false).unwrap();
        let error = file(&path, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn paths_are_made_plain() {
        assert_eq!(plain(Path::new("/a/./b/../c")), Path::new("/a/c"));
        assert_eq!(plain(Path::new("/../a")), Path::new("/a"));
    }
}
