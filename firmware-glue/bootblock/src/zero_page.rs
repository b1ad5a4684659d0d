//! The zero page, `struct boot_params`: what Linux is told when it is entered.
//!
//! Linux, Documentation/arch/x86/zero-page.rst and boot.rst.

use firmware_glue::linux::{Kernel, SETUP_HEADER};

use crate::e820::{ENTRY_SIZE, MAX_ENTRIES, Map};

/// Bytes of the zero page.
pub const SIZE: usize = 4096;

const ACPI_RSDP: usize = 0x070;
const E820_COUNT: usize = 0x1e8;
const VIDEO_MODE: usize = 0x1fa;
const LOADER_TYPE: usize = 0x210;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMDLINE: usize = 0x228;
const E820_TABLE: usize = 0x2d0;

/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// "Normal" video mode: leave it as it is.
const VIDEO_MODE_NORMAL: u16 = 0xffff;
/// `orig_video_isVGA`: a linear frame buffer described by `screen_info` alone. coreboot uses it too.
const VIDEO_TYPE_EFI: u8 = 0x70;

/// A linear frame buffer with 32 bits for each pixel, blue in the lowest byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameBuffer {
    /// Physical address.
    pub base: u32,
    /// Pixels in a line.
    pub width: u16,
    /// Lines.
    pub height: u16,
}

/// What the kernel is told.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a> {
    /// Where the kernel's code was copied to.
    pub kernel_at: u32,
    /// Where the initramfs is, and its length in bytes; both 0 if there is none.
    pub initramfs: (u32, u32),
    /// Where the command line is, ended by NUL.
    pub cmdline_at: u32,
    /// The memory map.
    pub map: &'a Map,
    /// Where the ACPI root pointer is.
    pub rsdp: Option<u64>,
    /// The frame buffer.
    pub frame_buffer: Option<FrameBuffer>,
}

/// Fills the zero page of `kernel`.
pub fn fill(page: &mut [u8; SIZE], kernel: &Kernel<'_>, parameters: &Parameters<'_>) {
    page.fill(0);
    let header = kernel.setup_header();
    put(page, SETUP_HEADER, header);
    put(page, VIDEO_MODE, &VIDEO_MODE_NORMAL.to_le_bytes());
    put(page, LOADER_TYPE, &[LOADER_UNDEFINED]);
    put(page, CODE32_START, &parameters.kernel_at.to_le_bytes());
    put(page, RAMDISK_IMAGE, &parameters.initramfs.0.to_le_bytes());
    put(page, RAMDISK_SIZE, &parameters.initramfs.1.to_le_bytes());
    put(page, CMDLINE, &parameters.cmdline_at.to_le_bytes());
    put(page, ACPI_RSDP, &parameters.rsdp.unwrap_or(0).to_le_bytes());
    let entries = parameters.map.entries().iter().take(MAX_ENTRIES);
    let mut count = 0;
    for (index, entry) in entries.enumerate() {
        let at = E820_TABLE + index * ENTRY_SIZE;
        put(page, at, &entry.base.to_le_bytes());
        put(page, at + 8, &(entry.end - entry.base).to_le_bytes());
        put(page, at + 16, &entry.kind.0.to_le_bytes());
        count += 1;
    }
    put(page, E820_COUNT, &[count]);
    if let Some(frame_buffer) = parameters.frame_buffer {
        put_screen(page, frame_buffer);
    }
}

/// Fills `screen_info`, which begins the zero page (include/uapi/linux/screen_info.h).
fn put_screen(page: &mut [u8; SIZE], screen: FrameBuffer) {
    let line = screen.width.saturating_mul(4);
    let size = u32::from(line) * u32::from(screen.height);
    put(page, 0x0f, &[VIDEO_TYPE_EFI]);
    put(page, 0x12, &screen.width.to_le_bytes());
    put(page, 0x14, &screen.height.to_le_bytes());
    put(page, 0x16, &32u16.to_le_bytes());
    put(page, 0x18, &screen.base.to_le_bytes());
    put(page, 0x1c, &size.to_le_bytes());
    put(page, 0x24, &line.to_le_bytes());
    // Size and position in bits of red, green, blue and the unused byte.
    put(page, 0x26, &[8, 16, 8, 8, 8, 0, 8, 24]);
    // Text columns and lines, for what still asks.
    put(page, 0x07, &[80]);
    put(page, 0x0e, &[25]);
}

