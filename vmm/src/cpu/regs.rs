//! Registers of the boot vCPU at the entry to the kernel. The other vCPUs wait in KVM for their start-up IPI.

use kvm_bindings::{
    CpuId, kvm_dtable, kvm_fpu, kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs, kvm_xcrs,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::boot::Entry;
use crate::boot::multiboot::ENTRY_MAGIC;
use crate::layout::{BOOT_STACK, GDT, IDT, MULTIBOOT_INFO, PML4, PVH_START_INFO, ZERO_PAGE};
use crate::memory::GuestMemory;

/// `CR0`: protection enable, extension type (always set), paging.
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
/// `CR4`: physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// `EFER`: long mode enabled, long mode active.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// `RFLAGS`: the bit that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Selectors as the Linux boot protocol names them.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TR: u16 = 0x20;

/// Descriptor types: code execute/read accessed, data read/write accessed, busy task state.
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_TSS: u8 = 0xb;
/// Bytes of a minimal task state segment, less one.
const TSS_LIMIT: u32 = 0x67;

/// Offsets of the local interrupt vector registers in the APIC page.
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
/// Delivery modes, in bits 8 to 10.
const APIC_MODE_NMI: u32 = 4 << 8;
const APIC_MODE_EXTINT: u32 = 7 << 8;

/// A flat segment of 4 GiB.
fn flat(selector: u16, type_: u8, long: bool) -> kvm_segment {
    let code = type_ == TYPE_CODE;
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!(code && long)),
        s: 1,
        l: u8::from(code && long),
        g: 1,
        ..Default::default()
    }
}

fn task_state() -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: TSS_LIMIT,
        selector: BOOT_TR,
        type_: TYPE_TSS,
        present: 1,
        ..Default::default()
    }
}

/// The descriptor that makes a segment register what `segment` says (Intel SDM vol. 3 §3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let base = segment.base;
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.avl)
        | u64::from(segment.l) << 1
        | u64::from(segment.db) << 2
        | u64::from(segment.g) << 3;
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

/// Writes the descriptor table that the segment registers were loaded from, and an empty interrupt table.
pub fn write_tables(memory: &GuestMemory, entry: Entry) -> Result<(), GuestMemoryError> {
    for (address, descriptor) in (GDT..).step_by(8).zip(table(entry)) {
        memory.write_obj(descriptor, GuestAddress(address))?;
    }
    memory.write_obj(0u64, GuestAddress(IDT))
}

/// Null, unused, code, data, task state (16 bytes in 64-bit mode).
fn table(entry: Entry) -> [u64; 6] {
    let (code, data, tss) = segments(entry);
    [
        0,
        0,
        descriptor(&code),
        descriptor(&data),
        descriptor(&tss),
        0,
    ]
}

fn segments(entry: Entry) -> (kvm_segment, kvm_segment, kvm_segment) {
    let long = matches!(entry, Entry::Linux64 { .. });
    (
        flat(BOOT_CS, TYPE_CODE, long),
        flat(BOOT_DS, TYPE_DATA, long),
        task_state(),
    )
}

/// Segment and control registers: `sregs` are those of KVM's reset state.
pub fn set_special(sregs: &mut kvm_sregs, entry: Entry) {
    let (code, data, tss) = segments(entry);
    sregs.cs = code;
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.tr = tss;
    let limit = |bytes: usize| u16::try_from(bytes - 1).unwrap_or(u16::MAX);
    sregs.gdt = kvm_dtable {
        base: GDT,
        limit: limit(size_of_val(&table(entry))),
        ..Default::default()
    };
    sregs.idt = kvm_dtable {
        base: IDT,
        limit: limit(size_of::<u64>()),
        ..Default::default()
    };
    match entry {
        Entry::Pvh { .. } | Entry::Multiboot { .. } => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
        }
        Entry::Linux64 { .. } => {
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = PML4;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
    }
}

