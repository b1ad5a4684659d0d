//! What a vCPU says about itself: KVM's supported CPUID, with each vCPU's place in the topology written in.
//!
//! The guest sees one package with as many logical processors as it has vCPUs, one or two to a core, and one last-level
//! cache for all. The APIC ID is the vCPU's number.

use std::arch::x86_64::__cpuid;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Where a vCPU is among the others.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The vCPU's number, which is its APIC ID.
    pub id: u8,
    /// Number of vCPUs.
    pub count: u8,
    /// vCPUs of one core: 1 or 2.
    pub threads: u8,
}

impl Place {
    /// Bits of an APIC ID that number the logical processors of the package.
    fn package_bits(self) -> u32 {
        bits(self.processors())
    }

    /// Those of them that number the threads of a core.
    fn thread_bits(self) -> u32 {
        bits(self.threads())
    }

    fn apic_id(self) -> u32 {
        self.id.into()
    }

    fn processors(self) -> u32 {
        self.count.max(1).into()
    }

    fn threads(self) -> u32 {
        self.threads.max(1).into()
    }

    /// How many processors share a cache of `level`, less one.
    fn sharing(self, level: u32) -> u32 {
        if level >= 3 {
            self.processors() - 1
        } else {
            self.threads() - 1
        }
    }
}

/// Bits that number `count` things.
fn bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// What of the host decides about the guest's CPUID.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// KVM emulates the local APIC timer's TSC-deadline mode.
    pub tsc_deadline: bool,
    /// Frequency of the guest's TSC in kHz, if KVM knows it.
    pub tsc_khz: Option<u32>,
    /// The host's processors are QEMU's emulation (TCG), not silicon.
    pub emulated: bool,
}

/// Whether this program's processor is emulated by QEMU, which says so in the first leaf of hypervisors.
pub fn is_emulated() -> bool {
    let present = __cpuid(1).ecx & LEAF1_ECX_HYPERVISOR != 0;
    let signature = || __cpuid(KVM_SIGNATURE);
    present && [signature().ebx, signature().ecx, signature().edx] == TCG_SIGNATURE
}

/// Leaf 1 `EBX`: logical processors in the package, initial APIC ID.
const LEAF1_EBX_COUNT_SHIFT: u32 = 16;
const LEAF1_EBX_APIC_SHIFT: u32 = 24;
/// Leaf 1 `ECX` bit 5: VMX. A guest gets no virtualization of its own: KVM's nesting is the largest part of it that a
/// hostile guest could reach, and a kernel that has KVM built in would spend its boot on setting it up.
const LEAF1_ECX_VMX: u32 = 1 << 5;
/// Leaf 0x8000_0001 `ECX` bit 2: SVM, likewise.
const EXT1_ECX_SVM: u32 = 1 << 2;
/// What SVM can do (AMD).
const SVM_FEATURES: u32 = 0x8000_000a;
/// Leaf 1 `ECX` bit 24: TSC-deadline timer. KVM leaves it to the VMM, which knows whether the APIC is KVM's.
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 `ECX` bit 31: a hypervisor is present.
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 `EDX` bit 28: the package has more than one logical processor.
const LEAF1_EDX_HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 `ECX` bit 1: the cores of the package are counted in leaf 1 (AMD).
const EXT1_ECX_CMP_LEGACY: u32 = 1 << 1;
/// The topology leaf and its successor, the same for what there is here.
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_2: u32 = 0x1f;
/// Leaf 0xb: level types.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;
/// KVM's first paravirtual leaf, the first leaf of any hypervisor.
const KVM_SIGNATURE: u32 = 0x4000_0000;
/// "TCGT", "CGTC", "GTCG": the name of QEMU's emulation there.
const TCG_SIGNATURE: [u32; 3] = [0x5447_4354, 0x4354_4743, 0x4743_5447];
/// KVM's paravirtual features, and among them in `EAX` the end of an interrupt without an exit.
const KVM_FEATURES: u32 = 0x4000_0001;
const KVM_FEATURE_PV_EOI: u32 = 1 << 6;
/// Frequencies of TSC and local APIC timer (kHz), a convention of hypervisors that some guests read.
const HYPERVISOR_FREQUENCIES: u32 = 0x4000_0010;
/// KVM's local APIC timer runs at 1 GHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Number of this vCPU in the topology leaves; everything else stays what KVM supports.
pub fn patch(
    supported: &CpuId,
    place: Place,
    host: Host,
) -> Result<CpuId, vmm_sys_util::fam::Error> {
    // The topology leaf is written whole; KVM's has the host's numbers in it.
    let mut entries: Vec<_> = supported
        .as_slice()
        .iter()
        .filter(|entry| {
            !matches!(
                entry.function,
                TOPOLOGY | TOPOLOGY_2 | HYPERVISOR_FREQUENCIES | SVM_FEATURES
            )
        })
        .copied()
        .collect();
    for entry in &mut entries {
        patch_entry(entry, place, host);
    }
    let highest = entries.iter().find(|entry| entry.function == 0);
    let highest = highest.map_or(0, |entry| entry.eax);
    for leaf in [TOPOLOGY, TOPOLOGY_2]
        .into_iter()
        .filter(|leaf| *leaf <= highest)
    {
        entries.extend(topology(leaf, place));
    }
    if let Some(khz) = host.tsc_khz {
        entries.push(kvm_cpuid_entry2 {
            function: HYPERVISOR_FREQUENCIES,
            eax: khz,
            ebx: APIC_BUS_KHZ,
            ..Default::default()
        });
    }
    CpuId::from_entries(&entries)
}

