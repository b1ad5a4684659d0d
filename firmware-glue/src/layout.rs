//! What a Daruma ROM contains: the names its writer and its readers (ROM stage, host) agree on.

/// FMAP area that holds the flash map itself.
pub const AREA_FMAP: &str = "FMAP";
/// FMAP area that holds the CBFS; coreboot's name for its primary CBFS.
pub const AREA_CBFS: &str = "COREBOOT";

/// The host kernel, a bzImage exactly as built.
pub const KERNEL: &str = "daruma/kernel";
/// The host's initramfs: a cpio archive in the "newc" format, compressed by zstd.
pub const INITRAMFS: &str = "daruma/initramfs";
/// The host kernel's command line: text, no line end, no NUL.
pub const CMDLINE: &str = "daruma/cmdline";
/// The machine that the host starts when its command line names no other.
pub const MACHINE: &str = "machine/default.toml";
/// Files of guests begin with this.
pub const GUEST_PREFIX: &str = "guest/";
/// What coreboot starts; its name for it.
pub const PAYLOAD: &str = "fallback/payload";
/// The code at the reset vector; coreboot's name.
pub const BOOTBLOCK: &str = "bootblock";

/// Largest ROM in bytes. QEMU maps `-bios` directly below 4 GiB, and a larger one runs into the local APIC, I/O APIC and
/// HPET; it is also the window that Intel chipsets decode.
pub const MAX_ROM_SIZE: usize = 16 << 20;
/// ROM sizes are multiples of this (bytes): QEMU's `-bios` takes no other.
pub const ROM_GRANULE: usize = 64 << 10;
/// Bytes at the start of the ROM set aside for the flash map. Also the step at which the ROM stage looks for it.
pub const FMAP_AREA_SIZE: usize = 4 << 10;

/// The host's program in its initramfs, its code by [`crate::branches`]; `/init` is the starter, which undoes that.
pub const HOST_PROGRAM: &str = "daruma";
