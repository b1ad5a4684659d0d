//! Where things are in a guest's physical address space.
//!
//! ```text
//! 0x0000_0500  GDT                     0x0002_0000  kernel command line
//! 0x0000_6000  PVH or Multiboot info   0x000e_0000  ACPI tables (RSDP first)
//! 0x0000_7000  zero page               0x000f_f000  generation ID, reset vector
//! 0x0000_8000  boot stack (down)       0x0010_0000  kernel, then the initrd at the end of low RAM
//! 0x0000_9000  boot page tables        0xd000_0000  MMIO: boot timer, virtio-mmio devices
//! 0x0000_d000  end of boot structures  0xd800_0000  memory of PCI devices
//!                                      0xe000_0000  PCI configuration space (ECAM of bus 0)
//!                                      0xfec0_0000  IOAPIC, local APIC, KVM's own pages
//!                                      0x1_0000_0000  RAM above 4 GiB, then memory of PCI devices
//! ```

/// One kibibyte.
pub const KIB: u64 = 1 << 10;
/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;

/// Global descriptor table at the entry to the kernel.
pub const GDT: u64 = 0x500;
/// Interrupt descriptor table at the entry to the kernel: empty, the kernel brings its own.
pub const IDT: u64 = 0x560;
/// PVH `hvm_start_info`, followed by the module list and the memory map.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH module list (the initrd).
pub const PVH_MODULES: u64 = 0x6040;
/// PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x6080;
/// Multiboot information, in the place of the PVH start info: a kernel gets one of them.
pub const MULTIBOOT_INFO: u64 = PVH_START_INFO;
/// Multiboot module list (the initrd).
pub const MULTIBOOT_MODULES: u64 = 0x6080;
/// Name of the boot loader.
pub const MULTIBOOT_LOADER_NAME: u64 = 0x60c0;
/// Multiboot memory map.
pub const MULTIBOOT_MEMORY_MAP: u64 = 0x6100;
/// Linux `struct boot_params`, "zero page" (x86 boot protocol).
pub const ZERO_PAGE: u64 = 0x7000;
/// Stack at the entry to the kernel; grows down towards the zero page's end.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Top-level page table for the 64-bit entry.
pub const PML4: u64 = 0x9000;
/// Second-level page table.
pub const PDPT: u64 = 0xa000;
/// Third-level page table: maps the first GiB with 2 MiB pages.
pub const PAGE_DIRECTORY: u64 = 0xb000;
/// Kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Most bytes of a command line with its NUL: Linux's `COMMAND_LINE_SIZE` on x86.
pub const CMDLINE_CAPACITY: usize = 2048;

/// End of usable RAM below 1 MiB (where a PC keeps its extended BIOS data area).
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables, RSDP first, in the area that a PC's firmware reserves.
pub const ACPI: u64 = 0xe_0000;
/// End of the ACPI area.
pub const ACPI_END: u64 = 0xf_f000;
/// A page that the guest leaves alone, with the virtual machine generation ID at its start.
pub const GENERATION_ID: u64 = ACPI_END;
/// Where a processor begins after a reset (F000:FFF0), in the same page.
pub const RESET_VECTOR: u64 = HIGH_RAM - 16;
/// Kernels and initrds live from here on: start of RAM above the PC's legacy area.
pub const HIGH_RAM: u64 = MIB;

/// Start of the hole below 4 GiB that holds no RAM.
pub const GAP_START: u64 = 0xd000_0000;
/// End of the hole: RAM continues here.
pub const GAP_END: u64 = 4 * GIB;

/// Boot timer: a guest writes 123 here (Firecracker's current form).
pub const BOOT_TIMER: u64 = GAP_START;
/// First virtio-mmio device.
pub const VIRTIO_MMIO: u64 = GAP_START + 0x1000;
/// Bytes of register space of one virtio-mmio device.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;

/// Memory of PCI devices below 4 GiB.
pub const PCI_WINDOW: u64 = 0xd800_0000;
/// End of it.
pub const PCI_WINDOW_END: u64 = PCI_ECAM;
/// Bytes of the memory of PCI devices above RAM and 4 GiB, from the next whole GiB on.
pub const PCI_WINDOW_HIGH_LEN: u64 = 16 * GIB;
/// PCI configuration space as memory: bus 0, 1 MiB.
pub const PCI_ECAM: u64 = 0xe000_0000;

/// I/O APIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// One page KVM needs on Intel for real-mode emulation.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages KVM needs on Intel for real-mode emulation.
pub const KVM_TSS: u64 = KVM_IDENTITY_MAP + 0x1000;

/// Interrupt line of the first serial port.
pub const SERIAL_IRQ: u32 = 4;
/// Interrupt line of the ACPI generic event device (power button, generation ID).
pub const GED_IRQ: u32 = 5;
/// Interrupt line of the real-time clock.
pub const RTC_IRQ: u32 = 8;
/// Interrupt lines of a PC without an I/O APIC.
pub const LEGACY_IRQS: u32 = 16;
/// Interrupt lines for virtio-mmio devices: what the IOAPIC's 24 pins leave free.
pub const VIRTIO_IRQS: [u32; 18] = [
    16, 17, 18, 19, 20, 21, 22, 23, 9, 10, 11, 12, 13, 14, 15, 6, 7, 3,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interrupt_line_has_one_user() {
        let mut lines = VIRTIO_IRQS.to_vec();
        lines.extend([SERIAL_IRQ, GED_IRQ, RTC_IRQ]);
        let users = lines.len();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), users);
        assert!(lines.iter().all(|line| *line < 24));
    }

    #[test]
    fn boot_structures_do_not_overlap() {
        let ends = [
            (GDT, IDT),
            (IDT, PVH_START_INFO),
            (PVH_START_INFO, PVH_MODULES),
            (PVH_MODULES, PVH_MEMORY_MAP),
            (PVH_MEMORY_MAP, ZERO_PAGE),
            (MULTIBOOT_INFO, MULTIBOOT_MODULES),
            (MULTIBOOT_MODULES, MULTIBOOT_LOADER_NAME),
            (MULTIBOOT_LOADER_NAME, MULTIBOOT_MEMORY_MAP),
            (MULTIBOOT_MEMORY_MAP, ZERO_PAGE),
            (ZERO_PAGE + 0x1000, BOOT_STACK),
            (PML4, PDPT),
            (PDPT, PAGE_DIRECTORY),
            (PAGE_DIRECTORY + 0x1000, CMDLINE),
            (CMDLINE + CMDLINE_CAPACITY as u64, LOW_RAM_END),
            (ACPI, ACPI_END),
            (GENERATION_ID, RESET_VECTOR),
            (RESET_VECTOR, HIGH_RAM),
        ];
        for (start, end) in ends {
            assert!(start < end, "{start:#x} is not below {end:#x}");
        }
    }
}
