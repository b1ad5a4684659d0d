//! The whole process while it builds the guest from images that may be hostile: what all its threads may do, and what
//! building takes beyond that.

use super::requests::{
    SIOCGIFFLAGS, SIOCGIFINDEX, SIOCSIFFLAGS, TCGETS, TUNGETIFF, TUNSETIFF, TUNSETVNETHDRSZ,
    UFFDIO_API, UFFDIO_REGISTER, USERFAULTFD_IOC_NEW,
};
use super::rule::{Rule, bits, call, is};

const NO_NEW_PRIVILEGES: u32 = libc::PR_SET_NO_NEW_PRIVS.cast_unsigned();
const NAME: u32 = libc::PR_SET_NAME.cast_unsigned();
const FILTER: u32 = libc::SECCOMP_SET_MODE_FILTER;
/// The byte of a request that says whose it is, and KVM's.
const OWNER: u32 = 0xff00;
const KVM: u32 = 0xae00;

/// Beside the tables of all kinds.
pub const RULES: &[Rule] = &[
    call!(
        SYS_openat,
        "what the configuration names, /dev/kvm, /proc/meminfo"
    ),
    call!(
        SYS_readlink,
        "where a qcow2 image and what it is based on really are"
    ),
    call!(SYS_getcwd, "a qcow2 image whose path starts here"),
    call!(SYS_flock, "an image belongs to one guest"),
    call!(SYS_bind, "vsock, console ports and the API listen"),
    call!(SYS_listen, "vsock, console ports and the API listen"),
    call!(SYS_epoll_create1, "each thread's loop"),
    call!(SYS_timerfd_create, "timers of devices"),
    call!(SYS_io_uring_setup, "a disk's queue of work that waits"),
    call!(
        SYS_memfd_create,
        "memory that a file system's program shares"
    ),
    call!(SYS_fcntl, "second descriptors of files and sockets"),
    call!(SYS_preadv, "kernel and initrd into the guest's memory"),
    call!(
        SYS_rt_sigaction,
        "the signal that gets a vCPU out of the guest"
    ),
    call!(SYS_prctl, "a thread's name").when(&[is(0, NAME)]),
    call!(SYS_prctl, "a filter may not be left by a new program").when(&[is(0, NO_NEW_PRIVILEGES)]),
    call!(SYS_seccomp, "each thread's own filter").when(&[is(0, FILTER)]),
    call!(SYS_rseq, "the C library starts a thread"),
    call!(SYS_set_robust_list, "the C library starts a thread"),
    call!(SYS_gettid, "the C library starts a thread"),
    call!(
        SYS_sched_getaffinity,
        "the standard library starts a thread"
    ),
    call!(SYS_ioctl, "KVM is asked for a machine").when(&[bits(1, OWNER, KVM)]),
    call!(SYS_ioctl, "whether standard input is a terminal").when(&[is(1, TCGETS)]),
    call!(SYS_ioctl, "a tap is opened").when(&[is(1, TUNSETIFF)]),
    call!(SYS_ioctl, "a tap was handed over")
        .when(&[is(1, TUNGETIFF)])
        .rare("only the host makes taps and hands them over, in the nested tests"),
    call!(SYS_ioctl, "the header of a tap's frames").when(&[is(1, TUNSETVNETHDRSZ)]),
    call!(SYS_ioctl, "whether there is a tap of this name").when(&[is(1, SIOCGIFINDEX)]),
    call!(SYS_ioctl, "a new tap is switched on").when(&[is(1, SIOCGIFFLAGS)]),
    call!(SYS_ioctl, "a new tap is switched on").when(&[is(1, SIOCSIFFLAGS)]),
    call!(SYS_ioctl, "memory that a program serves").when(&[is(1, USERFAULTFD_IOC_NEW)]),
    call!(SYS_ioctl, "memory that a program serves").when(&[is(1, UFFDIO_API)]),
    call!(SYS_ioctl, "memory that a program serves").when(&[is(1, UFFDIO_REGISTER)]),
];
