//! Whether this host has what the guest's processor had.

use kvm_bindings::kvm_cpuid_entry2;

/// The registers that a feature can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

/// Leaf, index, register, and the bits of it that are features which a guest may use at any time. Not among them are those
/// that follow the state of the processor (`OSXSAVE`, `OSPKE`) and those that KVM's own emulation has on every host.
const FEATURES: [(u32, u32, Register, u32); 15] = [
    (1, 0, Ecx, !(1 << 27 | 1 << 24 | 1 << 31 | 1 << 21)),
    (1, 0, Edx, !(1 << 28 | 1 << 9)),
    (7, 0, Ebx, u32::MAX),
    (7, 0, Ecx, !(1 << 4)),
    (7, 0, Edx, u32::MAX),
    (7, 1, Eax, u32::MAX),
    (7, 1, Edx, u32::MAX),
    (7, 2, Edx, u32::MAX),
    (0xd, 1, Eax, u32::MAX),
    (0x4000_0001, 0, Eax, u32::MAX),
    // The count of cores in the package is the VMM's to say.
    (0x8000_0001, 0, Ecx, !(1 << 1)),
    (0x8000_0001, 0, Edx, !(1 << 9)),
    (0x8000_0008, 0, Ebx, u32::MAX),
    (0x8000_0021, 0, Eax, u32::MAX),
    // State components that `XSAVE` keeps.
    (0xd, 0, Eax, u32::MAX),
];

/// Those that have names people use; the others are told by their place.
const NAMES: [(u32, u32, Register, u32, &str); 44] = [
    (1, 0, Ecx, 0, "SSE3"),
    (1, 0, Ecx, 1, "PCLMULQDQ"),
    (1, 0, Ecx, 9, "SSSE3"),
    (1, 0, Ecx, 12, "FMA"),
    (1, 0, Ecx, 13, "CMPXCHG16B"),
    (1, 0, Ecx, 17, "PCID"),
    (1, 0, Ecx, 19, "SSE4.1"),
    (1, 0, Ecx, 20, "SSE4.2"),
    (1, 0, Ecx, 22, "MOVBE"),
    (1, 0, Ecx, 23, "POPCNT"),
    (1, 0, Ecx, 25, "AES"),
    (1, 0, Ecx, 26, "XSAVE"),
    (1, 0, Ecx, 28, "AVX"),
    (1, 0, Ecx, 29, "F16C"),
    (1, 0, Ecx, 30, "RDRAND"),
    (7, 0, Ebx, 0, "FSGSBASE"),
    (7, 0, Ebx, 3, "BMI1"),
    (7, 0, Ebx, 5, "AVX2"),
    (7, 0, Ebx, 7, "SMEP"),
    (7, 0, Ebx, 8, "BMI2"),
    (7, 0, Ebx, 9, "ERMS"),
    (7, 0, Ebx, 10, "INVPCID"),
    (7, 0, Ebx, 16, "AVX512F"),
    (7, 0, Ebx, 17, "AVX512DQ"),
    (7, 0, Ebx, 18, "RDSEED"),
    (7, 0, Ebx, 19, "ADX"),
    (7, 0, Ebx, 20, "SMAP"),
    (7, 0, Ebx, 23, "CLFLUSHOPT"),
    (7, 0, Ebx, 24, "CLWB"),
    (7, 0, Ebx, 28, "AVX512CD"),
    (7, 0, Ebx, 29, "SHA"),
    (7, 0, Ebx, 30, "AVX512BW"),
    (7, 0, Ebx, 31, "AVX512VL"),
    (7, 0, Ecx, 2, "UMIP"),
    (7, 0, Ecx, 3, "PKU"),
    (7, 0, Ecx, 9, "VAES"),
    (7, 0, Ecx, 10, "VPCLMULQDQ"),
    (7, 0, Ecx, 22, "RDPID"),
    (7, 0, Edx, 26, "IBRS"),
    (7, 0, Edx, 31, "SSBD"),
    (0x8000_0001, 0, Ecx, 5, "LZCNT"),
    (0x8000_0001, 0, Ecx, 6, "SSE4A"),
    (0x8000_0001, 0, Edx, 26, "1 GiB pages"),
    (0x8000_0001, 0, Edx, 27, "RDTSCP"),
];

/// Most features that are named one by one.
const MOST: usize = 20;

fn value(entry: &kvm_cpuid_entry2, register: Register) -> u32 {
    match register {
        Eax => entry.eax,
        Ebx => entry.ebx,
        Ecx => entry.ecx,
        Edx => entry.edx,
    }
}

fn find(entries: &[kvm_cpuid_entry2], leaf: u32, index: u32, register: Register) -> u32 {
    let mut entries = entries.iter();
    let found = entries.find(|entry| entry.function == leaf && entry.index == index);
    found.map_or(0, |entry| value(entry, register))
}

fn name(leaf: u32, index: u32, register: Register, bit: u32) -> String {
    let mut names = NAMES.iter();
    let found = names.find(|name| (name.0, name.1, name.2, name.3) == (leaf, index, register, bit));
    match found {
        Some((.., name)) => (*name).into(),
        None => format!("CPUID {leaf:#x}.{index} {register:?} bit {bit}"),
    }
}

/// The features that a guest with the CPUID `guest` has, and a host that `supported` is about lacks: `None`, or their names.
pub fn missing(guest: &[kvm_cpuid_entry2], supported: &[kvm_cpuid_entry2]) -> Option<String> {
    let mut names = Vec::new();
    for (leaf, index, register, mask) in FEATURES {
        let has = find(guest, leaf, index, register) & mask;
        let lacks = has & !find(supported, leaf, index, register);
        let bits = (0..32).filter(|bit| lacks & 1 << bit != 0);
        names.extend(bits.map(|bit| name(leaf, index, register, bit)));
    }
    let more = names.len().saturating_sub(MOST);
    names.truncate(MOST);
    let mut text = names.join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    #[test]
    fn what_the_host_lacks_is_named_and_what_it_has_more_is_nothing() {
        let guest = [
            entry(1, 0, [0, 0, 1 << 28 | 1 << 20, 0]),
            entry(7, 0, [0, 1 << 5 | 1 << 15, 0, 0]),
        ];
        assert_eq!(missing(&guest, &guest), None);
        let more = [
            entry(1, 0, [0, 0, u32::MAX, u32::MAX]),
            entry(7, 0, [0, u32::MAX, 0, 0]),
        ];
        assert_eq!(missing(&guest, &more), None);
        assert_eq!(
            missing(&guest, &guest[..1]).unwrap(),
            "AVX2, CPUID 0x7.0 Ebx bit 15"
        );
        let text = missing(&guest, &[]).unwrap();
        assert!(text.starts_with("SSE4.2, AVX, AVX2"), "{text}");
        let all = missing(&more, &[]).unwrap();
        assert!(all.ends_with(" more") && all.len() < 1000, "{all}");
    }

    #[test]
    fn what_follows_the_state_of_a_processor_is_no_feature() {
        // OSXSAVE and the bit of several processors.
        let guest = [entry(1, 0, [0, 0, 1 << 27, 1 << 28])];
        assert_eq!(missing(&guest, &[]), None);
    }
}
