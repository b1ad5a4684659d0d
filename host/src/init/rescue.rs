//! Process 1 must not end: the kernel would panic. If the supervisor falls nevertheless, it stands up again as a new
//! program in the same process, which goes on with the guests of the old one ([`crate::handover`]).
#![expect(
    unsafe_code,
    reason = "a signal handler that becomes another program has nothing but system calls"
)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt::Display;
use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, fs, panic, ptr};

use nix::libc;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, sigaction, sigprocmask,
};
use nix::unistd::Pid;

use crate::{clock, handover};

/// Environment variables: how often process 1 fell, and the descriptor of what the life before has handed over.
const COUNT: &str = "DARUMA_FALLS";
const HANDOVER: &str = "DARUMA_HANDOVER";
/// After so many in a row the machine starts anew from firmware.
const MAX_FALLS: u32 = 3;
/// A life that has lasted so long has not fallen of what the one before fell of.
const LASTS: Duration = Duration::from_secs(600);
/// Before the machine starts anew, so that somebody may read why.
const READ_IT: u32 = 10;
/// Bytes for the signal handler, and the kernel's frame on top of which it runs.
const STACK: usize = 64 << 10;
/// What ends a program that has done what it must not.
const FATAL: [Signal; 5] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGABRT,
];

/// All that the next life needs, made while there is memory for it.
struct Next {
    /// Began by the clock of [`clock::now`].
    begun: Duration,
    name: CString,
    /// `COUNT=…` if this life falls soon, and if it falls late.
    soon: CString,
    late: CString,
    /// This is the last one.
    last: bool,
}

static NEXT: OnceLock<Next> = OnceLock::new();

/// How often process 1 fell since the kernel started, or since it last stood for long.
pub fn falls() -> u32 {
    let count = env::var(COUNT).ok();
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// What the life before has handed over, if this is not the first and that one could.
pub fn handed_over() -> Option<Vec<u8>> {
    let text: RawFd = env::var(HANDOVER).ok()?.parse().ok()?;
    handover::read(text).ok()
}

/// Makes every panic, and every signal that would end it, stand up again.
pub fn install() {
    let falls = falls() + 1;
    let count = |falls: u32| CString::new(format!("{COUNT}={falls}")).unwrap_or_default();
    let name = env::args().next().unwrap_or_default();
    let next = Next {
        begun: clock::now(),
        name: CString::new(name).unwrap_or_default(),
        soon: count(falls),
        late: count(1),
        last: falls >= MAX_FALLS,
    };
    let _ = NEXT.set(next);
    panic::set_hook(Box::new(|info| stand_up(&info)));
    let all = FATAL.into_iter().collect::<SigSet>();
    // Of the life before: its handler was at work.
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&all), None);
    stand_elsewhere();
    let flags = SaFlags::SA_ONSTACK | SaFlags::SA_NODEFER;
    let action = SigAction::new(SigHandler::Handler(fell), flags, SigSet::empty());
    for signal in FATAL {
        // SAFETY: the handler makes system calls only, reads what was made before it was installed, and never returns.
        let _ = unsafe { sigaction(signal, &action) };
    }
}

/// Has the handler of this thread's signals run on a stack of its own: this one may have overflowed.
fn stand_elsewhere() {
    let memory = vec![0_u8; STACK].leak();
    let stack = libc::stack_t {
        ss_sp: memory.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: STACK,
    };
    // SAFETY: it reads `stack`; the memory is never given back, and nothing else uses it.
    unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) };
}

/// Ends what the life before has left running, but for the sessions of `heirs`.
pub fn end_all_but(heirs: &[Pid]) {
    if heirs.is_empty() {
        // All processes but this one.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        return;
    }
    for (process, session) in crate::processes::sessions() {
        // The kernel's threads are in none.
        if session.as_raw() > 1 && !heirs.contains(&session) {
            let _ = kill(process, Signal::SIGKILL);
        }
    }
}

/// Says what happened on the kernel's console and begins anew.
pub fn stand_up(reason: &dyn Display) -> ! {
    say(format!("host: process 1 fell: {reason}").as_bytes());
    next_life()
}

extern "C" fn fell(signal: c_int) {
    // SAFETY: the call takes nothing.
    if unsafe { libc::getpid() } != 1 {
        // A child that is not another program yet.
        // SAFETY: the call takes a number only.
        unsafe { libc::_exit(128 + signal) };
    }
    say(match signal {
        libc::SIGSEGV => &b"host: process 1 fell: SIGSEGV"[..],
        libc::SIGBUS => b"host: process 1 fell: SIGBUS",
        libc::SIGABRT => b"host: process 1 fell: SIGABRT",
        _ => b"host: process 1 fell of a signal",
    });
    next_life()
}

/// Becomes the same program anew. May be called by a signal handler.
fn next_life() -> ! {
    if let Some(next) = NEXT.get() {
        let stood = clock::now().saturating_sub(next.begun) >= LASTS;
        if stood || !next.last {
            let count = if stood { &next.late } else { &next.soon };
            let mut number = [0; 32];
            let handover = handover::keep_open().and_then(|text| variable(text, &mut number));
            execute(&next.name, count, handover);
            say(b"host: cannot start again");
        }
    }
    // SAFETY: the call takes nothing.
    unsafe { libc::sync() };
    say(b"host: the machine starts anew in 10 s");
    // SAFETY: the call takes a number only.
    unsafe { libc::sleep(READ_IT) };
    // SAFETY: the call takes a number only.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    // Nothing is left to try; at least the kernel lives on and so do the guests.
    loop {
        // SAFETY: the call takes nothing.
        unsafe { libc::pause() };
    }
}

/// `HANDOVER=text`, without allocating.
fn variable(text: RawFd, buffer: &mut [u8; 32]) -> Option<&CStr> {
    use std::io::Write;
    let mut rest = &mut buffer[..];
    write!(rest, "{HANDOVER}={text}\0").ok()?;
    CStr::from_bytes_until_nul(buffer).ok()
}

/// Returns if it cannot be done.
fn execute(name: &CStr, count: &CStr, handover: Option<&CStr>) {
    let arguments: [*const c_char; 2] = [name.as_ptr(), ptr::null()];
    let environment: [*const c_char; 5] = [
        c"HOME=/".as_ptr(),
        c"TERM=linux".as_ptr(),
        count.as_ptr(),
        handover.map_or(ptr::null(), CStr::as_ptr),
        ptr::null(),
    ];
    let program = c"/proc/self/exe".as_ptr();
    // SAFETY: both lists end with a null pointer, and all strings outlive the call.
    unsafe { libc::execve(program, arguments.as_ptr(), environment.as_ptr()) };
}

/// The console may be what fell: this goes around it, to standard error, which is the kernel's console.
fn say(line: &[u8]) {
    for part in [&b"\r\n"[..], line, b"\r\n"] {
        // SAFETY: it reads as many bytes as there are.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
}

/// The flash copies and mounts of the life before, if it has handed its guests over.
pub fn remove_copies(folder: &std::path::Path) {
    // Whoever has them open keeps them.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
}
