//! The checks: whether a program can be started and ends well, whether the root file system is what it was.
#![expect(unsafe_code, reason = "forks and starts programs without allocating")]

use std::ffi::{CStr, c_char};
use std::fmt;
use std::ptr;
use std::time::Duration;

use crate::system;
use crate::witness::{Testimony, Witness};

/// A loaded guest is no fallen guest, nor is one whose memory still comes from a snapshot: so many intervals are what a
/// check may take, the wait for it and that make two of the host's heartbeats.
const INTERVALS: u32 = 3;
/// One that ended well, and took longer than half an interval and this, says nothing: a guest that is filling up with
/// processes may still get one through. No check may take less.
const PATIENCE: Duration = Duration::from_secs(5);

/// Exit codes of the child before it is another program: no program that does nothing ends with these.
const NOISE: i32 = 90;
const DISK: i32 = 91;
/// The system's reason is added. A shell's own words for what it cannot do are 126 and 127.
const START: i32 = 128;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A program cannot be started, for this reason of the system's.
    Start(i32),
    /// It ended with this code.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
    /// It has not ended after so many seconds.
    Slow(u64),
    /// The disk cannot be read.
    Disk,
    /// The disk has something else than was written.
    Noise,
    /// The root file system was writable and is not any more.
    ReadOnly,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(reason) => {
                f.write_str("cannot start a program: ")?;
                match *reason {
                    libc::EAGAIN => f.write_str("too many processes"),
                    libc::ENOMEM => f.write_str("no memory"),
                    libc::ENOENT => f.write_str("there is none"),
                    libc::EIO => f.write_str("it cannot be read"),
                    libc::EUCLEAN | libc::EBADMSG => f.write_str("its file system is damaged"),
                    libc::ENOEXEC => f.write_str("it is no program any more"),
                    other => write!(f, "error {other}"),
                }
            }
            Self::Code(code) => write!(f, "a program that does nothing ends with code {code}"),
            Self::Signal(signal) => {
                write!(f, "a program that does nothing dies of signal {signal}")
            }
            Self::Slow(seconds) => write!(f, "a program does not end within {seconds} s"),
            Self::Disk => f.write_str("its disk cannot be read"),
            Self::Noise => f.write_str("its disk has something else than was written to it"),
            Self::ReadOnly => f.write_str("its root file system has become read-only"),
        }
    }
}

/// What a check has found.
pub type Verdict = Result<(), Fault>;

/// The programs that do nothing, the first of which is there is taken.
const IDLE: [&[&CStr]; 2] = [&[c"/bin/sh", c"-c", c":"], &[c"/bin/true"]];
/// What shuts a system down.
const POWER_OFF: [&[&CStr]; 4] = [
    &[c"/sbin/poweroff"],
    &[c"/usr/sbin/poweroff"],
    &[c"/bin/poweroff"],
    &[c"/usr/bin/systemctl", c"poweroff"],
];

/// A check that is under way.
struct UnderWay {
    child: libc::pid_t,
    /// How long it has taken, and how long it may.
    taken: Duration,
    limit: Duration,
    /// If it takes longer than this, nobody knows how the guest is.
    slow: Duration,
    late: bool,
}

/// The checks, one at a time.
pub struct Checks {
    under_way: Option<UnderWay>,
    witness: Option<Witness>,
    turn: usize,
    was_writable: bool,
    /// A program that does nothing; `None` if there was none from the beginning.
    program: Option<&'static [&'static CStr]>,
}

impl Checks {
    pub fn new() -> Self {
        Self {
            under_way: None,
            witness: Witness::of_this_program(),
            turn: 0,
            was_writable: false,
            program: IDLE.into_iter().find(|it| system::is_program(it[0])),
        }
    }

    pub fn under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Starts a check for an interval of `every`.
    pub fn start(&mut self, every: Duration) -> Result<(), Fault> {
        let writable = system::root_is_writable();
        self.was_writable |= writable;
        if self.was_writable && !writable {
            return Err(Fault::ReadOnly);
        }
        self.turn = self.turn.wrapping_add(1);
        let child = fork(|| self.inside())?;
        self.under_way = Some(UnderWay {
            child,
            taken: Duration::ZERO,
            limit: PATIENCE.max(INTERVALS * every),
            slow: PATIENCE.max(every / 2),
            late: false,
        });
        Ok(())
    }

