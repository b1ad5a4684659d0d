//! The few devices of the PC that Linux still looks for, and the platform's power controls.

pub mod acpi;
pub mod boot_timer;
pub mod generation_id;
pub mod i8042;
pub mod pvpanic;
pub mod rtc;
pub mod serial;
#[cfg(test)]
mod sweep;
pub mod watchdog;
