//! The machine, as bare as it is: memory, ports, the processor.

pub mod cpu;
pub mod memory;
pub mod port;