/// All offsets are constants inside of the page, or counted by [`MAX_ENTRIES`].
fn put(page: &mut [u8; SIZE], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e820::Kind;

    fn bzimage() -> Vec<u8> {
        let mut image = vec![0; 2048];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1f4, &64u32.to_le_bytes());
        put(0x1fe, &[0x55, 0xaa]);
        put(0x200, &[0xeb, 0x6a]);
        put(0x202, b"HdrS\x0f\x02");
        put(0x211, &[1]);
        put(0x230, &1u32.to_le_bytes());
        put(0x260, &0x200_0000u32.to_le_bytes());
        image
    }

    #[test]
    fn every_field_is_where_linux_looks_for_it() {
        let image = bzimage();
        let kernel = Kernel::parse(&image).unwrap();
        let mut map = Map::new();
        map.set(0..0x9_f000, Kind::RAM).unwrap();
        map.set(0x10_0000..0x800_0000, Kind::RAM).unwrap();
        let mut page = [0xaa; SIZE];
        let parameters = Parameters {
            kernel_at: 0x100_0000,
            initramfs: (0x700_0000, 0x1234),
            cmdline_at: 0x2_0000,
            map: &map,
            rsdp: Some(0xf_0010),
            frame_buffer: Some(FrameBuffer {
                base: 0xc000_0000,
                width: 1024,
                height: 768,
            }),
        };
        fill(&mut page, &kernel, &parameters);
        assert_eq!(
            page[0x1f1..0x210],
            image[0x1f1..0x1fa]
                .iter()
                .chain(&[0xff; 2])
                .chain(&image[0x1fc..0x210])
                .copied()
                .collect::<Vec<_>>()
        );
        assert_eq!(page[0x1ef], 0, "sentinel");
        assert_eq!(page[0x210], 0xff);
        assert_eq!(page[0x218..0x220], [0, 0, 0, 7, 0x34, 0x12, 0, 0]);
        assert_eq!(page[0x228..0x22c], [0, 0, 2, 0]);
        assert_eq!(page[0x70..0x78], [0x10, 0, 0xf, 0, 0, 0, 0, 0]);
        assert_eq!(page[0x1e8], 2);
        assert_eq!(page[0x2d0 + 20..0x2d0 + 28], 0x10_0000u64.to_le_bytes());
        assert_eq!(page[0x2d0 + 28..0x2d0 + 36], 0x7f0_0000u64.to_le_bytes());
        assert_eq!(page[0x2d0 + 36..0x2d0 + 40], [1, 0, 0, 0]);
        assert_eq!(page[0x0f], 0x70);
        assert_eq!(page[0x24..0x26], 4096u16.to_le_bytes());
        assert_eq!(page[0x1c..0x20], (1024 * 768 * 4u32).to_le_bytes());
    }

    #[test]
    fn a_full_memory_map_fits() {
        let image = bzimage();
        let kernel = Kernel::parse(&image).unwrap();
        let mut map = Map::new();
        for i in 0..MAX_ENTRIES as u64 {
            map.set(i * 8..i * 8 + 4, Kind::RAM).unwrap();
        }
        let mut page = [0; SIZE];
        let parameters = Parameters {
            kernel_at: 0,
            initramfs: (0, 0),
            cmdline_at: 0,
            map: &map,
            rsdp: None,
            frame_buffer: None,
        };
        fill(&mut page, &kernel, &parameters);
        assert_eq!(page[0x1e8], 128);
        assert_eq!(
            page[0x2d0 + 127 * 20..0x2d0 + 127 * 20 + 8],
            (127u64 * 8).to_le_bytes()
        );
    }
}
