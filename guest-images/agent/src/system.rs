//! What the agent asks of the kernel.
#![expect(
    unsafe_code,
    reason = "locked memory, signals and polling have no safe form in libc"
)]

use std::ffi::CStr;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::ptr;
use std::time::Duration;

/// Makes sure that this program is there when others are not: its memory is in memory, its turn comes before theirs, and
/// it is the last that is killed for memory. What is refused it does without.
pub fn settle() {
    // SAFETY: the call takes numbers only.
    unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) };
    let parameter = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: it reads `parameter`.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
}

/// Makes a child like any other program.
pub fn become_ordinary() {
    // SAFETY: a plain structure, which the next call fills.
    let mut none: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: it writes to `none`.
    unsafe { libc::sigemptyset(&raw mut none) };
    // SAFETY: it reads `none`.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
    let path = c"/proc/self/oom_score_adj".as_ptr();
    // SAFETY: the path is a string that ends with a zero.
    let file = unsafe { libc::open(path, libc::O_WRONLY | libc::O_CLOEXEC) };
    if file >= 0 {
        // SAFETY: it reads one byte.
        unsafe { libc::write(file, c"0".as_ptr().cast(), 1) };
    }
}

/// Why the last call failed.
pub fn errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// How many processors there are.
pub fn processors() -> u32 {
    // SAFETY: the call takes a number only.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u32::try_from(count).unwrap_or(1).max(1)
}

/// Whether there is a program at `path`.
pub fn is_program(path: &CStr) -> bool {
    // SAFETY: the path is a string that ends with a zero.
    unsafe { libc::access(path.as_ptr(), libc::X_OK) == 0 }
}

/// Whether the root file system can be written to. One that is full can.
pub fn root_is_writable() -> bool {
    // SAFETY: a plain structure of numbers.
    let mut info: libc::statvfs = unsafe { mem::zeroed() };
    // SAFETY: it writes to `info`.
    let told = unsafe { libc::statvfs(c"/".as_ptr(), &raw mut info) };
    told == 0 && info.f_flag & libc::ST_RDONLY == 0
}

/// Signals, read between other things.
pub struct Signals {
    fd: RawFd,
}

impl Signals {
    /// Those that say that this program, or a child, ends.
    pub fn open() -> Self {
        // SAFETY: a plain structure, which the next call fills.
        let mut set: libc::sigset_t = unsafe { mem::zeroed() };
        // SAFETY: it writes to `set`.
        unsafe { libc::sigemptyset(&raw mut set) };
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD] {
            // SAFETY: it writes to `set`.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: it reads `set`.
        unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
        let flags = libc::SFD_NONBLOCK | libc::SFD_CLOEXEC;
        // SAFETY: it reads `set`.
        let fd = unsafe { libc::signalfd(-1, &raw const set, flags) };
        Self { fd }
    }

    /// For polling.
    pub fn fd(&self) -> Option<RawFd> {
        (self.fd >= 0).then_some(self.fd)
    }

    /// Takes the signals that have come; whether this program is to end.
    pub fn take_end(&self) -> bool {
        let mut end = false;
        loop {
            // SAFETY: a plain structure of numbers.
            let mut info: libc::signalfd_siginfo = unsafe { mem::zeroed() };
            let size = size_of_val(&info);
            // SAFETY: it writes to `info`, of that size.
            let got = unsafe { libc::read(self.fd, (&raw mut info).cast(), size) };
            if usize::try_from(got) != Ok(size) {
                return end;
            }
            end |= info.ssi_signo != libc::SIGCHLD.unsigned_abs();
        }
    }
}

/// Waits until one of `fds` can be read, `limit` at most.
pub fn wait_for(fds: [Option<RawFd>; 2], limit: Duration) {
    let mut all = fds.map(|fd| libc::pollfd {
        // Negative ones are passed over.
        fd: fd.unwrap_or(-1),
        events: libc::POLLIN,
        revents: 0,
    });
    let count = all.len() as libc::nfds_t;
    // Rounded up: no spinning through the last millisecond.
    let ms = i32::try_from(limit.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
    // SAFETY: it writes to `all`, which has `count` entries.
    unsafe { libc::poll(all.as_mut_ptr(), count, ms) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_what_is_none() {
        assert!(is_program(c"/bin/sh"));
        assert!(!is_program(c"/etc/passwd"));
        assert!(!is_program(c"/no/such/program"));
    }
}
