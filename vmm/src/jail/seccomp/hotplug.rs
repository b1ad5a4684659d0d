//! The thread that makes devices while the guest runs, takes them apart, and starts their threads: all that those may
//! do, since a thread inherits its parent's filter, and what making a device takes. It sees no byte that a guest wrote.

use super::requests::{
    KVM_CLEAR_DIRTY_LOG, KVM_GET_CLOCK, KVM_GET_DIRTY_LOG, KVM_GET_IRQCHIP, KVM_IOEVENTFD,
    KVM_IRQFD, KVM_SET_GSI_ROUTING, KVM_SET_USER_MEMORY_REGION, SIOCGIFFLAGS, SIOCGIFINDEX,
    SIOCSIFFLAGS, TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ,
};
use super::rule::{Rule, call, is, with, without};

const NEW_NAMESPACE: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();
const THREAD: u32 = libc::CLONE_THREAD.cast_unsigned();
const NAME: u32 = libc::PR_SET_NAME.cast_unsigned();
const NO_NEW_PRIVILEGES: u32 = libc::PR_SET_NO_NEW_PRIVS.cast_unsigned();
const FILTER: u32 = libc::SECCOMP_SET_MODE_FILTER;

/// Beside [`common`](super::common) and [`device`](super::device).
pub const RULES: &[Rule] = &[
    call!(SYS_openat, "what a new device is made of"),
    call!(
        SYS_readlink,
        "where a qcow2 image and what it is based on really are"
    ),
    call!(SYS_flock, "an image belongs to one guest"),
    call!(SYS_clock_nanosleep, "an image's lock is waited for"),
    call!(SYS_pread64, "the header of a qcow2 image"),
    call!(SYS_pwrite64, "a snapshot's memory and state"),
    call!(SYS_eventfd2, "events of a new device"),
    call!(SYS_getrandom, "keys of a new device's hash tables"),
    call!(SYS_epoll_create1, "the loop of a new device's thread"),
    call!(SYS_timerfd_create, "rate limits of a new device"),
    call!(SYS_io_uring_setup, "a disk's queue of work that waits"),
    call!(SYS_clone, "a new device's thread").when(&[with(0, THREAD), without(0, NEW_NAMESPACE)]),
    call!(
        SYS_clone3,
        "answered with ENOSYS: its flags cannot be looked at, and glibc then uses clone"
    ),
    call!(SYS_prctl, "a thread's name").when(&[is(0, NAME)]),
    call!(SYS_prctl, "a filter may not be left by a new program").when(&[is(0, NO_NEW_PRIVILEGES)]),
    call!(SYS_seccomp, "a thread's own filter").when(&[is(0, FILTER)]),
    call!(SYS_rseq, "the C library starts a thread"),
    call!(SYS_set_robust_list, "the C library starts a thread"),
    call!(SYS_gettid, "the C library starts a thread"),
    call!(
        SYS_sched_getaffinity,
        "the standard library starts a thread"
    ),
    call!(SYS_ioctl, "routes of a device that goes").when(&[is(1, KVM_SET_GSI_ROUTING)]),
    call!(SYS_ioctl, "interrupts of a device that goes").when(&[is(1, KVM_IRQFD)]),
    call!(SYS_ioctl, "doorbells of a device that goes").when(&[is(1, KVM_IOEVENTFD)]),
    call!(SYS_unlink, "sockets of this guest's go with it")
        .rare("this thread is seldom the last one to let go of the guest's devices at its end"),
    call!(SYS_ioctl, "a snapshot: interrupt controller").when(&[is(1, KVM_GET_IRQCHIP)]),
    call!(SYS_ioctl, "a snapshot: the guest's clock").when(&[is(1, KVM_GET_CLOCK)]),
    call!(SYS_ioctl, "a snapshot: which pages have changed").when(&[is(1, KVM_GET_DIRTY_LOG)]),
    call!(
        SYS_ioctl,
        "a snapshot: what is written has not changed since"
    )
    .when(&[is(1, KVM_CLEAR_DIRTY_LOG)]),
    call!(
        SYS_ioctl,
        "a snapshot: changes are noted from the first one on"
    )
    .when(&[is(1, KVM_SET_USER_MEMORY_REGION)]),
    call!(SYS_ioctl, "a tap is opened").when(&[is(1, TUNSETIFF)]),
    call!(SYS_ioctl, "which offloads a new tap can do").when(&[is(1, TUNSETOFFLOAD)]),
    call!(SYS_ioctl, "the header of a tap's frames").when(&[is(1, TUNSETVNETHDRSZ)]),
    call!(SYS_ioctl, "whether there is a tap of this name").when(&[is(1, SIOCGIFINDEX)]),
    call!(SYS_ioctl, "a new tap is switched on").when(&[is(1, SIOCGIFFLAGS)]),
    call!(SYS_ioctl, "a new tap is switched on").when(&[is(1, SIOCSIFFLAGS)]),
];
