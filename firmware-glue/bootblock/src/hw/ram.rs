//! Physical memory: all of it below 4 GiB is mapped at its own address.
#![expect(
    unsafe_code,
    reason = "physical addresses become slices here and nowhere else"
)]

use crate::memory::Memory;

/// Below: nothing, page tables, the stage, its stack. Never handed out.
const STAGE_END: u64 = 0x9_0000;
const FOUR_GIB: u64 = 1 << 32;

/// Physical memory from the end of the stage up to 4 GiB.
#[derive(Debug)]
pub struct Ram(());

impl Ram {
    /// The machine's memory.
    ///
    /// # Safety
    ///
    /// There must be no other, all memory below 4 GiB must be mapped at its own address, and the caller asks it for
    /// addresses of real memory only, as the memory map has them.
    pub unsafe fn new() -> Self {
        Self(())
    }
}

impl Memory for Ram {
    fn bytes(&mut self, address: u64, len: usize) -> Option<&mut [u8]> {
        let end = address.checked_add(len as u64)?;
        if address < STAGE_END || end > FOUR_GIB {
            return None;
        }
        let start = core::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(address).ok()?);
        // SAFETY: mapped memory outside of everything Rust placed (the stage lies below STAGE_END); `&mut self` is the only
        // way to it, and any byte is a valid `u8`.
        Some(unsafe { core::slice::from_raw_parts_mut(start, len) })
    }
}

/// The window that x86 maps flash to: 16 MiB up to 4 GiB. Where there is no flash, it reads as anything.
pub fn flash_window() -> &'static [u8] {
    const SIZE: usize = firmware_glue::layout::MAX_ROM_SIZE;
    let start = core::ptr::with_exposed_provenance::<u8>(0x1_0000_0000 - SIZE);
    // SAFETY: the window is mapped, read-only by nature, and nothing the stage does changes what it reads as.
    unsafe { core::slice::from_raw_parts(start, SIZE) }
}
