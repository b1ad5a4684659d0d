//! The few system calls that PID 1 needs.

#![expect(
    unsafe_code,
    reason = "mount(2) and reboot(2) have no safe wrapper in std"
)]

use std::ffi::CString;
use std::fs;
use std::io;

use anyhow::{Context, Result};

/// The guests' disk: 64 MiB, all of which the host keeps in memory.
const DISK_BYTES: usize = 64 << 20;

/// Mounts what a VMM needs: proc, sys, dev, run, and the peer's disk if there is one.
pub fn mount_all() -> Result<()> {
    if fs::exists("/proc/self")? {
        return Ok(());
    }
    for (kind, source, target) in [
        ("proc", "proc", "/proc"),
        ("sysfs", "sys", "/sys"),
        ("devtmpfs", "dev", "/dev"),
        ("tmpfs", "run", "/run"),
    ] {
        mount(kind, source, target)?;
    }
    // Nothing is written back while VMMs are measured: the laboratory's own disk is not what is compared.
    for name in ["dirty_ratio", "dirty_background_ratio"] {
        fs::write(format!("/proc/sys/vm/{name}"), "90")?;
    }
    fs::write("/proc/sys/vm/dirty_writeback_centisecs", "0")?;
    if fs::exists("/dev/vda")? {
        mount("ext4", "/dev/vda", "/peer")?;
    }
    Ok(())
}

/// Mounts what a guest's work needs.
pub fn mount_devices() -> Result<()> {
    mount("devtmpfs", "dev", "/dev")
}

/// Makes the guests' disk, if it is not there.
pub fn make_disk(path: &str) -> Result<()> {
    if !fs::exists(path)? {
        fs::write(path, vec![0xa5; DISK_BYTES]).with_context(|| format!("Cannot write {path}"))?;
    }
    Ok(())
}

fn mount(kind: &str, source: &str, target: &str) -> Result<()> {
    fs::create_dir_all(target)?;
    let [source_c, target_c, kind_c] = [source, target, kind].map(CString::new);
    let (source_c, target_c, kind_c) = (source_c?, target_c?, kind_c?);
    // SAFETY: the three strings are NUL-terminated and outlive the call; `data` may be null.
    let result = unsafe {
        libc::mount(
            source_c.as_ptr(),
            target_c.as_ptr(),
            kind_c.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("Cannot mount {source} ({kind}) on {target}"));
    }
    Ok(())
}

/// Microseconds of CLOCK_MONOTONIC, the clock of `--start-time-us`.
pub fn monotonic_us() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid timespec to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000
}

/// Has the process `pid` stand still.
pub fn stop(pid: u32) -> Result<()> {
    // SAFETY: kill(2) takes two numbers.
    if unsafe { libc::kill(pid.cast_signed(), libc::SIGSTOP) } != 0 {
        return Err(io::Error::last_os_error()).context("Cannot stop a VMM");
    }
    Ok(())
}

/// Waits until the console has said everything: what is still in the terminal's buffer is lost when the machine goes off.
fn drain_console() {
    // SAFETY: tcdrain(3) takes a number.
    unsafe { libc::tcdrain(libc::STDOUT_FILENO) };
}

/// Powers the machine off, or resets it where that is impossible.
pub fn power_off() -> ! {
    drain_console();
    for command in [libc::RB_POWER_OFF, libc::RB_AUTOBOOT] {
        // SAFETY: reboot(2) with a plain command takes no pointer.
        unsafe { libc::reboot(command) };
    }
    loop {
        std::thread::park();
    }
}
