//! The processor's own: model-specific registers, CPUID, page tables, code that changes.

use super::{Attack, machine};
use crate::hw::{cpu, memory};

/// Nothing of this program is there.
const SCRATCH: u64 = 0x300_0000;
/// KVM's own registers, each of which has an address of guest memory for the host to write to, and the bit that says so.
const PARAVIRTUAL: [u32; 6] = [
    0x4b56_4d00,
    0x4b56_4d01,
    0x4b56_4d02,
    0x4b56_4d03,
    0x4b56_4d04,
    0x4b56_4d06,
];
/// Where registers are, by their first numbers.
const MSR_RANGES: [(u32, u32); 6] = [
    (0, 0x400),
    (0x480, 0x40),
    (0x4000_0000, 0x200),
    (0x4b56_4d00, 0x20),
    (0xc000_0080, 0x100),
    (0xc001_0000, 0x200),
];

/// Numbers without order: xorshift.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Whether the program would not live on with nonsense there: its clock, its paging, its local APIC and its own KVM pages.
fn is_vital(register: u32) -> bool {
    matches!(
        register,
        0x10 | 0x1b | 0x3b | 0x6e0 | 0x800..=0x8ff | 0xc000_0080
    ) || PARAVIRTUAL.contains(&register)
        || (0x4000_0000..0x4000_0200).contains(&register)
}

pub const ATTACKS: &[Attack] = &[
    machine("cpuid-storm", || {
        for base in [0, 0x4000_0000, 0x8000_0000, 0xffff_fff0] {
            for leaf in 0..0x10 {
                for subleaf in [0, 1, 63, u32::MAX] {
                    cpu::cpuid(base + leaf, subleaf);
                }
            }
        }
        Ok(())
    }),
    machine("registers-read-everywhere", || {
        for (first, count) in MSR_RANGES {
            for register in (first..first + count).step_by(3) {
                let _ = cpu::read_msr(register);
            }
        }
        let mut state = 0x1234_5678_9abc_def1;
        for _ in 0..500 {
            let [a, b, c, d, ..] = random(&mut state).to_le_bytes();
            let _ = cpu::read_msr(u32::from_le_bytes([a, b, c, d]));
        }
        Ok(())
    }),
    machine("registers-written-with-nonsense", || {
        let mut state = 0xfedc_ba98_7654_3211;
        for (first, count) in MSR_RANGES {
            for register in (first..first + count).step_by(7) {
                if !is_vital(register) {
                    let _ = cpu::write_msr(register, random(&mut state));
                }
            }
        }
        Ok(())
    }),
    machine("host-writes-asked-for-outside-memory", || {
        for register in PARAVIRTUAL {
            for address in [64 << 20, 0xd000_0000, 0xfee0_0000, 1 << 40, !0x3f] {
                let _ = cpu::write_msr(register, address | 1);
            }
            let _ = cpu::write_msr(register, 0);
        }
        Ok(())
    }),
    machine("instructions-that-fault", || {
        if cpu::undefined_instruction().is_ok() {
            return Err("an instruction that does not exist is executed");
        }
        Ok(())
    }),
    machine("pages-that-come-and-go", || {
        let at = 0x7000_0000;
        for round in 0..50 {
            let target = [
                0xd000_0000,
                SCRATCH,
                0xfee0_0000,
                0xffff_ffff_f000_0000,
                0x4000_0000,
            ];
            cpu::map(at, Some(target[round % 5]));
            let _ = cpu::probe(at + 0x20);
            cpu::map(at, None);
            if cpu::probe(at).is_ok() {
                return Err("a page that is not there is read");
            }
        }
        cpu::map(at, Some(at));
        Ok(())
    }),
    machine("code-that-changes", || {
        for round in 0..200_u32 {
            // mov eax, round; ret
            memory::write8(SCRATCH, 0xb8);
            memory::write32(SCRATCH + 1, round);
            memory::write8(SCRATCH + 5, 0xc3);
            if cpu::call(SCRATCH) != round {
                return Err("code that was changed runs as it was");
            }
        }
        Ok(())
    }),
];

/// How a run ends that ends by design; never returns if `how` is known.
pub fn end(how: &[u8]) {
    match how {
        b"poweroff" => crate::power_off(),
        b"keyboard-reset" => crate::hw::port::write8(0x64, 0xfe),
        b"acpi-reset" => crate::hw::port::write8(0x602, 1),
        b"triple-fault" => cpu::triple_fault(),
        b"watchdog" => {
            crate::hw::port::write32(0x614, 10);
            crate::hw::port::write32(0x610, 1);
        }
        b"code-in-registers" => cpu::jump(0xd000_0000),
        b"code-in-a-hole" => cpu::jump(0x6000_0000),
        b"code-in-the-local-apic" => cpu::jump(0xfee0_0000),
        b"code-over-the-end-of-memory" => {
            // A jump to itself would stay in memory: the last byte begins an instruction that goes on behind the end.
            memory::write8((64 << 20) - 1, 0xb8);
            cpu::jump((64 << 20) - 1);
        }
        b"page-tables-in-registers" => cpu::set_page_tables(0xd000_1000),
        b"page-tables-in-a-hole" => cpu::set_page_tables(0x6000_0000),
        b"stack-in-registers" => cpu::fault_with_stack(0xd000_0800),
        b"init-to-itself" => memory::write32(0xfee0_0300, 0x4_4500),
        _ => return,
    }
    cpu::halt()
}
