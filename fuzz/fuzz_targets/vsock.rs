//! The queues of the vsock device: packets of the guest, and what programs of the host say at its socket.
#![no_main]

use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use devices::virtio::vsock::{Host, Vsock};
use fuzz::Unstructured;
use fuzz::driver::{World, drive};
use fuzz::sockets::{Callers, pair};

const CID: u64 = 3;
/// The host's ports below this have somebody who listens.
const LISTENED: u32 = 1030;

type Ends = Arc<Mutex<Vec<UnixStream>>>;

/// The host's side of the sockets.
struct Sockets {
    callers: Callers,
    /// The other ends of the connections that the guest has made.
    reached: Ends,
}

impl Host for Sockets {
    fn listener(&self) -> RawFd {
        self.callers.fd()
    }

    fn accept(&mut self) -> io::Result<UnixStream> {
        self.callers.accept()
    }

    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        if port >= LISTENED {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (near, far) = pair();
        self.reached.lock().expect("one thread").push(far);
        Ok(near)
    }
}

/// Programs of the host.
struct Programs {
    callers: Callers,
    ends: Ends,
}

impl World for Programs {
    fn request(&mut self, index: u16, input: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
        if index != 1 {
            return Ok(Vec::new());
        }
        let small = |input: &mut Unstructured<'_>| -> arbitrary::Result<u32> {
            Ok(match input.arbitrary::<u8>()? {
                0 => input.arbitrary()?,
                1 => u32::MAX,
                other => 1024 + u32::from(other % 8),
            })
        };
        let other_cid = input.ratio(1, 32)?;
        let mut header = Vec::with_capacity(44);
        header.extend(if other_cid { 9 } else { CID }.to_le_bytes());
        header.extend(2_u64.to_le_bytes());
        header.extend(small(input)?.to_le_bytes());
        header.extend(small(input)?.to_le_bytes());
        let len = match input.arbitrary::<u8>()? {
            0 => input.arbitrary()?,
            len => u32::from(len),
        };
        header.extend(len.to_le_bytes());
        header.extend(if input.ratio(1, 32)? { 2_u16 } else { 1 }.to_le_bytes());
        header.extend(u16::from(input.arbitrary::<u8>()? % 10).to_le_bytes());
        header.extend(u32::from(input.arbitrary::<u8>()? & 3).to_le_bytes());
        header.extend(input.arbitrary::<u32>()?.to_le_bytes());
        header.extend(input.arbitrary::<u32>()?.to_le_bytes());
        Ok(header)
    }

    fn happen(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let what = input.arbitrary::<u8>()?;
        let len = usize::from(input.arbitrary::<u8>()?);
        let data = input.bytes(len.min(input.len()))?;
        let mut ends = self.ends.lock().expect("one thread");
        match what % 8 {
            0 => {
                let (near, mut far) = pair();
                let _ = far.write(b"CONNECT ");
                let _ = far.write(data);
                self.callers.call(near);
                ends.push(far);
            }
            1 => {
                let (near, mut far) = pair();
                let port = 1024 + len % 8;
                let _ = writeln!(far, "CONNECT {port}");
                self.callers.call(near);
                ends.push(far);
            }
            2 if !ends.is_empty() => {
                let at = len % ends.len();
                ends.remove(at);
            }
            3 => {
                if let Some(end) = ends.last() {
                    let _ = end.shutdown(std::net::Shutdown::Write);
                }
            }
            _ => {
                let count = ends.len().max(1);
                if let Some(end) = ends.get_mut(len % count) {
                    let _ = end.write(data);
                    let _ = end.read(&mut [0; 512]);
                }
            }
        }
        Ok(())
    }
}

fuzz::fuzz_target!(init: fuzz::begin(fuzz::steps), |data: &[u8]| -> fuzz::Corpus {
    let (callers, ends) = (Callers::new(), Ends::default());
    let sockets = Sockets {
        callers: callers.clone(),
        reached: ends.clone(),
    };
    let device = Vsock::new(CID, Box::new(sockets)).expect("an epoll");
    drive(Box::new(device), &mut Programs { callers, ends }, data)
});
