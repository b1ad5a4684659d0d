//! Virtual CPUs: their set-up and the threads that run them.

mod exits;
mod gate;
mod kick;
pub mod state;
mod thread;

pub use gate::{Errand, Gate};
pub use kick::install_handler;
pub use thread::{Buses, Setting, VcpuThread, spawn};

use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use self::state::VcpuState;
use crate::boot::Entry;
use crate::cpu::cpuid::{self, Host, Place};
use crate::cpu::{msrs, regs};
use crate::vm::{Vm, VmError};

/// Why a vCPU cannot be made ready.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant describes it and its values"
)]
pub enum VcpuError {
    #[error("Cannot make vCPU {id}")]
    Create {
        id: u8,
        #[source]
        source: VmError,
    },
    #[error("Cannot set the {what} of vCPU {id}")]
    Set {
        id: u8,
        what: &'static str,
        #[source]
        source: errno::Error,
    },
    #[error("Cannot build the {what} of vCPU {id}")]
    Build {
        id: u8,
        what: &'static str,
        #[source]
        source: vmm_sys_util::fam::Error,
    },
    #[error("KVM did not take all model-specific registers of vCPU {id}: {taken} of {all}")]
    Msrs { id: u8, taken: usize, all: usize },
    #[error(transparent)]
    State(#[from] state::VcpuStateError),
    #[error("Cannot start the thread of vCPU {id}")]
    Spawn {
        id: u8,
        #[source]
        source: std::io::Error,
    },
}

/// Makes vCPU `place.id`. The first one gets the registers that `entry` asks for; the others wait in KVM until the guest
/// starts them. `supported` is the CPUID that its own is made of, which is returned with it.
pub fn create(
    vm: &Vm,
    supported: &CpuId,
    place: Place,
    entry: Entry,
) -> Result<(VcpuFd, CpuId), VcpuError> {
    let id = place.id;
    let set = |what| move |source| VcpuError::Set { id, what, source };
    let fd = vm
        .create_vcpu(id)
        .map_err(|source| VcpuError::Create { id, source })?;
    settle_tsc(&fd, id);
    let host = Host {
        tsc_deadline: vm.has_tsc_deadline(),
        tsc_khz: fd.get_tsc_khz().ok(),
        emulated: cpuid::is_emulated(),
    };
    let cpuid = cpuid::patch(supported, place, host).map_err(|source| VcpuError::Build {
        id,
        what: "CPUID",
        source,
    })?;
    fd.set_cpuid2(&cpuid).map_err(set("CPUID"))?;
    if let Some(xcrs) = regs::extended_control(&cpuid) {
        fd.set_xcrs(&xcrs)
            .map_err(set("extended control register"))?;
    }
    let msrs = msrs::boot_msrs().map_err(|source| VcpuError::Build {
        id,
        what: "model-specific registers",
        source,
    })?;
    let all = msrs.as_slice().len();
    let taken = fd
        .set_msrs(&msrs)
        .map_err(set("model-specific registers"))?;
    if taken != all {
        return Err(VcpuError::Msrs { id, taken, all });
    }
    if id == 0 {
        set_boot_state(&fd, entry).map_err(|(what, source)| VcpuError::Set { id, what, source })?;
    }
    Ok((fd, cpuid))
}

/// Makes vCPU `id` as it was when `state` was taken.
pub fn restore(vm: &Vm, id: u8, state: &VcpuState) -> Result<VcpuFd, VcpuError> {
    let fd = vm
        .create_vcpu(id)
        .map_err(|source| VcpuError::Create { id, source })?;
    settle_tsc(&fd, id);
    state::restore(id, &fd, state)?;
    Ok(fd)
}

/// Gives the vCPU the TSC frequency of the host as it is known now.
///
/// KVM gives a new vCPU the frequency from when KVM was loaded. A host that has refined its calibration since then by more
/// than 250 ppm, and whose processor cannot scale the TSC, refuses that and leaves the vCPU with a scaling of zero: its
/// deadline timer never fires.
fn settle_tsc(fd: &VcpuFd, id: u8) {
    const HOST_FREQUENCY: u32 = 0;
    if let Err(error) = fd.set_tsc_khz(HOST_FREQUENCY) {
        // KVM without a TSC of its own to offer: nothing to settle.
        log::debug!("KVM does not take the host's TSC frequency for vCPU {id}: {error}");
    }
}

fn set_boot_state(fd: &VcpuFd, entry: Entry) -> Result<(), (&'static str, errno::Error)> {
    let failed = |what| move |source| (what, source);
    let mut sregs = fd.get_sregs().map_err(failed("segment registers"))?;
    regs::set_special(&mut sregs, entry);
    fd.set_sregs(&sregs).map_err(failed("segment registers"))?;
    fd.set_regs(&regs::general(entry))
        .map_err(failed("general registers"))?;
    fd.set_fpu(&regs::floating_point())
        .map_err(failed("floating-point registers"))?;
    let mut apic = fd.get_lapic().map_err(failed("local APIC"))?;
    regs::connect_local_interrupts(&mut apic);
    fd.set_lapic(&apic).map_err(failed("local APIC"))
}
