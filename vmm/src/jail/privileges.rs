//! What a process can do by itself: capabilities, limits, and who may look at it.
#![expect(unsafe_code, reason = "privileges are set by calls that take numbers")]

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use libc::{c_int, c_ulong};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::JailError;

/// Most descriptors of a VMM: each connection of vsock is one.
const DESCRIPTORS: u64 = 4096;

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> JailError {
    move |source| JailError::Privileges { what, source }
}

fn control(option: c_int, argument: c_ulong) -> io::Result<()> {
    // SAFETY: these options take numbers only.
    if unsafe { libc::prctl(option, argument, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives up all capabilities, and the ways to get them back; limits what can be used up.
pub(super) fn drop_all() -> Result<(), JailError> {
    control(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(failed("forbid new privileges"))?;
    for capability in 0.. {
        match control(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            // The first that this kernel does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(failed("drop a capability for good")(error)),
        }
    }
    drop_capabilities().map_err(failed("drop capabilities"))?;
    limit(Resource::RLIMIT_CORE, 0).map_err(failed("forbid core dumps"))?;
    limit(Resource::RLIMIT_NOFILE, DESCRIPTORS).map_err(failed("limit descriptors"))?;
    // Other processes of the same user may not look into this one.
    control(libc::PR_SET_DUMPABLE, 0).map_err(failed("forbid to be traced"))
}

fn limit(resource: Resource, wanted: u64) -> io::Result<()> {
    let (_, most) = getrlimit(resource)?;
    let wanted = wanted.min(most);
    Ok(setrlimit(resource, wanted, wanted)?)
}

fn drop_capabilities() -> io::Result<()> {
    // `struct __user_cap_header_struct` and two `struct __user_cap_data_struct` (Linux's `capability.h`, version 3).
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let data = [0u32; 6];
    // SAFETY: both are as large as the kernel's structures of this version.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// From now on this process dies with the one at the other end of `keeper`, which is its parent.
pub(super) fn bind_to(keeper: &UnixStream) -> Result<(), JailError> {
    let kill = libc::SIGKILL.unsigned_abs();
    control(libc::PR_SET_PDEATHSIG, kill.into()).map_err(failed("be ended with the keeper"))?;
    // It may be gone already.
    let mut fds = [PollFd::new(keeper.as_fd(), PollFlags::POLLIN)];
    let gone = poll(&mut fds, PollTimeout::ZERO);
    match gone {
        Ok(0) => Ok(()),
        _ => Err(JailError::NoKeeper),
    }
}
