//! Requests of `ioctl`, as the kernel's headers have them.

/// Enters the guest.
pub const KVM_RUN: u32 = 0xae80;
/// Reads a vCPU's general registers.
pub const KVM_GET_REGS: u32 = 0x8090_ae81;
/// Reads a vCPU's segment registers.
pub const KVM_GET_SREGS: u32 = 0x8138_ae83;
/// Reads a vCPU's model-specific registers.
pub const KVM_GET_MSRS: u32 = 0xc008_ae88;
/// Reads a vCPU's local APIC.
pub const KVM_GET_LAPIC: u32 = 0x8400_ae8e;
/// Reads whether a vCPU runs, halts or waits to be started.
pub const KVM_GET_MP_STATE: u32 = 0x8004_ae98;
/// Reads a vCPU's pending events.
pub const KVM_GET_VCPU_EVENTS: u32 = 0x8040_ae9f;
/// Reads a vCPU's debug registers.
pub const KVM_GET_DEBUGREGS: u32 = 0x8080_aea1;
/// Reads a vCPU's extended state.
pub const KVM_GET_XSAVE: u32 = 0x9000_aea4;
/// Reads a vCPU's extended control registers.
pub const KVM_GET_XCRS: u32 = 0x8188_aea6;
/// Reads the frequency of a vCPU's TSC.
pub const KVM_GET_TSC_KHZ: u32 = 0xaea3;
/// Reads a chip of the interrupt controller.
pub const KVM_GET_IRQCHIP: u32 = 0xc208_ae62;
/// Reads which pages of the guest's memory have changed.
pub const KVM_GET_DIRTY_LOG: u32 = 0x4010_ae42;
/// Counts pages of the guest's memory as unchanged.
pub const KVM_CLEAR_DIRTY_LOG: u32 = 0xc018_aec0;
/// Says what the guest's memory is, and whether changes of it are noted.
pub const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
/// Makes a userfaultfd.
pub const USERFAULTFD_IOC_NEW: u32 = 0xaa00;
/// The handshake of a userfaultfd.
pub const UFFDIO_API: u32 = 0xc018_aa3f;
/// Takes memory under control.
pub const UFFDIO_REGISTER: u32 = 0xc020_aa00;
/// Lets go of memory.
pub const UFFDIO_UNREGISTER: u32 = 0x8010_aa01;
/// Write-protects memory, or ends that.
pub const UFFDIO_WRITEPROTECT: u32 = 0xc018_aa06;
/// Reads the guest's clock.
pub const KVM_GET_CLOCK: u32 = 0x8030_ae7c;
/// Says that a vCPU was paused.
pub const KVM_KVMCLOCK_CTRL: u32 = 0xaead;
/// Routes interrupts.
pub const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;
/// Connects an event with an interrupt.
pub const KVM_IRQFD: u32 = 0x4020_ae76;
/// Connects a guest's write with an event.
pub const KVM_IOEVENTFD: u32 = 0x4040_ae79;
/// Sets the offloads that a tap's reader understands.
pub const TUNSETOFFLOAD: u32 = 0x4004_54d0;
/// Sets the mode of a terminal.
pub const TCSETS: u32 = 0x5402;
/// Says how much of what was written to a socket was not read.
pub const TIOCOUTQ: u32 = 0x5411;
/// Makes calls on a descriptor wait, or not.
pub const FIONBIO: u32 = 0x5421;
/// Discards a range of a block device.
pub const BLKDISCARD: u32 = 0x1277;
/// Writes zeroes to a range of a block device.
pub const BLKZEROOUT: u32 = 0x127f;
/// Reads the mode of a terminal.
pub const TCGETS: u32 = 0x5401;
/// Makes an interface of a tun descriptor.
pub const TUNSETIFF: u32 = 0x4004_54ca;
/// Says which interface a tun descriptor is.
pub const TUNGETIFF: u32 = 0x8004_54d2;
/// Sets how long the header of each frame is.
pub const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
/// Says the number of an interface.
pub const SIOCGIFINDEX: u32 = 0x8933;
/// Reads the flags of an interface.
pub const SIOCGIFFLAGS: u32 = 0x8913;
/// Sets the flags of an interface.
pub const SIOCSIFFLAGS: u32 = 0x8914;
