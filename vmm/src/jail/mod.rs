//! What the VMM may do to the world outside, should a guest ever get hold of it: nothing that it does not need.
//!
//! ```text
//!   parent ── daruma-vmm (keeper: waits, reports, removes sockets)
//!                 │ fork
//!                 └── daruma-vmm in the jail, process 1 of its own process namespace
//! ```
//!
//! Everything that the configuration names is opened first ([`opened`]). Then the process splits: the jail is a child,
//! since only a child can be in a new process namespace, and the parent sees the keeper, which ends as the child does.
//! The child closes the jail around itself: namespaces for users, mounts, processes, the network, IPC, the host's name and
//! cgroups; a root folder with nothing in it; limits by a cgroup; no capabilities; Landlock; resource limits. After that
//! it reads the guest's images, and [`seccomp`] narrows what each thread may ask of the kernel.

pub mod cgroup;
pub mod descriptors;
mod keeper;
mod landlock;
mod namespaces;
pub mod opened;
mod privileges;
mod root;
pub mod seccomp;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use self::cgroup::{CgroupError, Limits};
use self::namespaces::Side;

/// What the jail is like.
#[derive(Debug, Default)]
pub struct Plan {
    /// A folder that stays reachable, as `/`. Without one, nothing does.
    pub root: Option<PathBuf>,
    /// Folders that stay reachable by their paths, for connections to sockets in them.
    pub sockets: Vec<PathBuf>,
    /// Files to remove when the jail's process has ended, beside the sockets that were opened for it.
    pub files: Vec<PathBuf>,
    /// A folder of cgroup v2 that is this guest's alone, and the limits in it.
    pub cgroup: Option<(PathBuf, Limits)>,
    /// Where the parent hears of an end that the jail cannot tell.
    pub parent: Option<OwnedFd>,
}

/// Why there is no jail.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The kernel gives no namespaces.
    #[error("Cannot enter namespaces of its own: {hint}", hint = namespaces::hint(.0))]
    Namespaces(#[source] io::Error),
    /// The child cannot be made or told something.
    #[error("Cannot {what} for the jail")]
    Process {
        /// What failed.
        what: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The keeper has died.
    #[error("The process that waits for the jail has ended")]
    NoKeeper,
    /// The root folder cannot be changed.
    #[error("Cannot {what} {path} for the jail's root folder", path = .path.display())]
    Root {
        /// What failed.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Privileges stay.
    #[error("Cannot {what}")]
    Privileges {
        /// What failed.
        what: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Landlock fails for another reason than its absence.
    #[error("Cannot restrict access to files by Landlock")]
    Landlock(#[source] ::landlock::RulesetError),
    /// No limits.
    #[error("Cannot limit the guest by its cgroup")]
    Cgroup(#[from] CgroupError),
}

/// Closes the jail around the caller, in a child process. The caller's own process waits for it, and never returns.
///
/// There must be no other thread, and every descriptor is to be used inside.
///
/// # Errors
/// Some part of the jail cannot be had. The process is to end then: it is half in it.
pub fn enter(plan: Plan) -> Result<(), JailError> {
    // Whose files are to be reached later, that user it stays.
    let same_user = plan.root.is_some() || !plan.sockets.is_empty();
    let group = plan
        .cgroup
        .map(|(path, limits)| cgroup::prepare(&path, limits));
    let group = group.transpose()?;
    let mut sockets = opened::listeners();
    sockets.extend(plan.files);
    let privileged = nix::unistd::geteuid().is_root();
    let keeper = match namespaces::split(privileged)? {
        Side::Inside(keeper) => keeper,
        Side::Keeper(child, link) => keeper::keep(keeper::Task {
            child,
            link,
            same_user: same_user || !privileged,
            privileged,
            sockets,
            parent: plan.parent,
        }),
    };
    drop(plan.parent);
    if let Some(group) = group {
        group.join()?;
    }
    namespaces::enter(privileged, &keeper)?;
    root::change(plan.root.as_deref(), &plan.sockets)?;
    privileges::drop_all()?;
    landlock::restrict(plan.root.is_some())?;
    privileges::bind_to(&keeper)?;
    opened::close();
    Ok(())
}
