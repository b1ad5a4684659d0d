//! A file as a block device (Linux, linux/loop.h).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

const LOOP_SET_FD: u64 = 0x4c00;
const LOOP_CTL_GET_FREE: u64 = 0x4c82;

nix::ioctl_none_bad!(get_free, LOOP_CTL_GET_FREE);
nix::ioctl_write_int_bad!(set_fd, LOOP_SET_FD);

/// Attaches `image`, read-only, to a free loop device and returns its node.
pub fn attach(image: &Path) -> io::Result<PathBuf> {
    // Opened without write access, which makes the device read-only.
    let file = File::open(image)?;
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    // SAFETY: the ioctl takes no argument and returns a number.
    let number = unsafe { get_free(control.as_raw_fd()) }?;
    let node = PathBuf::from(format!("/dev/loop{number}"));
    let device = File::open(&node)?;
    // SAFETY: the argument is a descriptor that is open during the call; the kernel takes its own reference.
    unsafe { set_fd(device.as_raw_fd(), file.as_raw_fd()) }?;
    Ok(node)
}
