//! Taps: the guests' end of the network. A tap is made before its guest starts and stays over the guest's falls.
#![expect(unsafe_code, reason = "taps are made by ioctl(2) on /dev/net/tun")]

use std::fs::{File, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::AsRawFd;

use nix::libc;

const DEVICE: &str = "/dev/net/tun";
/// The kernel puts the first free number in.
const PATTERN: &[u8] = b"dtap%d";
/// Of every tap's name.
pub const PREFIX: &str = "dtap";

mod ioctl {
    nix::ioctl_write_ptr_bad!(set_interface, nix::libc::TUNSETIFF, nix::libc::ifreq);
    nix::ioctl_write_int_bad!(set_persistent, nix::libc::TUNSETPERSIST);
}

/// Makes a tap that stays when nobody uses it, and returns its name.
///
/// # Errors
/// The kernel has no taps, or we may not.
pub fn create() -> io::Result<String> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let mut request = request();
    // SAFETY: the structure is the one this request takes, alive for the call; the kernel writes the name into it.
    unsafe { ioctl::set_interface(device.as_raw_fd(), &raw mut request) }?;
    persist(&device, true)?;
    let name = request.ifr_name.iter().map(|c| c.cast_unsigned());
    let name: Vec<u8> = name.take_while(|byte| *byte != 0).collect();
    String::from_utf8(name).map_err(io::Error::other)
}

fn persist(device: &File, on: bool) -> io::Result<()> {
    // SAFETY: takes a number only.
    unsafe { ioctl::set_persistent(device.as_raw_fd(), i32::from(on)) }?;
    Ok(())
}

/// What the VMM asks for when it opens the tap must be the same.
fn request() -> libc::ifreq {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    // SAFETY: plain data, for which all zero bits are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(PATTERN) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    request
}
