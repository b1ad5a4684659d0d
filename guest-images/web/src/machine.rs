//! What PID 1 asks of the kernel and the machine: mounts, the console, the ready signal, power.
#![expect(
    unsafe_code,
    reason = "mount(2) and reboot(2) have no safe form in libc"
)]

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr;
use std::thread;
use std::time::Duration;

/// Firecracker's boot-timer port: the VMM notes the time when the guest writes [`BOOT_TIMER_MAGIC`] to it.
const BOOT_TIMER_PORT: u64 = 0x3f0;
const BOOT_TIMER_MAGIC: u8 = 123;

/// Mounts `/dev`, `/proc` and `/sys`; returns a sentence for each that failed.
pub fn mount_pseudo_file_systems() -> Vec<String> {
    [
        (c"devtmpfs", c"/dev"),
        (c"proc", c"/proc"),
        (c"sysfs", c"/sys"),
    ]
    .into_iter()
    .filter_map(|(kind, target)| {
        let error = mount(kind, target).err()?;
        Some(format!(
            "could not mount {} on {}: {error}",
            kind.to_string_lossy(),
            target.to_string_lossy()
        ))
    })
    .collect()
}

fn mount(kind: &CStr, target: &CStr) -> io::Result<()> {
    if let Ok(path) = target.to_str() {
        fs::create_dir_all(path)?;
    }
    // SAFETY: all pointers are to NUL-terminated strings that outlive the call, and these file systems take no data.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            0,
            ptr::null(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The kernel's console, or nothing if there is none: a server without a console still serves.
pub struct Console(Option<File>);

impl Console {
    /// Opens `/dev/console` by name: an initial RAM disk without device nodes leaves PID 1 without standard output.
    pub fn open() -> Self {
        Self(OpenOptions::new().write(true).open("/dev/console").ok())
    }

    /// Writes one line. A failed write is dropped: there is no second place to report it.
    pub fn say(&mut self, line: &str) {
        if let Some(file) = &mut self.0 {
            file.write_all(format!("{line}\n").as_bytes()).ok();
        }
    }
}

/// Tells the VMM that this guest is up.
pub fn signal_ready() -> io::Result<()> {
    let ports = OpenOptions::new().write(true).open("/dev/port")?;
    ports.write_all_at(&[BOOT_TIMER_MAGIC], BOOT_TIMER_PORT)
}

/// What the page tells about this machine.
pub struct Facts {
    /// The host name: `hostname=` on the kernel's command line.
    pub name: String,
    /// The kernel's release.
    pub kernel: String,
    /// Time since the kernel started.
    pub uptime: Duration,
    /// CPUs that are online.
    pub cpus: usize,
}

/// Asks the kernel.
pub fn facts() -> Facts {
    let kernel = |file: &str| {
        let text = fs::read_to_string(Path::new("/proc/sys/kernel").join(file));
        text.unwrap_or_default().trim().to_owned()
    };
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split('.').next().and_then(|text| text.parse().ok());
    Facts {
        // The kernel's word for "no name given".
        name: Some(kernel("hostname"))
            .filter(|name| !name.is_empty() && name != "(none)")
            .unwrap_or_else(|| "web".to_owned()),
        kernel: kernel("osrelease"),
        uptime: Duration::from_secs(seconds.unwrap_or(0)),
        // PID 1 may run on every CPU that is online.
        cpus: thread::available_parallelism().map_or(1, usize::from),
    }
}

/// Powers the machine off. Returns only if the kernel refused, and then tries a restart as the next best.
pub fn power_off() {
    Console::open().say("web: power button pressed, powering off");
    for command in [
        libc::LINUX_REBOOT_CMD_POWER_OFF,
        libc::LINUX_REBOOT_CMD_RESTART,
    ] {
        // SAFETY: takes a number only. Nothing of this process has to survive it; no file system is writable.
        unsafe { libc::reboot(command) };
    }
}
