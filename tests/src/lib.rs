//! The nested harness.
//!
//! Real guests run inside a real host, which runs inside QEMU: with system emulation (`tcg`, AMD
//! SVM) where the machine has no hardware virtualization to lend, with `kvm` where it has. The
//! harness boots an image, reads the host's serial console, types on it, and keeps a record of
//! every boot that really happened, so that a run that booted nothing cannot pass.
//!
//! No test asserts wall time. The limits in [`console`] only turn a hang into a failure.

pub mod console;
pub mod emulation;
pub mod http;
pub mod image;
pub mod linux;
pub mod qemu;
pub mod record;

pub use console::Console;
pub use image::Image;
pub use qemu::{Clock, Qemu};
