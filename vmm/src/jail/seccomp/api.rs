//! The API's thread: it takes requests from clients and hands them on.

use super::requests::FIONBIO;
use super::rule::{Rule, call, is};

/// Beside [`common`](super::common).
pub const RULES: &[Rule] = &[
    call!(SYS_epoll_wait, "waits for clients"),
    call!(SYS_epoll_ctl, "clients come and go"),
    call!(SYS_poll, "waits for one client"),
    call!(SYS_accept4, "a client connects"),
    call!(SYS_recvfrom, "requests"),
    call!(SYS_writev, "answers"),
    call!(SYS_shutdown, "a client that is not served any more"),
    call!(SYS_ioctl, "a client must not be waited for").when(&[is(1, FIONBIO)]),
    call!(SYS_fcntl, "a connection's second descriptor")
        .when(&[is(1, libc::F_DUPFD_CLOEXEC.cast_unsigned())]),
    call!(SYS_setsockopt, "limits how long a client may stall"),
];
