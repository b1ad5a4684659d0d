//! Unix sockets at which the VMM is reached: one path is one guest's, and is gone with it.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::jail::opened::{self, Kind};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Why nobody can be heard at a path.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{path} is in use by another program: give each guest a path of its own", path = .path.display())]
    InUse { path: PathBuf },
    #[error("{path} exists and is not a socket: remove it or use another path", path = .path.display())]
    NotASocket { path: PathBuf },
    #[error("Cannot listen at {path}: does its folder exist, and may this user write to it?", path = .path.display())]
    Listen {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A socket that listens at a path and never waits. Its file is removed when it is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    path: PathBuf,
    listener: UnixListener,
    /// Who is in a jail cannot: the process that waits outside does.
    removed_by_us: bool,
}

impl Listener {
    pub(super) fn new(path: &Path) -> Result<Self, SocketError> {
        if let Some(listener) = opened::take(Kind::Listener, path) {
            return Ok(Self {
                path: path.into(),
                listener: listener.into(),
                removed_by_us: false,
            });
        }
        make_way(path)?;
        let error = |source| SocketError::Listen {
            path: path.into(),
            source,
        };
        let listener = UnixListener::bind(path).map_err(error)?;
        let listener = Self {
            path: path.into(),
            listener,
            removed_by_us: true,
        };
        listener.listener.set_nonblocking(true).map_err(error)?;
        Ok(listener)
    }

    /// Listens at `path` for a later [`new`](Self::new).
    pub(super) fn open_ahead(path: &Path) -> Result<(), SocketError> {
        let mut listener = Self::new(path)?;
        listener.removed_by_us = false;
        let descriptor = listener.listener.try_clone();
        let descriptor = descriptor.map_err(|source| SocketError::Listen {
            path: path.into(),
            source,
        })?;
        opened::keep(Kind::Listener, path, descriptor);
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Who has called next.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.removed_by_us
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("{} cannot be removed: {error}", self.path.display());
        }
    }
}

/// Removes what a VMM that did not end in order has left at `path`, and nothing else.
fn make_way(path: &Path) -> Result<(), SocketError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let path = path.to_owned();
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket { path });
    }
    match reach(&path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(&path).map_err(|source| SocketError::Listen { path, source })
        }
        // Also one that may not be reached is somebody's.
        _ => Err(SocketError::InUse { path }),
    }
}

/// Connects to the socket at `path` without ever waiting: a program that accepts nobody is as good as none.
pub(crate) fn reach(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_in_use_is_refused_and_a_dead_one_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let first = Listener::new(&path).unwrap();
        assert!(matches!(
            Listener::new(&path),
            Err(SocketError::InUse { .. })
        ));
        drop(first);
        assert!(!path.exists(), "removed at the end");
        // A killed VMM leaves its socket behind.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::new(&path).unwrap());

        fs::write(&path, "mine").unwrap();
        assert!(matches!(
            Listener::new(&path),
            Err(SocketError::NotASocket { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert!(matches!(
            Listener::new(&folder.path().join("no/v.sock")),
            Err(SocketError::Listen { .. })
        ));
    }
}
