//! The socket device: from the configuration to the device, and the host's Unix sockets.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use devices::virtio::vsock::{Host, Vsock};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::VirtioError;
use crate::config::VsockConfig;

/// Why the guest cannot be reached by a Unix socket.
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

/// Opens the socket of `config`.
pub(super) fn make(config: &VsockConfig) -> Result<Vsock, VirtioError> {
    let sockets = Sockets::new(&config.uds_path).map_err(VirtioError::Socket)?;
    Vsock::new(config.guest_cid.into(), Box::new(sockets)).map_err(VirtioError::SocketEvents)
}

/// The Unix sockets by which the guest and the host's programs meet. Removed when dropped.
struct Sockets {
    path: PathBuf,
    listener: UnixListener,
}

impl Sockets {
    fn new(path: &Path) -> Result<Self, SocketError> {
        make_way(path)?;
        let error = |source| SocketError::Listen {
            path: path.into(),
            source,
        };
        let listener = UnixListener::bind(path).map_err(error)?;
        listener.set_nonblocking(true).map_err(error)?;
        Ok(Self {
            path: path.into(),
            listener,
        })
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
pub(super) fn reach(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

impl Host for Sockets {
    fn listener(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    fn accept(&mut self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        reach(Path::new(&path))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("{} cannot be removed: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_in_use_is_refused_and_a_dead_one_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let first = Sockets::new(&path).unwrap();
        assert!(matches!(
            Sockets::new(&path),
            Err(SocketError::InUse { .. })
        ));
        drop(first);
        assert!(!path.exists(), "removed at the end");
        // A killed VMM leaves its socket behind.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Sockets::new(&path).unwrap());

        fs::write(&path, "mine").unwrap();
        assert!(matches!(
            Sockets::new(&path),
            Err(SocketError::NotASocket { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert!(matches!(
            Sockets::new(&folder.path().join("no/v.sock")),
            Err(SocketError::Listen { .. })
        ));
    }

    #[test]
    fn programs_are_found_by_port_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let mut sockets = Sockets::new(&path).unwrap();
        assert!(sockets.connect(52).is_err());
        let program = UnixListener::bind(folder.path().join("v.sock_52")).unwrap();
        let mut streams = Vec::new();
        // It accepts nobody: at some time there is no room for more, which ends this.
        while let Ok(stream) = sockets.connect(52) {
            streams.push(stream);
            assert!(streams.len() < 100_000);
        }
        assert!(!streams.is_empty());
        drop(program);
    }
}
