//! A vCPU as a value, and from one.
//!
//! The order of the calls matters to KVM. Saving: what a wait for a start-up signal has left is worked off by the first
//! call, `KVM_GET_MP_STATE`, and events come last, since the others may make some. Restoring: CPUID first, by which all
//! else is checked; the local APIC after the segment registers, which hold its address; the deadline of its timer after
//! the APIC and the TSC; events last.
#![expect(
    unsafe_code,
    reason = "KVM_SET_XSAVE may read more than the structure it is given, which is ruled out here"
)]

use kvm_bindings::{
    CpuId, KVM_MAX_MSR_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno;

use crate::snapshot::blob;

/// `IA32_TSC_DEADLINE`: counts only once the TSC and the APIC's timer mode are there.
const TSC_DEADLINE: u32 = 0x6e0;
/// How far a TSC may be off without the guest's noticing, in parts per million: what KVM tolerates itself, and NTP corrects.
const TSC_TOLERANCE_PPM: u64 = 250;

/// All that KVM knows of one vCPU.
#[derive(Debug, Deserialize, Serialize)]
#[expect(missing_docs, reason = "each is KVM's structure of the same name")]
pub struct VcpuState {
    #[serde(deserialize_with = "blob::all")]
    pub cpuid: Vec<kvm_cpuid_entry2>,
    #[serde(deserialize_with = "blob::one")]
    pub mp_state: kvm_mp_state,
    #[serde(deserialize_with = "blob::one")]
    pub regs: kvm_regs,
    #[serde(deserialize_with = "blob::one")]
    pub sregs: kvm_sregs,
    #[serde(deserialize_with = "blob::one")]
    pub xsave: kvm_xsave,
    #[serde(deserialize_with = "blob::one")]
    pub xcrs: kvm_xcrs,
    #[serde(deserialize_with = "blob::one")]
    pub debug_regs: kvm_debugregs,
    #[serde(deserialize_with = "blob::one")]
    pub lapic: kvm_lapic_state,
    #[serde(deserialize_with = "blob::all")]
    pub msrs: Vec<kvm_msr_entry>,
    #[serde(deserialize_with = "blob::one")]
    pub vcpu_events: kvm_vcpu_events,
    /// Frequency of the TSC in kHz, if KVM knows it.
    pub tsc_khz: Option<u32>,
}

/// Why a vCPU gives or takes no state.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant describes it and its values"
)]
pub enum VcpuStateError {
    #[error("KVM does not give the {what} of vCPU {id}")]
    Get {
        id: u8,
        what: &'static str,
        #[source]
        source: errno::Error,
    },
    #[error("KVM does not take the {what} of vCPU {id}")]
    Set {
        id: u8,
        what: &'static str,
        #[source]
        source: errno::Error,
    },
    #[error("The {what} of vCPU {id} are too many: {count}")]
    TooMany {
        id: u8,
        what: &'static str,
        count: usize,
    },
    #[error(
        "KVM of this host does not take the model-specific register {index:#x} of vCPU {id} with the value {value:#x}"
    )]
    Msr { id: u8, index: u32, value: u64 },
    #[error(
        "The TSC of vCPU {id} ran at {saved_khz} kHz, that of this host runs at {host_khz} kHz and cannot be scaled"
    )]
    Tsc {
        id: u8,
        saved_khz: u32,
        host_khz: u32,
        #[source]
        source: errno::Error,
    },
    #[error("The snapshot has no state of vCPU {id}")]
    Missing { id: u8 },
    #[error("vCPU {id} did not give its state in time")]
    Late { id: u8 },
}

/// The state of vCPU `id`, which does not run and has got `cpuid`. `msrs` are the registers that this KVM can tell and take.
///
/// What KVM says that the CPUID is follows the vCPU's state, and not every KVM says it: what was set counts.
pub fn save(
    id: u8,
    vcpu: &VcpuFd,
    cpuid: &[kvm_cpuid_entry2],
    msrs: &[u32],
) -> Result<VcpuState, VcpuStateError> {
    let get = |what| move |source| VcpuStateError::Get { id, what, source };
    let mp_state = vcpu.get_mp_state().map_err(get("run state"))?;
    let regs = vcpu.get_regs().map_err(get("general registers"))?;
    let sregs = vcpu.get_sregs().map_err(get("segment registers"))?;
    let xsave = vcpu.get_xsave().map_err(get("extended state"))?;
    let xcrs = vcpu.get_xcrs().map_err(get("extended control registers"))?;
    let debug_regs = vcpu.get_debug_regs().map_err(get("debug registers"))?;
    let lapic = vcpu.get_lapic().map_err(get("local APIC"))?;
    let tsc_khz = vcpu.get_tsc_khz().ok();
    let msrs = read_msrs(id, vcpu, msrs)?;
    let vcpu_events = vcpu.get_vcpu_events().map_err(get("events"))?;
    Ok(VcpuState {
        cpuid: cpuid.to_vec(),
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debug_regs,
        lapic,
        msrs,
        vcpu_events,
        tsc_khz,
    })
}

