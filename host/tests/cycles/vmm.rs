//! A VMM with the guest, as the supervisor starts it.
#![expect(unsafe_code, reason = "hands a descriptor to a child process")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use crate::Shape;
use crate::service::Service;

/// A guest that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The process.
pub struct Vmm {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

/// What the guest says of itself.
#[derive(Debug)]
pub struct Said {
    /// What it has counted to.
    pub count: u32,
    /// What its other processors have counted to, in the word that they count up first.
    pub first: u32,
    /// And in the one after.
    pub second: u32,
}

/// Where VMMs say what they do, which is shown if the test fails.
fn log(service: &Service) -> Stdio {
    let mut options = File::options();
    let file = options.append(true).create(true);
    Stdio::from(file.open(service.path("log")).unwrap())
}

impl Vmm {
    /// Starts a guest with what is `opened` for it.
    pub fn start(service: &Service, opened: &Value, shape: Shape, kernel: &Path) -> Self {
        let drive = json!({
            "drive_id": "d", "path_on_host": opened["sockets"][0], "format": "nbd", "is_root_device": false
        });
        let (option, text) = match &opened["load"] {
            Value::Null => {
                let config = json!({
                    "boot-source": { "kernel_image_path": kernel, "boot_args": "cmdline" },
                    "machine-config": { "vcpu_count": shape.vcpus, "mem_size_mib": 4 },
                    "drives": [drive],
                });
                ("--config-file", config)
            }
            load => {
                let request = json!({
                    "snapshot_path": load["state"],
                    "mem_backend": { "backend_type": "Uffd", "backend_path": load["memory"] },
                    "drive_overrides": [{ "drive_id": "d", "path_on_host": drive["path_on_host"] }],
                    "track_dirty_pages": true,
                    "resume_vm": true,
                });
                ("--load-file", request)
            }
        };
        let file = service.path("vmm.json");
        fs::write(&file, text.to_string()).unwrap();
        let channel = service.channel();
        let fd = channel.as_raw_fd();
        let mut command = Command::new(env!("CARGO_BIN_EXE_daruma"));
        command
            .arg0("daruma-vmm")
            .args(["--id", "counter", "--no-api", "--jail", option])
            .arg(&file)
            .args(["--store-fd", &fd.to_string()])
            .args((opened["load"].is_null() && shape.pci).then_some("--enable-pci"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log(service));
        let keep = move || {
            // SAFETY: `channel` is open until the process was started.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            Ok(())
        };
        // SAFETY: the closure makes one system call, which is safe after fork.
        unsafe { command.pre_exec(keep) };
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self {
            child,
            stdin,
            stdout,
        }
    }

    /// Types `bytes` in.
    pub fn say(&mut self, bytes: &[u8]) {
        self.stdin.write_all(bytes).unwrap();
    }

    /// Has the guest compare its memory with its disk.
    pub fn check(&mut self, nonce: &[u8; 4]) -> Said {
        self.say(b"v");
        let mut said = [0; 17];
        let mut read = 0;
        while read < said.len() {
            let mut fds = [PollFd::new(
                std::os::fd::AsFd::as_fd(&self.stdout),
                PollFlags::POLLIN,
            )];
            let timeout = PollTimeout::try_from(PATIENCE).unwrap();
            let ready = poll(&mut fds, timeout).unwrap();
            assert_eq!(ready, 1, "the guest hangs: it has said {:?}", &said[..read]);
            let more = self.stdout.read(&mut said[read..]).unwrap();
            assert!(more > 0, "the VMM has ended: {:?}", self.child.wait());
            read += more;
        }
        let words: [u32; 4] = std::array::from_fn(|index| {
            u32::from_le_bytes(said[1 + 4 * index..][..4].try_into().unwrap())
        });
        let [kept, count, second, first] = words;
        let what = char::from(said[0]);
        assert_eq!(what, 'k', "the guest says: {what} {words:x?}");
        assert_eq!(kept, u32::from_be_bytes(*nonce), "the nonce is another one");
        Said {
            count,
            first,
            second,
        }
    }

    /// Kills it, as a host that falls does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
