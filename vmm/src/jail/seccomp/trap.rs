//! The last words of a process whose thread made a call that its filter denies.
#![expect(unsafe_code, reason = "a signal handler that makes system calls only")]

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use libc::{c_int, c_void, siginfo_t};

use super::ThreadKind;

/// Exit code of a process that made a call which a filter denies; Firecracker's.
pub const CODE_DENIED: u8 = 148;

thread_local! {
    /// Constant initialization and no destructor, so that a signal handler may use it.
    static KIND: Cell<ThreadKind> = const { Cell::new(ThreadKind::Process) };
}

/// Where the log is.
static LOG: AtomicI32 = AtomicI32::new(libc::STDERR_FILENO);
/// The parent's control socket, if there is one.
static PARENT: AtomicI32 = AtomicI32::new(-1);

/// This thread is of `kind`.
pub(super) fn set_kind(kind: ThreadKind) {
    KIND.set(kind);
}

/// Last words go to the log at this descriptor, which stays open.
pub fn set_log(fd: c_int) {
    LOG.store(fd, Ordering::Relaxed);
}

/// Where last words go.
pub fn log() -> c_int {
    LOG.load(Ordering::Relaxed)
}

/// Last words go to the parent at this descriptor, which stays open.
pub fn set_parent(fd: c_int) {
    PARENT.store(fd, Ordering::Relaxed);
}

pub(super) fn install() -> io::Result<()> {
    // SAFETY: a `sigaction` is plain data, of which all zeroes are a value.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_denied as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and does only what a handler may.
    let result = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_denied(_: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // The kernel's layout: signo, errno, code, padding, the address of the call, its number.
    const NUMBER_AT: usize = 24;
    let number = info.cast::<u8>().wrapping_add(NUMBER_AT).cast::<c_int>();
    // SAFETY: the kernel hands a whole siginfo_t to a handler with SA_SIGINFO.
    let number = unsafe { number.read_unaligned() };
    // SAFETY: the kernel hands a whole ucontext_t to a handler with SA_SIGINFO.
    let registers = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    // A request of ioctl(2), for one, is the second.
    let argument = registers
        .get(libc::REG_RSI as usize)
        .map_or(0, |register| register.cast_unsigned());
    let mut line = Line::default();
    line.text("ERROR: ");
    line.message(KIND.get(), number, argument);
    line.text("\n");
    line.send(LOG.load(Ordering::Relaxed));
    let mut event = Line::default();
    event.text("{\"event\":\"exit\",\"reason\":\"error\",\"message\":\"");
    event.message(KIND.get(), number, argument);
    event.text("\"}\n");
    event.send(PARENT.load(Ordering::Relaxed));
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(CODE_DENIED.into()) }
}

/// Text without an allocator.
struct Line {
    bytes: [u8; 200],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 200],
            length: 0,
        }
    }
}

impl Line {
    fn message(&mut self, kind: ThreadKind, number: c_int, argument: u64) {
        self.text("A thread of kind ");
        self.text(kind.name());
        self.text(" made system call ");
        self.number(number.unsigned_abs().into(), 10);
        self.text(" (second argument 0x");
        self.number(argument, 16);
        self.text("), which its filter denies: the VMM is ended");
    }

    fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            }
        }
    }

    fn number(&mut self, number: u64, base: u64) {
        if number >= base {
            self.number(number / base, base);
        }
        let digit = usize::try_from(number % base).unwrap_or_default();
        self.text("0123456789abcdef".get(digit..=digit).unwrap_or_default());
    }

    fn send(&self, fd: c_int) {
        if fd >= 0 {
            // SAFETY: the bytes are there. Whoever does not take them now does not get them.
            unsafe { libc::write(fd, self.bytes.as_ptr().cast(), self.length) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_name_the_kind_and_the_number() {
        let mut line = Line::default();
        line.message(ThreadKind::Vcpu, 257, 0xae80);
        let text = str::from_utf8(&line.bytes[..line.length]).unwrap();
        assert_eq!(
            text,
            "A thread of kind vCPU made system call 257 (second argument 0xae80), which its filter denies: the VMM is ended"
        );
    }

    #[test]
    fn a_line_that_is_too_long_is_cut() {
        let mut line = Line::default();
        for _ in 0..100 {
            line.text("12345");
        }
        assert_eq!(line.length, line.bytes.len());
    }
}
