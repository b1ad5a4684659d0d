//! The API's thread: it takes requests from clients and hands them on.

use super::requests::FIONBIO;
use super::rule::{Rule, call, is};

/// Beside [`common`](super::common).
pub const RULES: &[Rule] = &[
    call!(SYS_poll, "waits for clients"),
    call!(SYS_accept4, "a client connects"),
    call!(SYS_recvfrom, "requests"),
    call!(SYS_ioctl, "a client must not be waited for").when(&[is(1, FIONBIO)]),
    call!(SYS_unlink, "the API's socket goes with its VMM"),
];
