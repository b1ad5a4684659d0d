//! The recovery shell: the root file system of the flash guest `pocket` serves the host too, so that flash holds one set
//! of tools.
#![expect(
    unsafe_code,
    reason = "a terminal must be taken and the root changed between fork and exec"
)]

mod loop_device;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc::TIOCSCTTY;
use nix::mount::{MsFlags, mount};
use nix::pty::openpty;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, read, setsid, write};
use thiserror::Error;

use crate::flash::{Flash, FlashError};
use crate::supervisor::set_nonblocking;

/// Flash file that the shell's tools come from.
const IMAGE: &str = "guest/pocket/root.erofs";
const ROOT: &str = "/run/daruma/shell";
/// Where the shell finds this program: in what both roots have.
const BIN: &str = "/run/daruma/bin";
/// The host's program wherever it lies: process 1 runs it.
const PROGRAM: &str = "/proc/1/exe";
/// The host's file systems that its tools are for.
const SHARED: [&str; 4] = ["proc", "sys", "dev", "run"];

nix::ioctl_write_int_bad!(take_terminal, TIOCSCTTY);

/// Why there is no shell.
#[derive(Debug, Error)]
pub enum ShellError {
    /// Its tools are not in flash, or damaged.
    #[error("its tools come from {IMAGE} in flash")]
    Flash(#[from] FlashError),
    /// A step on the way failed.
    #[error("cannot {step}")]
    Step {
        /// What was tried.
        step: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// A running shell on a terminal of its own.
#[derive(Debug)]
pub struct Shell {
    pid: Pid,
    terminal: OwnedFd,
}

impl Shell {
    /// Mounts the tools, if that was not done before, and starts the shell.
    pub fn open(flash: &Flash) -> Result<Self, ShellError> {
        let root = Path::new(ROOT);
        if !root.join("bin").exists() {
            mount_tools(&flash.file(IMAGE)?, root)?;
        }
        start(root).map_err(|source| ShellError::Step {
            step: "start /bin/sh".to_owned(),
            source,
        })
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// To wait for output.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.terminal.as_fd()
    }

    /// What it printed; `None` once it is gone.
    pub fn read(&mut self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 4096];
        match read(&self.terminal, &mut bytes) {
            Ok(0) => None,
            Ok(length) => {
                bytes.truncate(length);
                Some(bytes)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Some(Vec::new()),
            // EIO: nobody has the other side open any more.
            Err(_) => None,
        }
    }

    /// Types; false if the terminal is full.
    pub fn type_in(&mut self, bytes: &[u8]) -> bool {
        write(&self.terminal, bytes) == Ok(bytes.len())
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = killpg(self.pid, Signal::SIGHUP);
    }
}

fn mount_tools(image: &Path, root: &Path) -> Result<(), ShellError> {
    let step = |step: &str, path: &Path| {
        let step = format!("{step} {}", path.display());
        move |source| ShellError::Step { step, source }
    };
    fs::create_dir_all(root).map_err(step("create", root))?;
    let device = loop_device::attach(image).map_err(step("make a block device of", image))?;
    let flags = MsFlags::MS_RDONLY;
    mount(Some(&device), root, Some("erofs"), flags, None::<&str>)
        .map_err(|error| step("mount", &device)(error.into()))?;
    for name in SHARED {
        let (from, to): (PathBuf, PathBuf) = (Path::new("/").join(name), root.join(name));
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(&from), &to, None::<&str>, flags, None::<&str>)
            .map_err(|error| step("bind", &to)(error.into()))?;
    }
    let bin = Path::new(BIN);
    fs::create_dir_all(bin).map_err(step("create", bin))?;
    symlink(PROGRAM, bin.join("daruma")).map_err(step("make a link in", bin))
}

fn start(root: &Path) -> io::Result<Shell> {
    let pty = openpty(None, None)?;
    fcntl(&pty.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    set_nonblocking(&pty.master)?;
    let root = root.to_owned();
    let mut command = Command::new("/bin/sh");
    command
        .arg0("-sh")
        .env_clear()
        .envs([
            ("PATH", "/bin:/sbin:/usr/bin:/usr/sbin:/run/daruma/bin"),
            ("TERM", "linux"),
            ("HOME", "/"),
        ])
        .stdin(pty.slave.try_clone()?)
        .stdout(pty.slave.try_clone()?)
        .stderr(pty.slave);
    let prepare_child = move || {
        setsid()?;
        // SAFETY: standard input is the terminal by now, and the argument asks for nothing but that.
        unsafe { take_terminal(0, 0) }?;
        std::os::unix::fs::chroot(&root)?;
        std::env::set_current_dir("/")
    };
    // SAFETY: between fork and exec the closure makes system calls only; paths this short are not allocated.
    unsafe { command.pre_exec(prepare_child) };
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(|_| Errno::ESRCH)?;
    Ok(Shell {
        pid: Pid::from_raw(pid),
        terminal: pty.master,
    })
}
