//! A device's thread: it moves data between the guest's queues and a descriptor that was opened before.

use super::requests::{BLKDISCARD, BLKZEROOUT, FIONBIO};
use super::rule::{Rule, call, is};

const UNIX: u32 = libc::AF_UNIX.cast_unsigned();

/// Beside [`common`](super::common).
pub const RULES: &[Rule] = &[
    call!(SYS_epoll_wait, "waits for queues, timers and descriptors"),
    call!(
        SYS_epoll_ctl,
        "connections of vsock come and go; a disk's server takes more again"
    ),
    call!(
        SYS_timerfd_settime,
        "rate limits, the balloon's statistics, and the patience with a disk's server"
    ),
    call!(SYS_preadv2, "a disk is read from the page cache"),
    call!(SYS_pwritev2, "a disk is written to the page cache"),
    call!(SYS_io_uring_enter, "a disk's work that waits"),
    call!(
        SYS_io_uring_register,
        "another file takes the place of a disk's"
    ),
    call!(SYS_fdatasync, "a disk's flush"),
    call!(SYS_fallocate, "a disk's discard and write zeroes"),
    call!(SYS_ftruncate, "a qcow2 image grows"),
    call!(SYS_lseek, "how long a disk is now"),
    call!(SYS_statx, "what kind of file takes the place of a disk's"),
    call!(
        SYS_fstatfs,
        "whether the file that takes the place of a disk's is in memory"
    ),
    call!(SYS_fcntl, "a file's second descriptor, which stays here")
        .when(&[is(1, libc::F_DUPFD_CLOEXEC.cast_unsigned())]),
    call!(SYS_preadv, "a qcow2 image is read"),
    call!(SYS_pwritev, "a qcow2 image is written"),
    call!(SYS_fsync, "a qcow2 image's flush"),
    call!(SYS_readv, "frames from a tap"),
    call!(SYS_writev, "frames to a tap"),
    call!(SYS_ioctl, "a new connection must not wait").when(&[is(1, FIONBIO)]),
    call!(SYS_ioctl, "a block device's discard")
        .when(&[is(1, BLKDISCARD)])
        .rare("needs a block device of the host's"),
    call!(SYS_ioctl, "a block device's write zeroes")
        .when(&[is(1, BLKZEROOUT)])
        .rare("needs a block device of the host's"),
    call!(
        SYS_accept4,
        "a program calls a vsock port of the guest's, or a console port"
    ),
    call!(SYS_socket, "the guest calls a vsock port of the host's").when(&[is(0, UNIX)]),
    call!(SYS_connect, "the guest calls a vsock port of the host's"),
    call!(SYS_recvfrom, "data of a connection"),
    call!(
        SYS_recvmsg,
        "answers of a file system's program (vhost-user) and of a disk's server"
    ),
    call!(
        SYS_sendmsg,
        "requests to a file system's program (vhost-user) and to a disk's server"
    ),
    call!(SYS_shutdown, "one end of a connection has said all")
        .rare("Linux guests do so, in the nested tests; here the hostile one, now and then"),
];
