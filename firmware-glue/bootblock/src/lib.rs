//! The ROM stage for QEMU's q35 machine: from the reset vector to the entry of the Linux kernel in flash.
//!
//! [`boot::run`] is the way, one step after the other. What decides anything from untrusted bytes (memory map, ACPI loader
//! script, PCI topology, kernel header) is in modules that know no hardware and are tested on the host: [`e820`],
//! [`table_loader`], [`smbios`], [`pci`], [`placement`], [`zero_page`]. [`hw`] touches ports, memory and registers.
//!
//! The kernel gets what coreboot would give it too: a zero page, ACPI, PCI with assigned resources, a frame buffer.
#![cfg_attr(not(test), no_std)]

#[cfg(target_arch = "x86_64")]
pub mod boot;
pub mod e820;
#[cfg(target_arch = "x86_64")]
pub mod hw;
pub mod list;
pub mod memory;
pub mod pci;
pub mod placement;
pub mod smbios;
pub mod table_loader;
pub mod zero_page;
