//! The jail as the command line asks for it.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::args::Args;
use super::{Failure, Guest};
use crate::config::TapSource;
use crate::jail::cgroup::Limits;
use crate::jail::{self, Plan, descriptors};
use crate::live;
use crate::machine::{self, MachineError};
use crate::virtio;

/// Closes what this process has inherited and nobody told it to use: all but the standard streams, `kept` and what
/// `guest` names.
pub(super) fn close_others(kept: &[RawFd], guest: &Guest) -> Result<(), Failure> {
    let config = guest.config();
    let cards = config.iter().flat_map(|config| &config.net);
    let taps = cards
        .chain(guest.successors())
        .filter_map(|card| match card.tap {
            TapSource::Fd(fd) => Some(fd),
            TapSource::Name(_) | TapSource::Unplugged => None,
        });
    let kept: Vec<_> = (0..3).chain(kept.iter().copied()).chain(taps).collect();
    descriptors::close_all_but(&kept).map_err(|error| Failure {
        message: format!("Cannot close inherited descriptors: {error}"),
        code: 1,
    })
}

/// Closes the jail around this process. What `guest` names is open then; without one, the guest is described later.
pub(super) fn enter(
    args: &Args,
    guest: &Guest,
    parent: Option<&UnixStream>,
) -> Result<(), Failure> {
    machine::open_host_ahead().map_err(|error| no_machine(&error))?;
    if args.store_fd.is_some() {
        live::open_ahead();
    }
    let mut plan = Plan {
        root: args.jail_root.clone(),
        ..Plan::default()
    };
    if !args.no_api {
        plan.files.push(args.api_sock.clone());
    }
    let config = guest.config();
    match guest {
        Guest::Later => Ok(()),
        Guest::Boot { config, .. } => config.as_deref().map_or(Ok(()), machine::open_ahead),
        Guest::GoOn(load) => machine::open_ahead_of_restore(load.config(), load.memory()),
    }
    .map_err(|error| no_machine(&error))?;
    for net in guest.successors() {
        virtio::net::open_ahead(net).map_err(|error| no_machine(&error.into()))?;
    }
    if let Some(config) = config {
        let paths = config.vsock.iter().map(|vsock| &vsock.uds_path);
        let folders = paths.filter_map(|path| {
            let path = std::path::absolute(path).ok()?;
            path.parent().map(Path::to_path_buf)
        });
        plan.sockets = folders.collect();
        let folder = args.jail_cgroup.clone();
        plan.cgroup = folder.map(|folder| (folder, Limits::new(config)));
    }
    if plan.cgroup.is_none() {
        log::info!(
            "No --jail-cgroup{}: the guest's use of memory and threads is not limited by a cgroup",
            if config.is_none() {
                " with a --config-file"
            } else {
                ""
            }
        );
    }
    let parent = parent.map(|socket| socket.as_fd().try_clone_to_owned());
    plan.parent = parent.transpose().map_err(|error| Failure {
        message: format!("Cannot duplicate the control socket: {error}"),
        code: 1,
    })?;
    jail::enter(plan).map_err(|error| Failure::new(1, &error))
}

/// The numbers of `sockets`.
pub(super) fn numbers<'a>(sockets: impl IntoIterator<Item = &'a UnixStream>) -> Vec<RawFd> {
    sockets.into_iter().map(AsRawFd::as_raw_fd).collect()
}

fn no_machine(error: &MachineError) -> Failure {
    let code = if error.is_configuration() {
        crate::exit::CODE_BAD_CONFIGURATION
    } else {
        1
    };
    Failure::new(code, error)
}
