//! Portable processors: what a guest sees of the host's CPU, cut down to a level that many hosts have.
//!
//! The levels are those of the x86-64 psABI. A guest that was started with one finds the same instructions on every host
//! that has the level, of the same vendor, and so may be moved there. Beyond the level it gets what every 64-bit processor
//! under KVM has, and two things that follow the host: its family and model, by which a kernel knows errata, and the
//! controls against speculation, without which it would be unsafe.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::config::CpuTemplate;

/// Why a host cannot run a guest of a level.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant describes it and its values"
)]
pub enum TemplateError {
    #[error(
        "This host lacks {missing} of cpu_template \"{template}\": choose a lower level or another host"
    )]
    Missing {
        template: CpuTemplate,
        missing: String,
    },
    #[error("Cannot build the CPUID of cpu_template \"{template}\"")]
    Build {
        template: CpuTemplate,
        #[source]
        source: vmm_sys_util::fam::Error,
    },
}

/// A register of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

/// A feature: leaf, index, register, bit, name.
type Feature = (u32, u32, Register, u32, &'static str);

const LEVEL_2: [Feature; 7] = [
    (1, 0, Ecx, 0, "SSE3"),
    (1, 0, Ecx, 9, "SSSE3"),
    (1, 0, Ecx, 13, "CMPXCHG16B"),
    (1, 0, Ecx, 19, "SSE4.1"),
    (1, 0, Ecx, 20, "SSE4.2"),
    (1, 0, Ecx, 23, "POPCNT"),
    (0x8000_0001, 0, Ecx, 0, "LAHF-SAHF"),
];
const LEVEL_3: [Feature; 9] = [
    (1, 0, Ecx, 12, "FMA"),
    (1, 0, Ecx, 22, "MOVBE"),
    (1, 0, Ecx, 26, "XSAVE"),
    (1, 0, Ecx, 28, "AVX"),
    (1, 0, Ecx, 29, "F16C"),
    (7, 0, Ebx, 3, "BMI1"),
    (7, 0, Ebx, 5, "AVX2"),
    (7, 0, Ebx, 8, "BMI2"),
    (0x8000_0001, 0, Ecx, 5, "LZCNT"),
];
const LEVEL_4: [Feature; 5] = [
    (7, 0, Ebx, 16, "AVX512F"),
    (7, 0, Ebx, 17, "AVX512DQ"),
    (7, 0, Ebx, 28, "AVX512CD"),
    (7, 0, Ebx, 30, "AVX512BW"),
    (7, 0, Ebx, 31, "AVX512VL"),
];

/// What every guest keeps, whatever its level: leaf, index, register, mask.
const ALWAYS: [(u32, u32, Register, u32); 14] = [
    // x2APIC, TSC deadline timer, hypervisor: KVM's own, on any host.
    (1, 0, Ecx, 1 << 21 | 1 << 24 | 1 << 31),
    // FPU to CMPXCHG8B, APIC, SYSENTER, MTRR to PSE-36, CLFLUSH, MMX to SSE2, several processors.
    (1, 0, Edx, 0x1783_fbff | 1 << 19),
    // The APIC timer never stops.
    (6, 0, Eax, 1 << 2),
    // Clearing of buffers, IBRS and IBPB, STIBP, flush of L1D, what the host is immune to, SSBD.
    (
        7,
        0,
        Edx,
        1 << 10 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31,
    ),
    // kvmclock, delays, steal time, end of interrupt, spinning, stable clock.
    (
        0x4000_0001,
        0,
        Eax,
        1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 24,
    ),
    (0x4000_0001, 0, Edx, 0),
    // Count of cores, CR8 in 32-bit mode, topology extensions.
    (0x8000_0001, 0, Ecx, 1 << 1 | 1 << 4 | 1 << 22),
    // AMD's copy of leaf 1, SYSCALL, no execution, 64-bit mode.
    (
        0x8000_0001,
        0,
        Edx,
        0x0183_f3ff | 1 << 11 | 1 << 20 | 1 << 29,
    ),
    // Widths of addresses and the count of cores are patched or the host's; AMD's controls against speculation.
    (0x8000_0008, 0, Eax, u32::MAX),
    (
        0x8000_0008,
        0,
        Ebx,
        1 << 12 | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 24 | 1 << 25 | 1 << 26,
    ),
    (0x8000_0008, 0, Ecx, u32::MAX),
    (0x8000_0008, 0, Edx, 0),
    (6, 0, Ecx, 0),
    (7, 0, Eax, 0),
];

/// Leaves of features that no level has: they go as a whole. Monitoring of performance, resource control, trace, key
/// locker, tiles, AVX10; power management, performance hints, encryption and the later ones of AMD.
const NEVER: [u32; 17] = [
    5,
    0xa,
    0xf,
    0x10,
    0x12,
    0x14,
    0x19,
    0x1c,
    0x1d,
    0x1e,
    0x23,
    0x24,
    0x8000_0007,
    0x8000_001a,
    0x8000_001f,
    0x8000_0021,
    0x8000_0022,
];

/// Leaves with features in them, whose every bit has to be permitted by name.
const FEATURE_LEAVES: [u32; 6] = [1, 6, 7, 0x4000_0001, 0x8000_0001, 0x8000_0008];

/// State that `XSAVE` keeps: x87, SSE, AVX; the three parts of AVX-512.
const STATE_AVX: u32 = 0x7;
const STATE_AVX512: u32 = 0xe7;
/// Bytes of that state in the standard format (Intel SDM vol. 1 §13.4).
const BYTES_AVX: u32 = 512 + 64 + 256;
const BYTES_AVX512: u32 = 2688;

fn features(template: CpuTemplate) -> Vec<Feature> {
    let mut features = Vec::new();
    for (level, list) in [
        (CpuTemplate::V2, &LEVEL_2[..]),
        (CpuTemplate::V3, &LEVEL_3),
        (CpuTemplate::V4, &LEVEL_4),
    ] {
        if template >= level {
            features.extend(list);
        }
    }
    features
}

/// Cuts what KVM supports down to `template`.
pub fn apply(template: CpuTemplate, supported: &CpuId) -> Result<CpuId, TemplateError> {
    if template == CpuTemplate::Host {
        return Ok(supported.clone());
    }
    let features = features(template);
    let missing: Vec<_> = features
        .iter()
        .filter(|(leaf, index, register, bit, _)| {
            let entry = find(supported, *leaf, *index);
            entry.is_none_or(|entry| value(&entry, *register) & 1 << bit == 0)
        })
        .map(|feature| feature.4)
        .collect();
    if !missing.is_empty() {
        return Err(TemplateError::Missing {
            template,
            missing: missing.join(", "),
        });
    }
    let entries: Vec<_> = supported
        .as_slice()
        .iter()
        .filter_map(|entry| cut(template, &features, *entry))
        .collect();
    CpuId::from_entries(&entries).map_err(|source| TemplateError::Build { template, source })
}

/// What is left of one entry.
fn cut(
    template: CpuTemplate,
    features: &[Feature],
    mut entry: kvm_cpuid_entry2,
) -> Option<kvm_cpuid_entry2> {
    let (leaf, index) = (entry.function, entry.index);
    match leaf {
        _ if NEVER.contains(&leaf) => return None,
        7 if index > 0 => return None,
        0xd => return extended_state(template, entry),
        0x8000_0002..=0x8000_0004 => name(template, &mut entry),
        _ if FEATURE_LEAVES.contains(&leaf) => {
            // Leaf 1's version, and its numbers that `cpuid::patch` writes.
            let kept: &[Register] = if leaf == 1 { &[Eax, Ebx] } else { &[] };
            for register in [Eax, Ebx, Ecx, Edx] {
                if !kept.contains(&register) {
                    *place(&mut entry, register) &= permitted(features, leaf, index, register);
                }
            }
        }
        _ => {}
    }
    Some(entry)
}

fn permitted(features: &[Feature], leaf: u32, index: u32, register: Register) -> u32 {
    let of_level = features
        .iter()
        .filter(|f| (f.0, f.1, f.2) == (leaf, index, register))
        .fold(0, |mask, f| mask | 1 << f.3);
    ALWAYS
        .iter()
        .filter(|f| (f.0, f.1, f.2) == (leaf, index, register))
        .fold(of_level, |mask, f| mask | f.3)
}

/// Leaf 0xd: which registers `XSAVE` keeps. `XCR0` follows from it.
fn extended_state(template: CpuTemplate, mut entry: kvm_cpuid_entry2) -> Option<kvm_cpuid_entry2> {
    let (state, bytes) = match template {
        CpuTemplate::Host | CpuTemplate::V2 => return None,
        CpuTemplate::V3 => (STATE_AVX, BYTES_AVX),
        CpuTemplate::V4 => (STATE_AVX512, BYTES_AVX512),
    };
    match entry.index {
        0 => {
            entry.eax &= state;
            entry.ebx = bytes;
            entry.ecx = bytes;
            entry.edx = 0;
            Some(entry)
        }
        // No compacted format and no supervisor state.
        1 => None,
        part if part < 32 && state & 1 << part != 0 => Some(entry),
        _ => None,
    }
}

/// The processor's name, 16 of its 48 bytes to a leaf.
fn name(template: CpuTemplate, entry: &mut kvm_cpuid_entry2) {
    let text = format!("Daruma {template}");
    let start = (entry.function - 0x8000_0002) as usize * 16;
    let mut bytes = [0; 16];
    for (byte, character) in bytes.iter_mut().zip(text.bytes().skip(start)) {
        *byte = character;
    }
    for (register, word) in [Eax, Ebx, Ecx, Edx]
        .into_iter()
        .zip(bytes.as_chunks::<4>().0)
    {
        *place(entry, register) = u32::from_le_bytes(*word);
    }
}

fn find(cpuid: &CpuId, leaf: u32, index: u32) -> Option<kvm_cpuid_entry2> {
    cpuid
        .as_slice()
        .iter()
        .find(|entry| (entry.function, entry.index) == (leaf, index))
        .copied()
}

fn value(entry: &kvm_cpuid_entry2, register: Register) -> u32 {
    match register {
        Eax => entry.eax,
        Ebx => entry.ebx,
        Ecx => entry.ecx,
        Edx => entry.edx,
    }
}

fn place(entry: &mut kvm_cpuid_entry2, register: Register) -> &mut u32 {
    match register {
        Eax => &mut entry.eax,
        Ebx => &mut entry.ebx,
        Ecx => &mut entry.ecx,
        Edx => &mut entry.edx,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that says yes to everything.
    fn everything() -> CpuId {
        let full = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        };
        let leaves = [
            (1, 0),
            (6, 0),
            (7, 0),
            (7, 1),
            (0xa, 0),
            (0xd, 0),
            (0xd, 1),
            (0xd, 2),
            (0xd, 5),
            (0xd, 9),
            (0x14, 0),
            (0x4000_0001, 0),
            (0x8000_0001, 0),
            (0x8000_0002, 0),
            (0x8000_0003, 0),
            (0x8000_0008, 0),
        ];
        CpuId::from_entries(&leaves.map(|(leaf, index)| full(leaf, index))).unwrap()
    }

    fn has(cpuid: &CpuId, (leaf, index, register, bit, _): Feature) -> bool {
        find(cpuid, leaf, index).is_some_and(|entry| value(&entry, register) & 1 << bit != 0)
    }

    #[test]
    fn a_level_has_its_features_and_none_of_the_next() {
        for (template, has_3, has_4) in [
            (CpuTemplate::V2, false, false),
            (CpuTemplate::V3, true, false),
            (CpuTemplate::V4, true, true),
        ] {
            let cpuid = apply(template, &everything()).unwrap();
            assert!(LEVEL_2.iter().all(|feature| has(&cpuid, *feature)));
            assert!(LEVEL_3.iter().all(|feature| has(&cpuid, *feature) == has_3));
            assert!(LEVEL_4.iter().all(|feature| has(&cpuid, *feature) == has_4));
            // AES, RDRAND; SGX and MPX; FSRM; PCID.
            for (leaf, register, bit) in [
                (1, Ecx, 25),
                (1, Ecx, 30),
                (7, Ebx, 2),
                (7, Ebx, 14),
                (7, Edx, 4),
                (1, Ecx, 17),
            ] {
                assert!(
                    !has(&cpuid, (leaf, 0, register, bit, "")),
                    "{leaf:#x} {register:?} {bit}"
                );
            }
            // Long mode, no execution, SSE2, IBRS stay.
            for (leaf, register, bit) in [
                (0x8000_0001, Edx, 29),
                (0x8000_0001, Edx, 20),
                (1, Edx, 26),
                (7, Edx, 26),
            ] {
                assert!(
                    has(&cpuid, (leaf, 0, register, bit, "")),
                    "{leaf:#x} {register:?} {bit}"
                );
            }
            for (leaf, index) in [(7, 1), (0xa, 0), (0xd, 1), (0xd, 9), (0x14, 0)] {
                assert!(find(&cpuid, leaf, index).is_none(), "{leaf:#x}.{index}");
            }
        }
    }

    #[test]
    fn extended_state_matches_the_level() {
        let state = |template| {
            let cpuid = apply(template, &everything()).unwrap();
            let leaf = find(&cpuid, 0xd, 0).map(|entry| (entry.eax, entry.ecx));
            (leaf, find(&cpuid, 0xd, 5).is_some())
        };
        assert_eq!(state(CpuTemplate::V2), (None, false));
        assert_eq!(state(CpuTemplate::V3), (Some((7, 832)), false));
        assert_eq!(state(CpuTemplate::V4), (Some((0xe7, 2688)), true));
    }

    #[test]
    fn what_a_host_lacks_is_named() {
        let mut host = everything();
        for entry in host.as_mut_slice() {
            if entry.function == 7 {
                entry.ebx &= !(1 << 5 | 1 << 8);
            }
        }
        assert!(apply(CpuTemplate::V2, &host).is_ok());
        let text = apply(CpuTemplate::V3, &host).unwrap_err().to_string();
        assert!(
            text.contains("lacks AVX2, BMI2 of cpu_template \"x86-64-v3\""),
            "{text}"
        );
    }

    #[test]
    fn the_host_as_it_is_stays_as_it_is() {
        let host = everything();
        assert_eq!(apply(CpuTemplate::Host, &host).unwrap(), host);
    }

    #[test]
    fn the_name_says_the_level() {
        let cpuid = apply(CpuTemplate::V2, &everything()).unwrap();
        let first = find(&cpuid, 0x8000_0002, 0).unwrap();
        let bytes: Vec<u8> = [first.eax, first.ebx, first.ecx, first.edx]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        assert_eq!(bytes, *b"Daruma x86-64-v2");
        assert_eq!(find(&cpuid, 0x8000_0003, 0).unwrap().eax, 0);
    }
}