/// Those of `indices` that this vCPU has.
fn read_msrs(id: u8, vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, VcpuStateError> {
    let mut left: Vec<_> = indices.iter().map(|&index| entry(index, 0)).collect();
    let mut found = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let chunk = &left[..left.len().min(KVM_MAX_MSR_ENTRIES)];
        let mut msrs = fam(id, chunk)?;
        let read = vcpu
            .get_msrs(&mut msrs)
            .map_err(|source| VcpuStateError::Get {
                id,
                what: "model-specific registers",
                source,
            })?;
        let read = read.min(chunk.len());
        // Where KVM stops is one that this vCPU lacks: its CPUID does not have it.
        let skipped = usize::from(read < chunk.len());
        found.extend_from_slice(&msrs.as_slice()[..read]);
        left.drain(..read + skipped);
    }
    Ok(found)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

fn fam(id: u8, entries: &[kvm_msr_entry]) -> Result<Msrs, VcpuStateError> {
    Msrs::from_entries(entries).map_err(|_| VcpuStateError::TooMany {
        id,
        what: "model-specific registers",
        count: entries.len(),
    })
}

/// Gives the new vCPU `id` the `state`.
pub fn restore(id: u8, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), VcpuStateError> {
    let set = |what| move |source| VcpuStateError::Set { id, what, source };
    let cpuid = CpuId::from_entries(&state.cpuid).map_err(|_| VcpuStateError::TooMany {
        id,
        what: "entries of CPUID",
        count: state.cpuid.len(),
    })?;
    vcpu.set_cpuid2(&cpuid).map_err(set("CPUID"))?;
    settle_tsc(id, vcpu, state.tsc_khz)?;
    vcpu.set_mp_state(state.mp_state)
        .map_err(set("run state"))?;
    vcpu.set_regs(&state.regs)
        .map_err(set("general registers"))?;
    vcpu.set_sregs(&state.sregs)
        .map_err(set("segment registers"))?;
    // SAFETY: KVM reads no more than the 4096 bytes of the structure: state beyond that is for features of which a
    // process asks for each by name (`ARCH_REQ_XCOMP_GUEST_PERM`), and this one never does.
    unsafe { vcpu.set_xsave(&state.xsave) }.map_err(set("extended state"))?;
    vcpu.set_xcrs(&state.xcrs)
        .map_err(set("extended control registers"))?;
    vcpu.set_debug_regs(&state.debug_regs)
        .map_err(set("debug registers"))?;
    vcpu.set_lapic(&state.lapic).map_err(set("local APIC"))?;
    let (deadline, others): (Vec<_>, Vec<_>) = state
        .msrs
        .iter()
        .copied()
        .partition(|msr| msr.index == TSC_DEADLINE);
    for msrs in [others, deadline] {
        write_msrs(id, vcpu, msrs)?;
    }
    vcpu.set_vcpu_events(&state.vcpu_events)
        .map_err(set("events"))?;
    if let Err(error) = vcpu.kvmclock_ctrl() {
        // A guest without KVM's clock cannot be told that it was stopped.
        log::debug!("vCPU {id} is not told that it was paused: {error}");
    }
    Ok(())
}

fn write_msrs(id: u8, vcpu: &VcpuFd, mut left: Vec<kvm_msr_entry>) -> Result<(), VcpuStateError> {
    while !left.is_empty() {
        let chunk = &left[..left.len().min(KVM_MAX_MSR_ENTRIES)];
        let written = vcpu
            .set_msrs(&fam(id, chunk)?)
            .map_err(|source| VcpuStateError::Set {
                id,
                what: "model-specific registers",
                source,
            })?;
        let written = written.min(chunk.len());
        let refused = chunk.get(written).copied();
        if let Some(msr) = refused {
            // One that cannot be written, and need not: it has the value already.
            let now = read_msrs(id, vcpu, &[msr.index])?;
            if now.first().map(|now| now.data) != Some(msr.data) {
                return Err(VcpuStateError::Msr {
                    id,
                    index: msr.index,
                    value: msr.data,
                });
            }
        }
        left.drain(..written + usize::from(refused.is_some()));
    }
    Ok(())
}

/// Lets the TSC run as fast as it did, if the host's is not as fast as makes no difference.
fn settle_tsc(id: u8, vcpu: &VcpuFd, saved: Option<u32>) -> Result<(), VcpuStateError> {
    let (Some(saved_khz), Ok(host_khz)) = (saved, vcpu.get_tsc_khz()) else {
        return Ok(());
    };
    let difference = u64::from(saved_khz.abs_diff(host_khz)) * 1_000_000;
    if difference <= u64::from(host_khz) * TSC_TOLERANCE_PPM {
        return Ok(());
    }
    vcpu.set_tsc_khz(saved_khz)
        .map_err(|source| VcpuStateError::Tsc {
            id,
            saved_khz,
            host_khz,
            source,
        })
}
