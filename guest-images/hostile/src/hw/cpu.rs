//! The processor: its page tables, its model-specific registers, and faults that are expected.
#![expect(
    unsafe_code,
    reason = "page tables, exceptions and model-specific registers"
)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::memory;

/// Address space that is mapped from 0 on.
const GIBS: u64 = 8;
/// Page table entry: present, writable.
const PRESENT: u64 = 3;
/// Page directory entry: a page of 2 MiB.
const LARGE: u64 = 1 << 7;

/// Where the page tables are: behind the program, in front of the rings.
const TABLES: u64 = 0x40_0000;

/// What an expected fault was.
pub type Vector = u64;

/// Where `entry.s` goes on after a fault; 0 if none is expected.
#[unsafe(export_name = "fault_target")]
static FAULT_TARGET: AtomicU64 = AtomicU64::new(0);
/// The last expected fault, as `entry.s` has left it.
#[unsafe(export_name = "fault_vector")]
static FAULT_VECTOR: AtomicU64 = AtomicU64::new(NO_FAULT);
const NO_FAULT: Vector = u64::MAX;

/// Maps the first GiBs of physical address space, each address to itself.
pub fn map_everything() {
    let directories = TABLES + 0x2000;
    memory::clear(TABLES, 0x2000);
    memory::write64(TABLES, (TABLES + 0x1000) | PRESENT);
    for gib in 0..GIBS {
        memory::write64(
            TABLES + 0x1000 + 8 * gib,
            (directories + 0x1000 * gib) | PRESENT,
        );
    }
    for page in 0..512 * GIBS {
        memory::write64(directories + 8 * page, page << 21 | LARGE | PRESENT);
    }
    set_page_tables(TABLES);
}

/// Uses the page tables at `address`.
pub fn set_page_tables(address: u64) {
    // SAFETY: who says this means it; with `map_everything` all that the program uses stays where it is.
    unsafe { asm!("mov cr3, {}", in(reg) address, options(nostack, preserves_flags)) };
}

/// The time stamp counter.
pub fn time() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// CPUID of `leaf` and `subleaf`.
pub fn cpuid(leaf: u32, subleaf: u32) -> core::arch::x86_64::CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// Whether the guarded instruction before this call faulted, and how.
fn outcome() -> Result<(), Vector> {
    match FAULT_VECTOR.load(Ordering::Relaxed) {
        NO_FAULT => Ok(()),
        vector => Err(vector),
    }
}

/// Runs one instruction that may fault: execution goes on behind it in either case.
macro_rules! guarded {
    ($instruction:literal, $($operands:tt)*) => {
        asm!(
            "mov qword ptr [rip + {fault_vector}], -1",
            "lea {target}, [rip + 2f]",
            "mov [rip + {fault_target}], {target}",
            $instruction,
            "2:",
            "mov qword ptr [rip + {fault_target}], 0",
            fault_vector = sym FAULT_VECTOR,
            fault_target = sym FAULT_TARGET,
            target = out(reg) _,
            $($operands)*
        )
    };
}

/// Reads a model-specific register.
pub fn read_msr(index: u32) -> Result<u64, Vector> {
    let (low, high): (u32, u32);
    // SAFETY: a fault is caught.
    unsafe { guarded!("rdmsr", in("ecx") index, inout("eax") 0 => low, inout("edx") 0 => high) };
    outcome().map(|()| u64::from(high) << 32 | u64::from(low))
}

/// Writes a model-specific register. The caller sees to it that the program lives on.
pub fn write_msr(index: u32, value: u64) -> Result<(), Vector> {
    let (low, high) = (value & 0xffff_ffff, value >> 32);
    // SAFETY: a fault is caught.
    unsafe { guarded!("wrmsr", in("ecx") index, in("rax") low, in("rdx") high,) };
    outcome()
}

/// Reads 64 bits where a page may be missing.
pub fn probe(address: u64) -> Result<u64, Vector> {
    let value;
    // SAFETY: a fault is caught.
    unsafe {
        guarded!("mov {value}, [{address}]", address = in(reg) address, value = inout(reg) 0_u64 => value);
    };
    outcome().map(|()| value)
}

/// Runs an instruction that does not exist.
pub fn undefined_instruction() -> Result<(), Vector> {
    // SAFETY: the fault is caught.
    unsafe { guarded!("ud2",) };
    outcome()
}

/// Writes `value` to `address` if zero is there, by an atomic instruction.
pub fn exchange(address: u64, value: u64) -> Result<u64, Vector> {
    let old;
    // SAFETY: a fault is caught.
    unsafe {
        guarded!("lock cmpxchg [{address}], {value}", address = in(reg) address, value = in(reg) value, inout("rax") 0_u64 => old);
    };
    outcome().map(|()| old)
}

/// Goes on at `address`: what is there is no code of this program.
pub fn jump(address: u64) -> ! {
    // SAFETY: nothing of this program is needed any more.
    unsafe { asm!("jmp {}", in(reg) address, options(noreturn)) }
}

/// Calls the code at `address`; what it leaves in EAX.
pub fn call(address: u64) -> u32 {
    let value;
    // SAFETY: the caller has put code there that changes EAX alone.
    unsafe { asm!("call {}", in(reg) address, out("eax") value) };
    value
}

/// Maps the 2 MiB at `address`, below 8 GiB, to `target`, or to nothing.
pub fn map(address: u64, target: Option<u64>) {
    let entry = target.map_or(0, |target| target & 0x000f_ffff_ffe0_0000 | LARGE | PRESENT);
    memory::write64(TABLES + 0x2000 + 8 * (address >> 21), entry);
    // SAFETY: the program itself is elsewhere.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// A fault whose frame goes to a stack at `address`.
pub fn fault_with_stack(address: u64) -> ! {
    // SAFETY: ends the program, as asked.
    unsafe { asm!("mov rsp, {}", "ud2", in(reg) address, options(noreturn)) }
}

/// An interrupt table without entries, then a fault that needs one.
pub fn triple_fault() -> ! {
    let empty = [0_u16; 5];
    // SAFETY: ends the program, as asked.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const empty, options(noreturn)) }
}

/// Waits for an interrupt that never comes.
pub fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