fn patch_entry(entry: &mut kvm_cpuid_entry2, place: Place, host: Host) {
    match entry.function {
        0x1 => {
            entry.ebx &= 0xffff;
            entry.ebx |= place.processors() << LEAF1_EBX_COUNT_SHIFT;
            entry.ebx |= place.apic_id() << LEAF1_EBX_APIC_SHIFT;
            entry.ecx |= LEAF1_ECX_HYPERVISOR;
            entry.ecx &= !LEAF1_ECX_VMX;
            set(&mut entry.ecx, LEAF1_ECX_TSC_DEADLINE, host.tsc_deadline);
            set(&mut entry.edx, LEAF1_EDX_HTT, place.processors() > 1);
        }
        // Caches of Intel: sharing in bits 14-25, cores in the package in bits 26-31, each less one.
        0x4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            entry.eax &= 0x3fff;
            entry.eax |= place.sharing(level) << 14;
            entry.eax |= ((1 << (place.package_bits() - place.thread_bits())) - 1) << 26;
        }
        KVM_SIGNATURE if host.tsc_khz.is_some() => {
            entry.eax = entry.eax.max(HYPERVISOR_FREQUENCIES);
        }
        // QEMU's VMRUN keeps the vector that it has injected as a pending exception until the next exit: whatever makes
        // QEMU's loop turn before it delivers the vector once more, even with interrupts off. The end of an interrupt,
        // which handlers say first, is such an exit.
        KVM_FEATURES if host.emulated => entry.eax &= !KVM_FEATURE_PV_EOI,
        0x8000_0001 => {
            let counted = is_amd(entry.ecx) && place.processors() > 1;
            set(&mut entry.ecx, EXT1_ECX_CMP_LEGACY, counted);
            entry.ecx &= !EXT1_ECX_SVM;
        }
        // Processors of AMD: number less one, bits of an APIC ID that number them.
        0x8000_0008 => {
            entry.ecx &= !0xf0ff;
            entry.ecx |= (place.processors() - 1) | place.package_bits() << 12;
        }
        // Caches of AMD: sharing in bits 14-25.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            entry.eax &= 0x3fff;
            entry.eax |= place.sharing(level) << 14;
        }
        // Place of AMD: APIC ID; core and its threads less one; node 0 of 1.
        0x8000_001e => {
            entry.eax = place.apic_id();
            entry.ebx = place.apic_id() >> place.thread_bits() | (place.threads() - 1) << 8;
            entry.ecx = 0;
            entry.edx = 0;
        }
        _ => {}
    }
}

/// Whether `ecx` of leaf 0x8000_0001 is of a processor that has AMD's extensions: SVM or topology extensions.
fn is_amd(ecx: u32) -> bool {
    ecx & (1 << 2 | 1 << 22) != 0
}

fn set(register: &mut u32, mask: u32, on: bool) {
    if on {
        *register |= mask;
    } else {
        *register &= !mask;
    }
}

