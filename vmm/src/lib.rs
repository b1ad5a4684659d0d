//! One guest in one process: memory, vCPUs, interrupt controller, boot protocols, and the loop around them.
//!
//! ```text
//!   cli ──► config::firecracker ──► config::VmConfig ──┐
//!    │                                                 ▼
//!    ▼                                     machine::Machine ── memory ── vm (KVM) ── boot ── acpi
//!   controller::Controller ── start ──►        │         └── platform (legacy devices) ── pci, virtio
//!    ▲  ▲     │                                ▼
//!    │  │     └── pause, plug, change ──► machine::Running ── vcpu threads ──ports, MMIO──► devices
//!    │  └── control (the parent's socket)      ▼
//!    └── api_thread (the API's clients)    event loop ──► latch::ExitLatch ──► exit::ExitReason
//! ```
//!
//! The process ends with its guest. What it knows of the world outside is the configuration, standard input and output
//! (the guest's serial port), standard error (the log), the API's socket, and the control socket of its parent.

pub mod acpi;
mod api_thread;
pub mod boot;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod controller;
pub mod cpu;
mod device_thread;
pub mod events;
pub mod exit;
pub mod hotplug;
pub mod jail;
pub mod latch;
pub mod layout;
pub mod live;
mod logger;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod mmds;
mod msi;
mod output;
mod pci;
mod platform;
pub mod snapshot;
mod stats;
mod terminal;
pub mod userfault;
pub mod vcpu;
mod virtio;
pub mod vm;
