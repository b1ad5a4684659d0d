//! The queues of a network card, with frames from its network.
#![no_main]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use devices::rate_limiter::{RateLimiter, RateLimits};
use devices::virtio::net::{Backend, HEADER_LEN, Net, NetOptions, Offloads};
use fuzz::Unstructured;
use fuzz::driver::{World, drive};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

/// One end of a cable, with a tap's manners: a frame for each call.
struct Cable(OwnedFd);

impl Backend for Cable {
    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn cuts_udp(&self) -> bool {
        true
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }
}

/// Whoever is at the other end.
struct Neighbour(OwnedFd);

impl World for Neighbour {
    fn request(&mut self, index: u16, input: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
        if index != 1 {
            return Ok(Vec::new());
        }
        // Header: flags, GSO type, lengths; then a frame that begins as one of IPv4, IPv6 or ARP.
        let mut frame = vec![0; HEADER_LEN];
        for byte in &mut frame[..10] {
            *byte = input.arbitrary()?;
        }
        frame.extend([2, 1, 2, 3, 4, 5, 2, 1, 2, 3, 4, 6]);
        let start: &[u8] = match input.arbitrary::<u8>()? % 4 {
            0 => &[8, 0, 0x45, 0],
            1 => &[0x86, 0xdd, 0x60, 0],
            2 => &[8, 6, 0, 1],
            _ => &[],
        };
        frame.extend(start);
        Ok(frame)
    }

    fn happen(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let len = match input.arbitrary::<u8>()? {
            0 => usize::from(input.arbitrary::<u16>()?),
            len => usize::from(len),
        };
        let start = input.bytes(len.min(input.len()).min(64))?;
        let mut frame = start.to_vec();
        frame.resize(len, 0x5a);
        // A full cable drops; frames of no bytes do not exist.
        if len > 0 {
            let _ = send(self.0.as_raw_fd(), &frame, MsgFlags::MSG_DONTWAIT);
        }
        let mut heard = [0; 2048];
        while recv(self.0.as_raw_fd(), &mut heard, MsgFlags::MSG_DONTWAIT).is_ok_and(|len| len > 0)
        {
        }
        Ok(())
    }
}

fuzz::fuzz_target!(init: fuzz::begin(fuzz::steps), |data: &[u8]| -> fuzz::Corpus {
    let kind = SockType::SeqPacket;
    let flags = SockFlag::SOCK_NONBLOCK;
    let (near, far) =
        socketpair(AddressFamily::Unix, kind, None, flags).expect("a pair of sockets");
    let limiter = || RateLimiter::new(RateLimits::default()).expect("no limit");
    let options = NetOptions {
        mac: [2, 1, 2, 3, 4, 5],
        mtu: Some(1400),
        receive_limiter: limiter(),
        transmit_limiter: limiter(),
        interceptor: None,
    };
    let device = Net::new(Box::new(Cable(near)), options);
    drive(Box::new(device), &mut Neighbour(far), data)
});
