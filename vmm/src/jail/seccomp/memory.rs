//! The thread that waits for the program that serves the guest's memory, while there is one.

use super::requests::UFFDIO_UNREGISTER;
use super::rule::{Rule, call, is};

/// Beside [`common`](super::common).
pub const RULES: &[Rule] = &[
    call!(SYS_recvfrom, "what the program says, or that it has ended"),
    call!(
        SYS_ioctl,
        "all of the memory is there: the program has no more to do with it"
    )
    .when(&[is(1, UFFDIO_UNREGISTER)]),
    call!(
        SYS_clock_nanosleep,
        "the program has ended: threads that can end by themselves do"
    ),
];
