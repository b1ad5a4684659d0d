//! One start of one VMM: from its first instruction to the guest's init.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::system::monotonic_us;
use crate::{LAB, MARKER};

/// Memory of the measured guest, in MiB.
const GUEST_MIB: u64 = 128;

/// The guest's command line, the same for every VMM.
const CMDLINE: &str = "console=ttyS0 quiet reboot=t panic=-1";

/// What one start cost, in microseconds of virtual time.
pub struct Sample {
    /// VMM's process start to the guest's first word on the console.
    marker_us: u64,
    /// The VMM's own part, up to the guest's first instruction, where the VMM tells.
    running_us: Option<u64>,
    /// To the boot timer, where the VMM has one.
    boot_timer_us: Option<u64>,
    /// Resident memory of the VMM that is not the guest's, while the guest lives, in KiB.
    overhead_kib: u64,
}

impl Sample {
    /// One line for the outside.
    pub fn to_json(&self, vmm: &str, round: u32) -> Value {
        json!({
            "vmm": vmm,
            "round": round,
            "marker_us": self.marker_us,
            "running_us": self.running_us,
            "boot_timer_us": self.boot_timer_us,
            "overhead_kib": self.overhead_kib,
        })
    }
}

/// Starts a guest under `daruma-vmm` with the given kernel file.
pub fn daruma(kernel: &str) -> Result<Sample> {
    let config = json!({
        "boot-source": {
            "kernel_image_path": format!("{LAB}/{kernel}"),
            "initrd_path": format!("{LAB}/guest.cpio"),
            "boot_args": format!("{CMDLINE} -- stay"),
        },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": GUEST_MIB },
        "drives": [],
    });
    let file = "/run/vm.json";
    fs::write(file, config.to_string())?;
    let (ours, theirs) = UnixStream::pair()?;
    let descriptor = theirs.as_raw_fd();
    let start = monotonic_us();
    let mut command = Command::new("/bin/daruma-vmm");
    command.args([
        "--id",
        "lab",
        "--no-api",
        "--boot-timer",
        "--config-file",
        file,
    ]);
    command.args(["--start-time-us", &start.to_string()]);
    command.args(["--control-fd", &descriptor.to_string()]);
    keep_open(&mut command, descriptor);
    let mut child = spawn(&mut command)?;
    drop(theirs);
    let (mut running_us, mut boot_timer_us) = (None, None);
    let mut events = BufReader::new(ours).lines();
    while boot_timer_us.is_none() {
        let line = events
            .next()
            .context("The VMM ended before its guest's init")??;
        let event: Value = serde_json::from_str(&line)?;
        match event["event"].as_str() {
            Some("running") => running_us = event["us"].as_u64(),
            Some("boot-timer") => boot_timer_us = event["us"].as_u64(),
            _ => bail!("The VMM says {line}"),
        }
    }
    let marker_us = wait_for_marker(&mut child, start)?;
    let overhead_kib = overhead_kib(child.id())?;
    end(child)?;
    Ok(Sample {
        marker_us,
        running_us,
        boot_timer_us,
        overhead_kib,
    })
}

/// Starts the same guest under QEMU's leanest machine type.
pub fn qemu() -> Result<Sample> {
    let start = monotonic_us();
    let mut command = Command::new("/peer/lib/ld-linux-x86-64.so.2");
    command
        .args(["--library-path", "/peer/lib", "/peer/qemu"])
        .args([
            "-M",
            "microvm,x-option-roms=off,isa-serial=on,rtc=on,acpi=off",
        ])
        .args([
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-smp",
            "1",
            "-m",
            &GUEST_MIB.to_string(),
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-serial",
            "stdio",
        ])
        .args(["-L", "/peer/share", "-kernel", &format!("{LAB}/vmlinux")])
        .args(["-initrd", &format!("{LAB}/guest.cpio")])
        .args(["-append", &format!("{CMDLINE} -- stay")]);
    let mut child = spawn(&mut command)?;
    let marker_us = wait_for_marker(&mut child, start)?;
    let overhead_kib = overhead_kib(child.id())?;
    end(child)?;
    Ok(Sample {
        marker_us,
        running_us: None,
        boot_timer_us: None,
        overhead_kib,
    })
}

fn spawn(command: &mut Command) -> Result<Child> {
    let program = command.get_program().to_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("Cannot start {}", program.display()))
}

/// Lets the child inherit `descriptor`, which std opens close-on-exec.
#[expect(
    unsafe_code,
    reason = "only fcntl(2) in the child can clear the flag for it alone"
)]
fn keep_open(command: &mut Command, descriptor: i32) {
    let clear = move || {
        // SAFETY: fcntl(2) is async-signal-safe and takes no pointer here.
        match unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure only calls an async-signal-safe function and allocates nothing.
    unsafe { command.pre_exec(clear) };
}

/// Reads the console until the guest's init has spoken; returns the microseconds since `start`.
fn wait_for_marker(child: &mut Child, start: u64) -> Result<u64> {
    let stdout: &mut ChildStdout = child.stdout.as_mut().context("No standard output")?;
    let mut text = Vec::new();
    let mut byte = [0; 256];
    while !text
        .windows(MARKER.len())
        .any(|window| window == MARKER.as_bytes())
    {
        let count = stdout.read(&mut byte)?;
        if count == 0 {
            bail!(
                "No init in the guest; it said: {}",
                String::from_utf8_lossy(&text)
            );
        }
        text.extend_from_slice(&byte[..count]);
    }
    Ok(monotonic_us() - start)
}

/// Resident memory of a process without the one mapping that is the guest's RAM, in KiB.
fn overhead_kib(pid: u32) -> Result<u64> {
    let mut total = 0;
    let mut is_guest = false;
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Size:"), Some(kib)) => is_guest = kib.parse::<u64>()? >= GUEST_MIB * 1024,
            (Some("Rss:"), Some(kib)) if !is_guest => total += kib.parse::<u64>()?,
            _ => {}
        }
    }
    Ok(total)
}

fn end(mut child: Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}