/// Threads of a core, processors of the package, the end.
fn topology(leaf: u32, place: Place) -> [kvm_cpuid_entry2; 3] {
    let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: place.apic_id(),
        ..Default::default()
    };
    [
        level(0, place.thread_bits(), place.threads(), LEVEL_THREAD),
        level(1, place.package_bits(), place.processors(), LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host {
        tsc_deadline: true,
        tsc_khz: Some(2_000_000),
        emulated: false,
    };

    fn entry(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            ..Default::default()
        }
    }

    fn supported() -> CpuId {
        let mut first = entry(0);
        first.eax = 0xd;
        let mut host_topology = entry(0xb);
        host_topology.edx = 77;
        CpuId::from_entries(&[
            first,
            entry(1),
            host_topology,
            entry(KVM_SIGNATURE),
            entry(0x8000_0008),
            entry(0x8000_001e),
        ])
        .unwrap()
    }

    /// Place `id` of `count` cores with one thread each.
    fn single(id: u8, count: u8) -> Place {
        Place {
            id,
            count,
            threads: 1,
        }
    }

    #[test]
    fn two_threads_share_a_core_in_every_leaf() {
        let mut first = entry(0);
        first.eax = 0x1f;
        let cache = |level: u32, index| kvm_cpuid_entry2 {
            index,
            eax: level << 5 | 1,
            ..entry(4)
        };
        let host = [
            first,
            entry(1),
            cache(1, 0),
            cache(3, 1),
            entry(0x8000_001e),
        ];
        let host = CpuId::from_entries(&host).unwrap();
        let place = Place {
            id: 5,
            count: 6,
            threads: 2,
        };
        let cpuid = patch(&host, place, HOST).unwrap();
        for topology in [0xb, 0x1f] {
            let (thread, core) = (leaf(&cpuid, topology, 0), leaf(&cpuid, topology, 1));
            assert_eq!((thread.eax, thread.ebx, thread.edx), (1, 2, 5));
            assert_eq!((core.eax, core.ebx), (3, 6));
        }
        let (first, last) = (leaf(&cpuid, 4, 0).eax, leaf(&cpuid, 4, 1).eax);
        assert_eq!((first >> 14 & 0xfff, first >> 26), (1, 3));
        assert_eq!(last >> 14 & 0xfff, 5);
        let amd = leaf(&cpuid, 0x8000_001e, 0);
        assert_eq!((amd.eax, amd.ebx), (5, 2 | 1 << 8));
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|e| (e.function, e.index) == (function, index))
            .unwrap()
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id_in_every_leaf() {
        for count in [1, 2, 3, 32] {
            for id in 0..count {
                let cpuid = patch(&supported(), single(id, count), HOST).unwrap();
                assert_eq!(leaf(&cpuid, 1, 0).ebx >> 24, u32::from(id));
                assert_eq!(leaf(&cpuid, 1, 0).ebx >> 16 & 0xff, u32::from(count));
                assert_eq!(leaf(&cpuid, 0x8000_001e, 0).eax, u32::from(id));
                for level in 0..3 {
                    assert_eq!(leaf(&cpuid, 0xb, level).edx, u32::from(id));
                }
            }
        }
    }

    #[test]
    fn a_guest_gets_no_virtualization_of_its_own() {
        let mut leaf1 = entry(1);
        leaf1.ecx = !0;
        let mut ext1 = entry(0x8000_0001);
        ext1.ecx = !0;
        let host = CpuId::from_entries(&[leaf1, ext1, entry(SVM_FEATURES)]).unwrap();
        let cpuid = patch(&host, single(0, 1), HOST).unwrap();
        assert_eq!(leaf(&cpuid, 1, 0).ecx & LEAF1_ECX_VMX, 0);
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx & EXT1_ECX_SVM, 0);
        assert!(cpuid.as_slice().iter().all(|e| e.function != SVM_FEATURES));
    }

    #[test]
    fn the_core_level_has_room_for_all_apic_ids() {
        for (count, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (32, 5)] {
            let cpuid = patch(&supported(), single(0, count), HOST).unwrap();
            assert_eq!(leaf(&cpuid, 0xb, 1).eax, bits, "{count} vCPUs");
            assert_eq!(leaf(&cpuid, 0xb, 1).ebx, u32::from(count));
            assert_eq!(
                leaf(&cpuid, 0x8000_0008, 0).ecx,
                (u32::from(count) - 1) | (bits << 12)
            );
        }
    }

    #[test]
    fn the_hosts_topology_does_not_reach_the_guest() {
        let cpuid = patch(&supported(), single(0, 1), HOST).unwrap();
        assert!(cpuid.as_slice().iter().all(|e| e.edx != 77));
        assert_eq!(
            cpuid
                .as_slice()
                .iter()
                .filter(|e| e.function == 0xb)
                .count(),
            3
        );
    }

    #[test]
    fn the_deadline_timer_is_offered_only_when_kvm_has_it() {
        let place = single(0, 1);
        let with = patch(&supported(), place, HOST).unwrap();
        assert_ne!(leaf(&with, 1, 0).ecx & LEAF1_ECX_TSC_DEADLINE, 0);
        let host = Host {
            tsc_deadline: false,
            tsc_khz: None,
            emulated: false,
        };
        let without = patch(&supported(), place, host).unwrap();
        assert_eq!(leaf(&without, 1, 0).ecx & LEAF1_ECX_TSC_DEADLINE, 0);
        assert!(
            without
                .as_slice()
                .iter()
                .all(|e| e.function != HYPERVISOR_FREQUENCIES)
        );
    }

    #[test]
    fn an_interrupt_ends_with_an_exit_on_an_emulated_host() {
        let features = kvm_cpuid_entry2 {
            eax: KVM_FEATURE_PV_EOI | 1,
            ..entry(KVM_FEATURES)
        };
        let supported = CpuId::from_entries(&[features]).unwrap();
        for (emulated, eax) in [(false, KVM_FEATURE_PV_EOI | 1), (true, 1)] {
            let host = Host { emulated, ..HOST };
            let cpuid = patch(&supported, single(0, 1), host).unwrap();
            assert_eq!(leaf(&cpuid, KVM_FEATURES, 0).eax, eax);
        }
    }
}
