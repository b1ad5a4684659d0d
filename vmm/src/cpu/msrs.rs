//! Model-specific registers that firmware would have set. All others have their reset values from KVM.

use kvm_bindings::{Msrs, kvm_msr_entry};

/// `IA32_MISC_ENABLE`.
const MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations. Linux on Intel takes its absence for a broken `rep movsb`.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`.
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled, everything write-back.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// The registers, the same for every vCPU.
pub fn boot_msrs() -> Result<Msrs, vmm_sys_util::fam::Error> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[
        entry(MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ])
}