/// General registers.
pub fn general(entry: Entry) -> kvm_regs {
    match entry {
        Entry::Pvh { rip } => kvm_regs {
            rip,
            rflags: RFLAGS_RESERVED,
            rbx: PVH_START_INFO,
            ..Default::default()
        },
        Entry::Multiboot { rip } => kvm_regs {
            rip,
            rflags: RFLAGS_RESERVED,
            rax: ENTRY_MAGIC.into(),
            rbx: MULTIBOOT_INFO,
            ..Default::default()
        },
        Entry::Linux64 { rip } => kvm_regs {
            rip,
            rflags: RFLAGS_RESERVED,
            rsi: ZERO_PAGE,
            rsp: BOOT_STACK,
            rbp: BOOT_STACK,
            ..Default::default()
        },
    }
}

/// `XCR0` with everything that needs no permission from the host: x87, SSE, AVX, AVX-512. `None` without `XSAVE`.
///
/// A guest sets it before it uses `XSAVE`. Where the processor fails to tell KVM of that (nested under an emulator), KVM
/// would go on to report the size of the reset state in CPUID leaf 0xd, and the guest would find that inconsistent.
pub fn extended_control(cpuid: &CpuId) -> Option<kvm_xcrs> {
    const LEAF: u32 = 0xd;
    const NEEDS_NO_PERMISSION: u32 = 0xe7;
    let leaf = cpuid
        .as_slice()
        .iter()
        .find(|e| (e.function, e.index) == (LEAF, 0))?;
    let value = leaf.eax & NEEDS_NO_PERMISSION;
    if value == 0 {
        return None;
    }
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    xcrs.xcrs[0].value = value.into();
    Some(xcrs)
}

/// Floating point as after `FNINIT`, with all SSE exceptions masked.
pub fn floating_point() -> kvm_fpu {
    kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    }
}

/// Connects the local interrupt pins as a PC's firmware does: pin 0 takes interrupts from outside, pin 1 takes NMIs.
pub fn connect_local_interrupts(apic: &mut kvm_lapic_state) {
    for (offset, mode) in [
        (APIC_LVT_LINT0, APIC_MODE_EXTINT),
        (APIC_LVT_LINT1, APIC_MODE_NMI),
    ] {
        for (register, byte) in apic.regs[offset..offset + 4]
            .iter_mut()
            .zip(mode.to_le_bytes())
        {
            *register = byte.cast_signed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_constants() {
        assert_eq!(
            descriptor(&flat(BOOT_CS, TYPE_CODE, true)),
            0x00af_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&flat(BOOT_CS, TYPE_CODE, false)),
            0x00cf_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&flat(BOOT_DS, TYPE_DATA, true)),
            0x00cf_9300_0000_ffff
        );
        assert_eq!(descriptor(&task_state()), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn selectors_name_their_descriptors() {
        let entry = Entry::Linux64 { rip: 0 };
        let (code, data, tss) = segments(entry);
        for segment in [code, data, tss] {
            assert_eq!(
                table(entry)[usize::from(segment.selector / 8)],
                descriptor(&segment)
            );
        }
    }

    #[test]
    fn pvh_starts_without_paging() {
        let mut sregs = kvm_sregs {
            cr4: !0,
            efer: !0,
            ..Default::default()
        };
        set_special(&mut sregs, Entry::Pvh { rip: 0 });
        assert_eq!((sregs.cr0 & CR0_PG, sregs.cr4, sregs.efer), (0, 0, 0));
        assert_eq!(general(Entry::Pvh { rip: 5 }).rbx, PVH_START_INFO);
    }

    #[test]
    fn extended_state_is_on_without_what_needs_permission() {
        let leaf = |eax| {
            let entry = kvm_bindings::kvm_cpuid_entry2 {
                function: 0xd,
                eax,
                ..Default::default()
            };
            CpuId::from_entries(&[entry]).unwrap()
        };
        assert_eq!(
            extended_control(&leaf(0x6_02e7)).unwrap().xcrs[0].value,
            0xe7
        );
        assert!(extended_control(&leaf(0)).is_none());
        assert!(extended_control(&CpuId::from_entries(&[]).unwrap()).is_none());
    }

    #[test]
    fn local_interrupt_pins_are_connected() {
        let mut apic = kvm_lapic_state::default();
        connect_local_interrupts(&mut apic);
        assert_eq!(apic.regs[APIC_LVT_LINT0 + 1], 7);
        assert_eq!(apic.regs[APIC_LVT_LINT1 + 1], 4);
    }
}
