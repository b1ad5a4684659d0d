//! The hardware of QEMU's q35: the only modules that touch ports, registers and memory at fixed addresses.

pub mod cpu;
pub mod display;
pub mod ecam;
pub mod fw_cfg;
pub mod port;
pub mod q35;
pub mod ram;
pub mod serial;
