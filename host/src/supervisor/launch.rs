//! Starting one VMM process.
#![expect(
    unsafe_code,
    reason = "a session of its own must be made between fork and exec"
)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc::{CLOSE_RANGE_CLOEXEC, c_uint, close_range};
use nix::unistd::{Pid, setsid};
use serde_json::{Value, json};
use thiserror::Error;

use super::agents::Sockets;
use crate::cgroups;
use crate::clock;
use crate::config::{GuestConfig, Transport};
use crate::images::Prepared;
use crate::net::Tap;
use crate::snapshots::{Load, Opened};

/// Name under which the executable is a VMM.
pub const VMM_NAME: &str = "daruma-vmm";

/// Why a VMM could not be started.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// Its configuration cannot be written.
    #[error("cannot write {path}")]
    Config {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// No process.
    #[error("cannot start {program}")]
    Spawn {
        /// The executable.
        program: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Our ends of a running VMM. None of them blocks.
#[derive(Debug)]
pub struct Launched {
    /// The process, leader of a session and process group of its own.
    pub pid: Pid,
    /// The guest's serial line, towards it.
    pub stdin: OwnedFd,
    /// The guest's serial line, from it.
    pub stdout: OwnedFd,
    /// The VMM's log.
    pub stderr: OwnedFd,
    /// The control socket.
    pub control: UnixStream,
}

/// What a guest has of the machine's store.
#[derive(Debug, Default)]
pub struct Kept<'a> {
    /// Its disks there, and the snapshot that it goes on from.
    pub opened: Option<&'a Opened>,
    /// The live channel.
    pub channel: Option<OwnedFd>,
}

/// How a guest is connected to what is outside.
#[derive(Debug)]
pub struct Outside<T> {
    /// Its network cards' other ends.
    pub taps: T,
    /// Its socket device.
    pub sockets: Option<Sockets>,
}

/// Starts `program` as the VMM of a guest. Its files go to a folder of its own below `run_folder`.
///
/// # Errors
/// The configuration cannot be written or the process not be started.
pub fn launch<'t>(
    program: &Path,
    run_folder: &Path,
    guest: &GuestConfig,
    images: &Prepared,
    outside: Outside<impl Iterator<Item = &'t Tap>>,
    kept: Kept<'_>,
) -> Result<Launched, LaunchError> {
    let start_time_us = clock::now().as_micros();
    let folder = run_folder.join(&guest.name);
    let load = kept.opened.and_then(|opened| opened.load.as_ref());
    let drives = drives(images, kept.opened);
    let (name, option, text) = match load {
        Some(load) => (
            "load.json",
            "--load-file",
            going_on(load, &drives, images, outside),
        ),
        None => {
            let text = configuration(guest, images, &drives, outside);
            ("vm.json", "--config-file", text)
        }
    };
    let path = folder.join(name);
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&path, text))
        .map_err(|source| LaunchError::Config {
            path: path.clone(),
            source,
        })?;
    let mut command = Command::new(program);
    command
        .arg0(VMM_NAME)
        .args(["--id", &guest.name, "--no-api", option])
        .arg(&path)
        .args(["--start-time-us", &start_time_us.to_string()])
        // A snapshot says so itself.
        .args((load.is_none() && guest.transport == Transport::Pci).then_some("--enable-pci"))
        .arg("--jail")
        .env_clear()
        .current_dir("/");
    // Without one the VMM says in its log that it is not limited.
    if let Ok(cgroup) = cgroups::folder(&guest.name) {
        command.arg("--jail-cgroup").arg(cgroup);
    }
    spawn(&mut command, kept.channel).map_err(|source| LaunchError::Spawn {
        program: program.to_owned(),
        source,
    })
}