    /// The child: looks at the disk, then becomes a program that does nothing. Returns an exit code.
    fn inside(&mut self) -> i32 {
        match self.witness.as_mut().map(|it| it.ask(self.turn)) {
            Some(Testimony::Noise) => return NOISE,
            Some(Testimony::Error(_)) => return DISK,
            Some(Testimony::Same) | None => {}
        }
        match self.program {
            Some(program) => START + execute(program).clamp(0, 127),
            None => 0,
        }
    }

    /// What the check has found, if it has ended or should have; nothing if it has taken too long to say that all is well.
    /// `passed` is the time that the guest had since this was last asked.
    pub fn look(&mut self, passed: Duration) -> Option<Option<Verdict>> {
        let ended = reap(self.under_way.as_ref().map(|it| it.child));
        let under_way = self.under_way.as_mut()?;
        under_way.taken += passed;
        if let Some(verdict) = ended {
            let slow = under_way.late || under_way.taken > under_way.slow;
            self.under_way = None;
            return Some(Some(verdict).filter(|verdict| verdict.is_err() || !slow));
        }
        if under_way.taken < under_way.limit {
            return None;
        }
        under_way.taken = Duration::ZERO;
        // It may yet end. The second time nobody waits for it any more; one that does not even die is not followed by
        // another.
        if std::mem::replace(&mut under_way.late, true) {
            // SAFETY: the call takes numbers only; the child is not waited for yet, so the number is its.
            unsafe { libc::kill(under_way.child, libc::SIGKILL) };
        }
        Some(Some(Err(Fault::Slow(under_way.limit.as_secs()))))
    }
}

/// Has the system shut down.
pub fn power_off() {
    // Without a child there is still the power button.
    let _ = fork(|| {
        POWER_OFF.into_iter().fold(0, |_, program| execute(program));
        1
    });
}

/// Makes a child that ends with what `inside` returns.
fn fork(inside: impl FnOnce() -> i32) -> Result<libc::pid_t, Fault> {
    // SAFETY: this program has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(Fault::Start(system::errno())),
        0 => {
            system::become_ordinary();
            let code = inside();
            // SAFETY: ends the child, without what the parent has set up for its end.
            unsafe { libc::_exit(code) }
        }
        child => Ok(child),
    }
}

