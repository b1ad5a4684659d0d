//! The few devices of the PC that Linux still looks for, and the platform's power controls.

pub mod acpi;
pub mod boot_timer;
pub mod i8042;
pub mod rtc;
pub mod serial;