fn spawn(command: &mut Command, channel: Option<OwnedFd>) -> io::Result<Launched> {
    let (control, theirs) = UnixStream::pair()?;
    let inherited = [
        Some(theirs.as_raw_fd()),
        channel.as_ref().map(AsRawFd::as_raw_fd),
    ];
    for (option, fd) in ["--control-fd", "--store-fd"].iter().zip(inherited) {
        if let Some(fd) = fd {
            command.args([*option, &fd.to_string()]);
        }
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let prepare_child = move || {
        // Keys on the host's terminal and the host's own end must not reach the VMM as signals.
        setsid()?;
        // Whoever started the host may have left it descriptors that do not close at exec.
        // SAFETY: the call takes numbers only, and what it does takes effect at exec.
        let marked = unsafe { close_range(3, c_uint::MAX, CLOSE_RANGE_CLOEXEC.cast_signed()) };
        Errno::result(marked)?;
        // These are meant to stay.
        for fd in inherited.into_iter().flatten() {
            // SAFETY: `theirs` and `channel` are open in the parent until `spawn` returns, so the number is valid in the
            // child.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes four system calls and allocates nothing.
    unsafe { command.pre_exec(prepare_child) };
    let mut child = command.spawn()?;
    drop((theirs, channel));

    let piped = |stream: Option<OwnedFd>| {
        let stream = stream.ok_or(io::ErrorKind::BrokenPipe)?;
        set_nonblocking(&stream)?;
        io::Result::Ok(stream)
    };
    control.set_nonblocking(true)?;
    Ok(Launched {
        pid: Pid::from_raw(i32::try_from(child.id()).map_err(|_| Errno::ESRCH)?),
        stdin: piped(child.stdin.take().map(OwnedFd::from))?,
        stdout: piped(child.stdout.take().map(OwnedFd::from))?,
        stderr: piped(child.stderr.take().map(OwnedFd::from))?,
        control,
    })
}

/// Makes reads and writes on our end of a pipe return at once.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The disks that are no memory: their images, or where the store serves them.
fn drives(images: &Prepared, opened: Option<&Opened>) -> Vec<Value> {
    let mut sockets = opened.into_iter().flat_map(|opened| &opened.sockets);
    let drives = images.drives.iter().filter(|drive| !drive.pmem);
    let numbered = drives.enumerate();
    numbered
        .map(|(index, drive)| {
            let stored = drive.is_stored().then(|| sockets.next()).flatten();
            json!({
                "drive_id": format!("disk{index}"),
                "path_on_host": stored.unwrap_or(&drive.path),
                "format": if stored.is_some() { "nbd" } else { drive.format.name() },
                "is_root_device": false,
                "is_read_only": drive.read_only,
            })
        })
        .collect()
}

/// How a VMM goes on from a snapshot: everything outside of the guest is where it is now.
fn going_on<'t>(
    load: &Load,
    drives: &[Value],
    images: &Prepared,
    outside: Outside<impl Iterator<Item = &'t Tap>>,
) -> String {
    let cards: Vec<_> = (outside.taps)
        .enumerate()
        .map(|(index, tap)| {
            let mut card = json!({ "iface_id": format!("net{index}"), "host_dev_name": tap.name });
            if load.shared {
                card["guest_mac"] = json!(tap.mac.to_string());
            }
            card
        })
        .collect();
    // A guest knows its card's address for good: a fork gets other cards.
    let cards_are = if load.shared {
        "network_replacements"
    } else {
        "network_overrides"
    };
    let drives: Vec<_> = drives
        .iter()
        .map(
            |drive| json!({ "drive_id": drive["drive_id"], "path_on_host": drive["path_on_host"] }),
        )
        .collect();
    let pmem = images.drives.iter().filter(|drive| drive.pmem);
    let pmem: Vec<_> = pmem
        .enumerate()
        .map(|(index, drive)| json!({ "id": format!("pmem{index}"), "path_on_host": drive.path }))
        .collect();
    let mut request = json!({
        "snapshot_path": load.state,
        "mem_backend": {
            "backend_type": if load.shared { "File" } else { "Uffd" },
            "backend_path": load.memory,
        },
        cards_are: cards,
        "drive_overrides": drives,
        "clock_realtime": true,
        // The next snapshot has only what has changed.
        "track_dirty_pages": true,
        "resume_vm": true,
    });
    if !pmem.is_empty() {
        request["pmem_overrides"] = json!(pmem);
    }
    // Snapshots of earlier versions have none.
    if let Some(Sockets { cid, path }) = outside.sockets.filter(|_| load.sockets) {
        request["vsock_override"] = json!({ "guest_cid": cid, "uds_path": path });
    }
    request.to_string()
}

/// The VMM's configuration file, in Firecracker's form.
fn configuration<'t>(
    guest: &GuestConfig,
    images: &Prepared,
    drives: &[Value],
    outside: Outside<impl Iterator<Item = &'t Tap>>,
) -> String {
    let cards: Vec<_> = (outside.taps)
        .enumerate()
        .map(|(index, tap)| {
            json!({
                "iface_id": format!("net{index}"),
                "host_dev_name": tap.name,
                "guest_mac": tap.mac.to_string(),
            })
        })
        .collect();
    let pmem: Vec<_> = images
        .drives
        .iter()
        .filter(|drive| drive.pmem)
        .enumerate()
        .map(|(index, drive)| {
            json!({
                "id": format!("pmem{index}"),
                "path_on_host": drive.path,
                "read_only": drive.read_only,
            })
        })
        .collect();
    let mut boot = json!({
        "kernel_image_path": images.kernel,
        "boot_args": images.own.as_ref().map_or(&guest.cmdline, |own| &own.cmdline),
    });
    if let Some(initrd) = &images.initrd {
        boot["initrd_path"] = json!(initrd);
    }
    let mut configuration = json!({
        "boot-source": boot,
        "drives": drives,
        "pmem": pmem,
        "machine-config": { "vcpu_count": guest.vcpus, "mem_size_mib": guest.memory_mib },
        "entropy": {},
    });
    if !cards.is_empty() {
        configuration["network-interfaces"] = json!(cards);
    }
    if let Some(Sockets { cid, path }) = outside.sockets {
        configuration["vsock"] = json!({ "guest_cid": cid, "uds_path": path });
    }
    configuration.to_string()
}
