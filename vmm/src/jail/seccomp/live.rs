//! The thread that takes snapshots for the store while the guest runs. Devices end under its hands what they have begun: it
//! may do what their threads do, and stop the guest, and look at its memory. It sees no byte that a guest wrote, but for
//! copying it.

use super::requests::{
    KVM_CLEAR_DIRTY_LOG, KVM_GET_CLOCK, KVM_GET_DIRTY_LOG, KVM_GET_IRQCHIP,
    KVM_SET_USER_MEMORY_REGION, TIOCOUTQ, UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER,
    UFFDIO_WRITEPROTECT, USERFAULTFD_IOC_NEW,
};
use super::rule::{Rule, call, is, own_pid};

/// Beside [`common`](super::common) and [`device`](super::device).
pub const RULES: &[Rule] = &[
    call!(SYS_tgkill, "gets a vCPU out of the guest").when(&[own_pid(0)]),
    call!(SYS_getpid, "the process whose thread gets a signal"),
    call!(SYS_ioctl, "interrupt controller").when(&[is(1, KVM_GET_IRQCHIP)]),
    call!(SYS_ioctl, "the guest's clock").when(&[is(1, KVM_GET_CLOCK)]),
    call!(SYS_ioctl, "changes are noted from the first snapshot on")
        .when(&[is(1, KVM_SET_USER_MEMORY_REGION)]),
    call!(SYS_ioctl, "which pages have changed").when(&[is(1, KVM_GET_DIRTY_LOG)]),
    call!(SYS_ioctl, "what is copied has not changed since").when(&[is(1, KVM_CLEAR_DIRTY_LOG)]),
    call!(SYS_ioctl, "whether the store has read what was sent").when(&[is(1, TIOCOUTQ)]),
    call!(SYS_ioctl, "control of writes to memory").when(&[is(1, USERFAULTFD_IOC_NEW)]),
    call!(SYS_ioctl, "control of writes to memory").when(&[is(1, UFFDIO_API)]),
    call!(SYS_ioctl, "control of writes to memory").when(&[is(1, UFFDIO_REGISTER)]),
    call!(SYS_ioctl, "writes wait for a copy of the page").when(&[is(1, UFFDIO_WRITEPROTECT)]),
    call!(SYS_ioctl, "no writes wait any more").when(&[is(1, UFFDIO_UNREGISTER)]),
];
