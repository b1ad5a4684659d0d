//! What every thread does: allocate, wait for other threads, log, and end.

use super::requests::TCSETS;
use super::rule::{Rule, call, is, without};

const EXEC: u32 = libc::PROT_EXEC.cast_unsigned();

/// Part of each kind's table, and counted there.
pub const RULES: &[Rule] = &[
    call!(SYS_futex, "locks between threads"),
    call!(
        SYS_sched_yield,
        "another thread is just making room in a channel of the standard library's"
    )
    .rare("it takes two threads at one channel in the same microsecond"),
    call!(SYS_mmap, "memory for the allocator").when(&[without(2, EXEC)]),
    call!(
        SYS_munmap,
        "memory back from the allocator, and a thread's own stack at its end"
    ),
    call!(SYS_mprotect, "the allocator's arenas grow in place").when(&[without(2, EXEC)]),
    call!(SYS_mremap, "large buffers grow")
        .rare("only buffers above 128 KiB, which tests seldom grow"),
    call!(
        SYS_madvise,
        "the allocator and ending threads give pages back; the balloon the guest's"
    ),
    call!(SYS_brk, "the allocator's first arena"),
    call!(
        SYS_write,
        "the log, events for other threads and the parent, what the guest prints"
    ),
    call!(SYS_sendto, "events for the parent, data of connections"),
    call!(SYS_read, "events, timers, input"),
    call!(
        SYS_close,
        "buffers, events and files that are not needed any more"
    ),
    call!(
        SYS_clock_gettime,
        "the time, where the host's kernel cannot tell it without a call"
    )
    .rare("hosts whose clock cannot be read without a call"),
    call!(SYS_rt_sigprocmask, "the end of a thread")
        .rare("glibc blocks signals when a thread ends, or not, by version"),
    call!(
        SYS_sigaltstack,
        "the end of a thread gives back the stack on which overflows are reported"
    ),
    call!(SYS_ioctl, "a panic gives the user's terminal back its mode")
        .when(&[is(0, 0), is(1, TCSETS)])
        .rare("no test lets the VMM panic at a terminal"),
    call!(
        SYS_restart_syscall,
        "a wait goes on after the process was stopped and continued"
    )
    .rare("the kernel makes this call for waits with a time limit after SIGSTOP and SIGCONT"),
    #[cfg(debug_assertions)]
    call!(SYS_fcntl, "debug builds check that what is closed is open")
        .when(&[is(1, libc::F_GETFD.cast_unsigned())])
        .rare("release builds do not check"),
    call!(SYS_exit, "the end of a thread"),
    call!(
        SYS_exit_group,
        "the end of the process: in order, by a panic, or by a call that a filter denies"
    ),
];
