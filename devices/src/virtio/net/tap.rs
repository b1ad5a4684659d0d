//! A tap interface of the host as a network.
#![expect(unsafe_code, reason = "ioctls of the tun driver")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use libc::{c_int, c_uint};
use thiserror::Error;
use vmm_sys_util::ioctl::{ioctl_with_ref, ioctl_with_val};

use super::HEADER_LEN;
use super::backend::{Backend, Offloads};

const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

const TUN_F_CSUM: c_uint = 0x01;
const TUN_F_TSO4: c_uint = 0x02;
const TUN_F_TSO6: c_uint = 0x04;
const TUN_F_TSO_ECN: c_uint = 0x08;
const TUN_F_USO4: c_uint = 0x20;
const TUN_F_USO6: c_uint = 0x40;

/// Why a tap cannot be a network.
#[derive(Debug, Error)]
#[error("The tap interface cannot be set up: {what} is refused")]
pub struct TapError {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// A tap interface, opened by whoever may.
#[derive(Debug)]
pub struct Tap {
    file: File,
    cuts_udp: bool,
}

impl Tap {
    /// Takes the queue of a tap interface, opened without blocking and with `IFF_NO_PI` and `IFF_VNET_HDR`.
    pub fn new(file: File) -> Result<Self, TapError> {
        let error = |what| {
            move || TapError {
                what,
                source: io::Error::last_os_error(),
            }
        };
        let len = c_int::try_from(HEADER_LEN).unwrap_or(c_int::MAX);
        // SAFETY: the call reads one int.
        let done = unsafe { ioctl_with_ref(&file, TUNSETVNETHDRSZ, &len) };
        (done == 0)
            .then_some(())
            .ok_or_else(error("the length of a frame's header"))?;
        let mut tap = Self {
            file,
            cuts_udp: true,
        };
        // Kernels before 6.2 cut no UDP.
        let most = Offloads {
            checksum: true,
            uso4: true,
            uso6: true,
            ..Offloads::default()
        };
        tap.cuts_udp = tap.set_offloads(most).is_ok();
        tap.set_offloads(Offloads::default())
            .map_err(|source| TapError {
                what: "to be without offloads",
                source,
            })?;
        Ok(tap)
    }
}

impl Backend for Tap {
    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn cuts_udp(&self) -> bool {
        self.cuts_udp
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let flags = [
            (offloads.checksum, TUN_F_CSUM),
            (offloads.tso4, TUN_F_TSO4),
            (offloads.tso6, TUN_F_TSO6),
            (offloads.ecn, TUN_F_TSO_ECN),
            (offloads.uso4, TUN_F_USO4),
            (offloads.uso6, TUN_F_USO6),
        ];
        let flags = flags
            .iter()
            .filter(|(wanted, _)| *wanted)
            .fold(0, |flags, (_, flag)| flags | flag);
        // SAFETY: the argument is the flags themselves.
        let done = unsafe { ioctl_with_val(&self.file, TUNSETOFFLOAD, flags.into()) };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
