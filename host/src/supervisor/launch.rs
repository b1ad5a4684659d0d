//! Starting one VMM process.
#![expect(
    unsafe_code,
    reason = "a session of its own must be made between fork and exec"
)]

use std::ffi::OsStr;
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
use serde_json::json;
use thiserror::Error;

use crate::cgroups;
use crate::clock;
use crate::config::{GuestConfig, Transport};
use crate::images::Prepared;
use crate::net::Tap;

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

/// Starts `program` as the VMM of a guest. Its files go to a folder of its own below `run_folder`.
///
/// # Errors
/// The configuration cannot be written or the process not be started.
pub fn launch<'t>(
    program: &Path,
    run_folder: &Path,
    guest: &GuestConfig,
    images: &Prepared,
    taps: impl Iterator<Item = &'t Tap>,
) -> Result<Launched, LaunchError> {
    let start_time_us = clock::now().as_micros();
    let folder = run_folder.join(&guest.name);
    let path = folder.join("vm.json");
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&path, configuration(guest, images, taps)))
        .map_err(|source| LaunchError::Config {
            path: path.clone(),
            source,
        })?;
    let mut command = Command::new(program);
    command
        .arg0(VMM_NAME)
        .args(["--id", &guest.name, "--no-api", "--config-file"])
        .arg(&path)
        .args(["--start-time-us", &start_time_us.to_string()])
        .args((guest.transport == Transport::Pci).then_some("--enable-pci"))
        .arg("--jail")
        .env_clear()
        .current_dir("/");
    // Without one the VMM says in its log that it is not limited.
    if let Ok(cgroup) = cgroups::folder(&guest.name) {
        command.arg("--jail-cgroup").arg(cgroup);
    }
    spawn(&mut command).map_err(|source| LaunchError::Spawn {
        program: program.to_owned(),
        source,
    })
}

fn spawn(command: &mut Command) -> io::Result<Launched> {
    let (control, theirs) = UnixStream::pair()?;
    let inherited = theirs.as_raw_fd();
    command
        .args([
            OsStr::new("--control-fd"),
            OsStr::new(&inherited.to_string()),
        ])
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
        // This one is meant to stay.
        // SAFETY: `theirs` is open in the parent until `spawn` returns, so the number is valid in the child.
        let theirs = unsafe { std::os::fd::BorrowedFd::borrow_raw(inherited) };
        fcntl(theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes three system calls and allocates nothing.
    unsafe { command.pre_exec(prepare_child) };
    let mut child = command.spawn()?;
    drop(theirs);

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

/// The VMM's configuration file, in Firecracker's form.
fn configuration<'t>(
    guest: &GuestConfig,
    images: &Prepared,
    taps: impl Iterator<Item = &'t Tap>,
) -> String {
    let cards: Vec<_> = taps
        .enumerate()
        .map(|(index, tap)| {
            json!({
                "iface_id": format!("net{index}"),
                "host_dev_name": tap.name,
                "guest_mac": tap.mac.to_string(),
            })
        })
        .collect();
    let drives: Vec<_> = images
        .drives
        .iter()
        .filter(|drive| !drive.pmem)
        .enumerate()
        .map(|(index, drive)| {
            json!({
                "drive_id": format!("disk{index}"),
                "path_on_host": drive.path,
                "format": drive.format.name(),
                "is_root_device": false,
                "is_read_only": drive.read_only,
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
    configuration.to_string()
}
