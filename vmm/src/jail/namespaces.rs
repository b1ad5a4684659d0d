//! The jail's process and its namespaces.
#![expect(unsafe_code, reason = "forks")]

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{ForkResult, Pid, fork, getegid, geteuid};

use super::JailError;

/// Those that the jail is made of.
const NEEDED: CloneFlags = CloneFlags::CLONE_NEWNS.union(CloneFlags::CLONE_NEWNET);
/// Those that a kernel may lack.
const MORE: CloneFlags = CloneFlags::CLONE_NEWIPC
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// User and group that nobody is: Linux's overflow user.
const NOBODY: u32 = 65534;

/// Which of the two processes this is.
pub(super) enum Side {
    /// The jail, and its end of the line to the keeper.
    Inside(UnixStream),
    /// The keeper, the jail's process, and its end of the line to it.
    Keeper(Pid, UnixStream),
}

/// What to do about a kernel that gives no namespaces.
pub(super) fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "this user may make no user namespace. Run as root, or permit it: sysctl kernel.unprivileged_userns_clone=1 \
             (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)"
        }
        Some(libc::ENOSPC) => "there are too many. Raise the limits user.max_*_namespaces (sysctl)",
        _ => {
            "the kernel needs CONFIG_USER_NS, CONFIG_PID_NS and CONFIG_NET_NS; without --jail the guest runs unconfined"
        }
    }
}

/// Makes the jail's process, the first of its process namespace.
pub(super) fn split(privileged: bool) -> Result<Side, JailError> {
    let failed = |what| move |source| JailError::Process { what, source };
    let (ours, theirs) = UnixStream::pair().map_err(failed("make a line"))?;
    let mut flags = CloneFlags::CLONE_NEWPID;
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    if !privileged {
        // Who is not root gets all other namespaces from here.
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).map_err(|error| JailError::Namespaces(error.into()))?;
    if !privileged {
        map("self", (user, user), (group, group)).map_err(failed("map the user"))?;
    }
    // SAFETY: there is no other thread that could hold a lock.
    match unsafe { fork() }.map_err(|error| failed("fork")(error.into()))? {
        ForkResult::Child => Ok(Side::Inside(theirs)),
        ForkResult::Parent { child } => Ok(Side::Keeper(child, ours)),
    }
}

/// Enters the namespaces, of which the keeper gives the user's its users.
pub(super) fn enter(privileged: bool, mut keeper: &UnixStream) -> Result<(), JailError> {
    let user = if privileged {
        CloneFlags::CLONE_NEWUSER
    } else {
        CloneFlags::empty()
    };
    match unshare(user | NEEDED | MORE) {
        Err(nix::errno::Errno::EINVAL) => unshare(user | NEEDED),
        result => result,
    }
    .map_err(|error| JailError::Namespaces(error.into()))?;
    if privileged {
        let told = keeper
            .write_all(b"?")
            .and_then(|()| keeper.read_exact(&mut [0]));
        told.map_err(|_| JailError::NoKeeper)?;
    }
    Ok(())
}

/// Gives the user namespace of the jail's process `child` its only user, when the process has entered it.
pub(super) fn serve(child: Pid, mut link: &UnixStream, same_user: bool) -> io::Result<()> {
    link.read_exact(&mut [0])?;
    let (user, group) = if same_user {
        (geteuid().as_raw(), getegid().as_raw())
    } else {
        (NOBODY, NOBODY)
    };
    map(&child.to_string(), (0, user), (0, group))?;
    link.write_all(b"!")
}

/// Which user and group of the namespace of process `who` is which of ours.
fn map(
    who: &str,
    (user, host_user): (u32, u32),
    (group, host_group): (u32, u32),
) -> io::Result<()> {
    let write = |name: &str, text: String| fs::write(format!("/proc/{who}/{name}"), text);
    write("setgroups", "deny".into())?;
    write("uid_map", format!("{user} {host_user} 1"))?;
    write("gid_map", format!("{group} {host_group} 1"))
}
