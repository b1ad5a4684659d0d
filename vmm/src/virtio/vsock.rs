//! The socket device: from the configuration to the device, and the host's Unix sockets.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use devices::virtio::vsock::{Host, Vsock};

use super::VirtioError;
use super::listener::{Listener, reach};
use crate::config::VsockConfig;
use crate::metrics;

/// Opens the socket of `config`.
pub(super) fn make(config: &VsockConfig) -> Result<Vsock, VirtioError> {
    let sockets = Sockets(Listener::new(&config.uds_path).map_err(VirtioError::Socket)?);
    let vsock = Vsock::new(config.guest_cid.into(), Box::new(sockets))
        .map_err(VirtioError::SocketEvents)?;
    metrics::process().watch("vsock", None, &vsock);
    Ok(vsock)
}

/// The Unix sockets by which the guest and the host's programs meet.
struct Sockets(Listener);

impl Host for Sockets {
    fn listener(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn accept(&mut self) -> io::Result<UnixStream> {
        self.0.accept()
    }

    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(self.0.path());
        path.push(format!("_{port}"));
        reach(Path::new(&path))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn programs_are_found_by_port_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let mut sockets = Sockets(Listener::new(&path).unwrap());
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
