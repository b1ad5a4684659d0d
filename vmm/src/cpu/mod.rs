//! What a vCPU is set to before its first instruction.

pub mod cpuid;
pub mod msrs;
pub mod regs;
pub mod template;
