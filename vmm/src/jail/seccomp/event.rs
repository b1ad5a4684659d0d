//! The main thread while the guest runs: serial input, small devices, the control socket, and the end.

use super::requests::{FIONBIO, KVM_IOEVENTFD, KVM_IRQFD, KVM_SET_GSI_ROUTING};
use super::rule::{Rule, call, is, own_pid};

/// Beside [`common`](super::common).
pub const RULES: &[Rule] = &[
    call!(SYS_epoll_wait, "waits for devices, input and the parent"),
    call!(SYS_epoll_ctl, "what is waited for changes"),
    call!(SYS_timerfd_settime, "rate limits, the watchdog"),
    call!(SYS_clock_nanosleep, "waits for threads that end"),
    call!(SYS_tgkill, "gets a vCPU out of the guest").when(&[own_pid(0)]),
    call!(SYS_getrandom, "the guest's entropy and its generation ID"),
    call!(SYS_getpid, "the process whose thread gets a signal"),
    call!(SYS_pread64, "KVM's counters of a vCPU"),
    call!(SYS_recvfrom, "what a console port's program says"),
    call!(SYS_accept4, "a program calls a console port"),
    call!(SYS_ioctl, "a console port's connection must not wait").when(&[is(1, FIONBIO)]),
    call!(SYS_ioctl, "routes of devices, which go with the guest")
        .when(&[is(1, KVM_SET_GSI_ROUTING)]),
    call!(SYS_ioctl, "interrupts of devices, which go with the guest").when(&[is(1, KVM_IRQFD)]),
    call!(SYS_ioctl, "doorbells of devices, which go with the guest").when(&[is(1, KVM_IOEVENTFD)]),
    call!(SYS_unlink, "sockets of this guest's go with it"),
];