/// Becomes another program; returns why not.
fn execute(program: &[&CStr]) -> i32 {
    let mut arguments: [*const c_char; 5] = [ptr::null(); 5];
    for (place, argument) in arguments.iter_mut().take(4).zip(program) {
        *place = argument.as_ptr();
    }
    let environment = [c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".as_ptr(), ptr::null()];
    // SAFETY: both lists end with a null pointer, and all strings outlive the call.
    unsafe { libc::execve(arguments[0], arguments.as_ptr(), environment.as_ptr()) };
    system::errno()
}

/// Takes in every child that has ended; how `wanted` has, if it is among them.
fn reap(wanted: Option<libc::pid_t>) -> Option<Verdict> {
    let mut found = None;
    loop {
        let mut status = 0;
        // SAFETY: it writes to `status`.
        let child = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if child <= 0 {
            return found;
        }
        if Some(child) == wanted {
            found = Some(verdict(status));
        }
    }
}

fn verdict(status: i32) -> Verdict {
    if libc::WIFSIGNALED(status) {
        return Err(Fault::Signal(libc::WTERMSIG(status)));
    }
    match libc::WEXITSTATUS(status) {
        0 => Ok(()),
        NOISE => Err(Fault::Noise),
        DISK => Err(Fault::Disk),
        code if code >= START => Err(Fault::Start(code - START)),
        code => Err(Fault::Code(code)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};
    use std::thread::sleep;

    use super::*;

    /// Children are waited for by whoever comes first: one test at a time.
    static ALONE: Mutex<()> = Mutex::new(());
    const STEP: Duration = Duration::from_millis(5);

    fn checks(program: &'static [&'static CStr]) -> Checks {
        Checks {
            program: Some(program),
            ..Checks::new()
        }
    }

    fn verdict_of(program: &'static [&'static CStr]) -> Verdict {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut checks = checks(program);
        checks.start(Duration::ZERO).unwrap();
        loop {
            // No time passes: it ends when it ends.
            if let Some(Some(verdict)) = checks.look(Duration::ZERO) {
                assert!(!checks.under_way());
                return verdict;
            }
            sleep(STEP);
        }
    }

    #[test]
    fn this_machine_is_well() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut checks = Checks::new();
        assert!(checks.program.is_some());
        for _ in 0..3 {
            checks.start(Duration::ZERO).unwrap();
            let verdict = loop {
                match checks.look(Duration::ZERO) {
                    Some(verdict) => break verdict,
                    None => sleep(STEP),
                }
            };
            assert_eq!(verdict, Some(Ok(())));
        }
    }

    #[test]
    fn one_that_takes_long_and_ends_well_says_nothing() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut checks = checks(&[c"/bin/sh", c"-c", c"sleep 0.3"]);
        checks.start(Duration::from_secs(5)).unwrap();
        assert_eq!(checks.look(Duration::from_secs(6)), None);
        let verdict = loop {
            match checks.look(Duration::ZERO) {
                Some(verdict) => break verdict,
                None => sleep(STEP),
            }
        };
        assert_eq!(verdict, None);
    }

    #[test]
    fn what_does_not_start_or_end_well_is_a_fault() {
        let there_is_none = verdict_of(&[c"/no/such/program"]);
        assert_eq!(there_is_none, Err(Fault::Start(libc::ENOENT)));
        let a_folder = verdict_of(&[c"/"]);
        assert_eq!(a_folder, Err(Fault::Start(libc::EACCES)));
        let code = verdict_of(&[c"/bin/sh", c"-c", c"exit 3"]);
        assert_eq!(code, Err(Fault::Code(3)));
        let missing = verdict_of(&[c"/bin/sh", c"-c", c"/no/such/program 2>/dev/null"]);
        assert_eq!(missing, Err(Fault::Code(127)));
        let killed = verdict_of(&[c"/bin/sh", c"-c", c"kill -9 $$"]);
        assert_eq!(killed, Err(Fault::Signal(libc::SIGKILL)));
    }

    #[test]
    fn one_that_does_not_end_is_said_so_and_killed_the_second_time() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut checks = checks(&[c"/bin/sh", c"-c", c"while :; do sleep 1; done"]);
        checks.start(Duration::from_secs(5)).unwrap();
        assert_eq!(checks.look(Duration::from_secs(14)), None);
        let slow = Some(Some(Err(Fault::Slow(15))));
        assert_eq!(checks.look(Duration::from_secs(1)), slow);
        assert_eq!(checks.look(Duration::from_secs(14)), None);
        assert!(checks.under_way());
        assert_eq!(checks.look(Duration::from_secs(1)), slow);
        let verdict = loop {
            match checks.look(Duration::ZERO) {
                Some(verdict) => break verdict,
                None => sleep(STEP),
            }
        };
        assert_eq!(verdict, Some(Err(Fault::Signal(libc::SIGKILL))));
    }

    #[test]
    fn patience_is_three_intervals_and_at_least_five_seconds() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut checks = checks(&[c"/bin/sh", c"-c", c"exit 0"]);
        checks.start(Duration::from_millis(500)).unwrap();
        assert_eq!(checks.under_way.as_ref().unwrap().limit, PATIENCE);
        while checks.look(Duration::ZERO).is_none() {
            sleep(STEP);
        }
    }

    #[test]
    fn a_root_that_has_become_read_only_is_a_fault() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut checks = Checks::new();
        checks.was_writable = true;
        let started = checks.start(Duration::ZERO);
        if system::root_is_writable() {
            assert_eq!(started, Ok(()));
            while checks.look(Duration::ZERO).is_none() {
                sleep(STEP);
            }
        } else {
            assert_eq!(started, Err(Fault::ReadOnly));
        }
    }

    #[test]
    fn every_fault_has_words_that_need_no_quoting() {
        let faults = [
            Fault::Start(libc::EAGAIN),
            Fault::Start(libc::ENOMEM),
            Fault::Start(libc::ENOENT),
            Fault::Start(libc::EIO),
            Fault::Start(libc::ENOEXEC),
            Fault::Start(libc::EUCLEAN),
            Fault::Start(libc::EPERM),
            Fault::Code(127),
            Fault::Signal(11),
            Fault::Slow(5),
            Fault::Disk,
            Fault::Noise,
            Fault::ReadOnly,
        ];
        for fault in faults {
            let text = fault.to_string();
            assert!(!text.contains(['"', '\\']) && text.len() < 80, "{text}");
        }
    }
}
