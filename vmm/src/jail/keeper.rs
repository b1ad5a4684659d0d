//! The process outside of the jail: it waits for the jail's, removes what that one cannot, and ends as it ended.
#![expect(
    unsafe_code,
    reason = "takes signals' default actions and ends without running the program's end"
)]

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

use super::seccomp::{self, CODE_DENIED, Seccomp, ThreadKind};
use super::{descriptors, namespaces};
use crate::clock::StartTime;
use crate::events::Events;
use crate::exit::ExitReason;

/// What the keeper has to do.
pub(super) struct Task {
    pub(super) child: Pid,
    pub(super) link: UnixStream,
    /// The jail's user is ours.
    pub(super) same_user: bool,
    /// The child's namespace gets its users from us.
    pub(super) privileged: bool,
    /// Files to remove at the end.
    pub(super) sockets: Vec<PathBuf>,
    pub(super) parent: Option<OwnedFd>,
}

/// Does it, to the end of this process.
pub(super) fn keep(task: Task) -> ! {
    let code = wait(task);
    // SAFETY: ends the process. What the program set up for its end is the child's business.
    unsafe { libc::_exit(code) }
}

fn wait(task: Task) -> i32 {
    let mut kept = vec![libc::STDERR_FILENO, seccomp::log(), task.link.as_raw_fd()];
    kept.extend(task.parent.as_ref().map(AsRawFd::as_raw_fd));
    // What the child has, it alone has: who waits for the end of a stream sees the child's.
    if let Err(error) = descriptors::close_all_but(&kept) {
        log::warn!("The jail's keeper has descriptors open that it does not need: {error}");
    }
    if task.privileged
        && let Err(error) = namespaces::serve(task.child, &task.link, task.same_user)
    {
        // The child sees the end of the line, and says that it has no keeper; or it has said already what is wrong.
        log::debug!("The jail's user namespace gets no users: {error}");
    }
    seccomp::set_parent(-1);
    if let Err(error) = Seccomp::on().and_then(|seccomp| seccomp.enter(ThreadKind::Keeper)) {
        log::debug!("The jail's keeper has no filter of system calls: {error}");
    }
    let status = loop {
        match waitpid(task.child, None) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other,
        }
    };
    for path in &task.sockets {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("{} cannot be removed: {error}", path.display());
        }
    }
    match status {
        Ok(WaitStatus::Exited(_, code)) => code,
        Ok(WaitStatus::Signaled(_, signal, _)) => killed(signal, task.parent),
        other => {
            log::error!("The jail's process cannot be waited for: {other:?}");
            1
        }
    }
}

/// Says that the child was killed, and dies of the same.
fn killed(by: Signal, parent: Option<OwnedFd>) -> i32 {
    let message = if by == Signal::SIGSYS {
        "The VMM made a system call that a filter denies: it was killed".to_owned()
    } else {
        format!("The VMM was killed by {by}")
    };
    log::error!("{message}");
    if let Some(parent) = parent {
        let events = Events::new(Some(parent.into()), StartTime::new(None, None));
        events.exit_without_waiting(&ExitReason::Error(message));
    }
    if by == Signal::SIGSYS {
        return CODE_DENIED.into();
    }
    // SAFETY: the default action is no function of ours.
    let _ = unsafe { signal(by, SigHandler::SigDfl) };
    let _ = kill(getpid(), by);
    128 + by as i32
}
