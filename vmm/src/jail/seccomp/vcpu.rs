//! A vCPU's thread: it runs the guest, and does what a device's registers ask for at once.

use super::requests::{
    KVM_GET_DEBUGREGS, KVM_GET_LAPIC, KVM_GET_MP_STATE, KVM_GET_MSRS, KVM_GET_REGS, KVM_GET_SREGS,
    KVM_GET_TSC_KHZ, KVM_GET_VCPU_EVENTS, KVM_GET_XCRS, KVM_GET_XSAVE, KVM_IOEVENTFD, KVM_IRQFD,
    KVM_KVMCLOCK_CTRL, KVM_RUN, KVM_SET_GSI_ROUTING, TUNSETOFFLOAD,
};
use super::rule::{Rule, call, is};

/// Beside [`common`](super::common).
pub const RULES: &[Rule] = &[
    call!(SYS_ioctl, "the guest runs").when(&[is(1, KVM_RUN)]),
    call!(
        SYS_ioctl,
        "the guest learns by its clock that it was paused"
    )
    .when(&[is(1, KVM_KVMCLOCK_CTRL)]),
    call!(
        SYS_ioctl,
        "a snapshot: general registers; where the guest was, when KVM gives up on it"
    )
    .when(&[is(1, KVM_GET_REGS)]),
    call!(
        SYS_ioctl,
        "the guest writes an interrupt message into an MSI-X table"
    )
    .when(&[is(1, KVM_SET_GSI_ROUTING)]),
    call!(SYS_ioctl, "an interrupt message is used for the first time").when(&[is(1, KVM_IRQFD)]),
    call!(SYS_ioctl, "the guest moves a PCI device's registers").when(&[is(1, KVM_IOEVENTFD)]),
    call!(
        SYS_ioctl,
        "the guest's driver says which offloads it understands"
    )
    .when(&[is(1, TUNSETOFFLOAD)]),
    call!(SYS_ioctl, "a snapshot: whether the vCPU waits").when(&[is(1, KVM_GET_MP_STATE)]),
    call!(SYS_ioctl, "a snapshot: segment registers").when(&[is(1, KVM_GET_SREGS)]),
    call!(SYS_ioctl, "a snapshot: extended state").when(&[is(1, KVM_GET_XSAVE)]),
    call!(SYS_ioctl, "a snapshot: extended control registers").when(&[is(1, KVM_GET_XCRS)]),
    call!(SYS_ioctl, "a snapshot: debug registers").when(&[is(1, KVM_GET_DEBUGREGS)]),
    call!(SYS_ioctl, "a snapshot: local APIC").when(&[is(1, KVM_GET_LAPIC)]),
    call!(SYS_ioctl, "a snapshot: speed of the TSC").when(&[is(1, KVM_GET_TSC_KHZ)]),
    call!(SYS_ioctl, "a snapshot: model-specific registers").when(&[is(1, KVM_GET_MSRS)]),
    call!(SYS_ioctl, "a snapshot: pending events").when(&[is(1, KVM_GET_VCPU_EVENTS)]),
    call!(
        SYS_rt_sigreturn,
        "back from the signal that gets the vCPU out of the guest"
    ),
    // A reset stops the device's queues before the write to its status register is done.
    call!(
        SYS_pwritev,
        "the guest resets a qcow2 disk: its tables, and that it is clean"
    ),
    call!(
        SYS_fsync,
        "the guest resets a qcow2 disk: all of it to the medium"
    ),
    call!(
        SYS_io_uring_enter,
        "the guest resets a disk that waits for its file"
    )
    .rare("only a reset that comes while requests are in flight"),
    call!(SYS_eventfd2, "the event of an interrupt message"),
    call!(
        SYS_timerfd_settime,
        "the guest's watchdog, and timers of devices that the guest resets"
    ),
];
