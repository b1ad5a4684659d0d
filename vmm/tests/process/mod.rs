//! Starting the VMM as the host does, and collecting what it says.
#![expect(unsafe_code, reason = "hands a descriptor to a child process")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

use tempfile::NamedTempFile;

/// The descriptor that the child finds the control socket at.
const CONTROL_FD: i32 = 3;

/// What one run of the VMM left behind.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub events: Vec<serde_json::Value>,
}

/// Whether there is a KVM. Without one the test fails, unless the user knows.
pub fn have_kvm() -> bool {
    if std::path::Path::new("/dev/kvm").exists() {
        return true;
    }
    assert_eq!(
        std::env::var("DARUMA_NO_KVM").as_deref(),
        Ok("1"),
        "/dev/kvm does not exist; DARUMA_NO_KVM=1 skips the tests that need it"
    );
    println!("skipped: there is no /dev/kvm");
    false
}

/// Who may make taps and start virtiofsd. As others a guest has fewer devices.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A configuration and the kernel image it names.
pub struct Config {
    pub text: String,
    _kernel: NamedTempFile,
}

/// A configuration with `kernel`; `more` are further sections, with a comma in front.
pub fn config(kernel: NamedTempFile, more: &str, memory_mib: u32) -> Config {
    let text = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{}", "boot_args": "cmdline"}},
            "machine-config": {{"vcpu_count": 1, "mem_size_mib": {memory_mib}}}{more}}}"#,
        kernel.path().display()
    );
    Config {
        text,
        _kernel: kernel,
    }
}

/// Runs a guest; `actions` are sent when it runs.
pub fn run(config: &Config, actions: &[&str]) -> Run {
    start(config, actions, b"", &[])
}

/// Runs a guest; the VMM gets these further `arguments`.
pub fn run_with_arguments(config: &Config, arguments: &[&str]) -> Run {
    start(config, &[], b"", arguments)
}

/// Runs a guest with `input` on its serial port.
pub fn run_with_input(config: &Config, input: &[u8]) -> Run {
    start(config, &[], input, &[])
}

/// Gives the open descriptor `fd` the number that the child expects, and lets it live through `exec`.
fn place_control_socket(fd: i32) -> std::io::Result<()> {
    let result = if fd == CONTROL_FD {
        // SAFETY: changes a flag of an open descriptor.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }
    } else {
        // SAFETY: in the child, nothing else uses the number yet that is written over.
        unsafe { libc::dup2(fd, CONTROL_FD) }
    };
    if result < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn start(config: &Config, actions: &[&str], input: &[u8], arguments: &[&str]) -> Run {
    // In the jail, as the host starts it.
    let arguments = [&["--jail"], arguments].concat();
    converse(config, &arguments, input, |event, parent| {
        if event["event"] == "running" {
            actions.iter().for_each(|action| parent.say(action));
        }
    })
}

/// The parent's end of a VMM's control socket.
pub struct Parent {
    socket: UnixStream,
    child: u32,
}

impl Parent {
    /// Sends one action.
    pub fn say(&mut self, line: &str) {
        writeln!(self.socket, "{line}").unwrap();
    }

    /// The process in the jail.
    pub fn jailed(&self) -> i32 {
        let children = format!("/proc/{0}/task/{0}/children", self.child);
        let children = std::fs::read_to_string(children).unwrap();
        let first = children.split_whitespace().next();
        first.expect("a process in the jail").parse().unwrap()
    }

    /// How many files, events and sockets the VMM has open.
    pub fn descriptors(&self) -> usize {
        self.count("fd")
    }

    /// How many threads the VMM has.
    pub fn threads(&self) -> usize {
        self.count("task")
    }

    fn count(&self, what: &str) -> usize {
        let folder = format!("/proc/{}/{what}", self.child);
        std::fs::read_dir(folder).unwrap().count()
    }
}

/// Runs a guest, in the jail only if the `arguments` say so; `answer` says what to do at each event.
pub fn talk(
    config: &Config,
    arguments: &[&str],
    answer: impl FnMut(&serde_json::Value, &mut Parent),
) -> Run {
    converse(config, arguments, b"", answer)
}

/// A VMM that does not outlive its test, should that fail in between.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It has ended already, if all is well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn converse(
    config: &Config,
    arguments: &[&str],
    input: &[u8],
    mut answer: impl FnMut(&serde_json::Value, &mut Parent),
) -> Run {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &config.text).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = crate::trace::vmm();
    command
        .args([
            "--id",
            "test",
            "--no-api",
            "--control-fd",
            "3",
            "--config-file",
        ])
        .arg(file.path())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let fd = theirs.as_raw_fd();
    // SAFETY: the closure makes one system call, which is safe after fork.
    unsafe { command.pre_exec(move || place_control_socket(fd)) };
    let mut child = Ended(command.spawn().unwrap());
    drop(theirs);
    let child = &mut child.0;
    child.stdin.take().unwrap().write_all(input).unwrap();

    let mut events = Vec::new();
    let reader = BufReader::new(ours.try_clone().unwrap());
    let mut parent = Parent {
        socket: ours,
        child: child.id(),
    };
    for line in reader.lines() {
        // A VMM that ends with actions unread resets the connection.
        let Ok(line) = line else { break };
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        answer(&event, &mut parent);
        events.push(event);
    }
    let mut stdout = Vec::new();
    let mut stderr = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut stdout)
        .unwrap();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    let code = child.wait().unwrap().code();
    Run {
        code,
        stdout,
        stderr,
        events,
    }
}
