//! The process that reads a guest's disk: everything it is given is its standard input (an image, or a stream on which the
//! store serves the disk by NBD, with an argument that says its length), everything it can reach its standard output.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use boot_entry::{BootError, Bytes, Disk};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::Header;
use crate::errors::chain;
use crate::nbd::client::Client;

/// Address space in bytes. A file system's journal and folders are read into memory; files are not.
const MAX_MEMORY: u64 = 512 << 20;
/// Seconds of computing: a hundred times what a large initial RAM disk takes.
const MAX_SECONDS: u64 = 60;
/// The user and group without rights, by their usual numbers.
const NOBODY: u32 = 65534;

/// Reads the boot entry of the disk at the standard input.
#[must_use]
pub fn main() -> ExitCode {
    match give_up_rights().and_then(|()| answer()) {
        Ok(()) => ExitCode::SUCCESS,
        // The other end of the pipe is gone, or the kernel refused to confine us: the answer is missing in either case.
        Err(_) => ExitCode::FAILURE,
    }
}

/// What is left cannot open files, gain rights or take much memory or time.
fn give_up_rights() -> io::Result<()> {
    for (resource, limit) in [
        (Resource::RLIMIT_AS, MAX_MEMORY),
        (Resource::RLIMIT_CPU, MAX_SECONDS),
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NPROC, 0),
    ] {
        setrlimit(resource, limit, limit)?;
    }
    if Uid::effective().is_root() {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        setgroups(&[])?;
        setresgid(group, group, group)?;
        setresuid(user, user, user)?;
    }
    set_no_new_privs()?;
    Ok(())
}

fn answer() -> io::Result<()> {
    // Copies of both, so that the disk can be read at any place and the answer is not flushed at every line.
    let disk = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut out = BufWriter::new(File::from(io::stdout().as_fd().try_clone_to_owned()?));
    let served = std::env::args().nth(1);
    let served = served.map(|len| len.parse::<u64>().map_err(io::Error::other));
    // No more descriptors from here on.
    setrlimit(Resource::RLIMIT_NOFILE, 0, 0)?;
    let opened = match served.transpose()? {
        None => Disk::open(disk),
        Some(len) => {
            let client: Arc<dyn Bytes> = Arc::new(Client::over(OwnedFd::from(disk).into(), len)?);
            Disk::new(&client)
        }
    };
    let disk = match opened {
        Ok(disk) => disk,
        Err(error) => return refuse(&error, out),
    };
    let entry = match disk.entry() {
        Ok(entry) => entry,
        Err(error) => return refuse(&error, out),
    };
    let header = Header::Entry {
        origin: entry.origin.clone(),
        cmdline: entry.cmdline.clone(),
        kernel: entry.kernel_size,
        initrd: entry.initrd_size,
    };
    say(&header, &mut out)?;
    // A disk that fails here breaks the answer off, which the other side sees by its length.
    entry.write_kernel(&mut out).map_err(io::Error::other)?;
    entry.write_initrd(&mut out).map_err(io::Error::other)?;
    out.flush()
}

fn refuse(error: &BootError, mut out: impl Write) -> io::Result<()> {
    say(&Header::Error(chain(error)), &mut out)?;
    out.flush()
}

fn say(header: &Header, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, header)?;
    out.write_all(b"\n")
}
