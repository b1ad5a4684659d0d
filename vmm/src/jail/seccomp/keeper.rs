//! The jail's keeper: it waits.

use super::rule::{Rule, call};

/// All of its calls: it shares none with the others' table.
pub const RULES: &[Rule] = &[
    call!(SYS_wait4, "waits for the jail's process"),
    call!(SYS_unlink, "removes the guest's sockets"),
    call!(SYS_write, "says why the jail's process was killed"),
    call!(
        SYS_sendto,
        "tells the parent why the jail's process was killed"
    ),
    call!(SYS_brk, "memory for what it says").rare("what it has is mostly enough for a line"),
    call!(SYS_close, "has told the parent"),
    call!(SYS_fcntl, "debug builds check that what is closed is open"),
    call!(
        SYS_clock_gettime,
        "the time, where the host's kernel cannot tell it without a call"
    )
    .rare("hosts whose clock cannot be read without a call"),
    call!(
        SYS_getpid,
        "itself, to die of what the jail's process died of"
    ),
    call!(SYS_kill, "dies of what the jail's process died of"),
    call!(SYS_rt_sigaction, "dies of what the jail's process died of"),
    call!(SYS_exit_group, "the end"),
];
