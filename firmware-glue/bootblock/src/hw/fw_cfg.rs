//! fw_cfg, QEMU's way to hand files to firmware (QEMU, docs/specs/fw_cfg.rst): by DMA, or byte by byte where there is none.
#![expect(unsafe_code, reason = "the device reads and writes memory by itself")]

use core::cell::UnsafeCell;
use core::sync::atomic::{Ordering, compiler_fence};

use super::port;
use crate::memory::halves;
use crate::table_loader::Files;

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const DMA_HIGH: u16 = 0x514;
const DMA_LOW: u16 = 0x518;

const ITEM_SIGNATURE: u16 = 0x00;
const ITEM_FEATURES: u16 = 0x01;
const ITEM_DIRECTORY: u16 = 0x19;
const FEATURE_DMA: u8 = 2;

const DMA_ERROR: u32 = 1;
const DMA_READ: u32 = 2;
const DMA_SKIP: u32 = 4;
const DMA_SELECT: u32 = 8;
const DMA_WRITE: u32 = 16;

/// Entries of the directory that are looked at; QEMU has about 30.
const MAX_FILES: u32 = 512;
const ENTRY_SIZE: usize = 64;

/// What the device reads when its DMA register is written: all big-endian.
#[repr(C, align(16))]
struct Access {
    control: UnsafeCell<u32>,
    length: UnsafeCell<u32>,
    address: UnsafeCell<u64>,
}

/// fw_cfg of this machine.
#[derive(Clone, Copy, Debug)]
pub struct FwCfg {
    dma: bool,
}

impl FwCfg {
    /// Finds the device; `None` if this is not QEMU.
    pub fn find() -> Option<Self> {
        let plain = Self { dma: false };
        let mut signature = [0; 4];
        plain.read_item(ITEM_SIGNATURE, &mut signature);
        if signature != *b"QEMU" {
            return None;
        }
        let mut features = [0; 4];
        plain.read_item(ITEM_FEATURES, &mut features);
        Some(Self {
            dma: features[0] & FEATURE_DMA != 0,
        })
    }

    fn read_item(self, item: u16, to: &mut [u8]) -> bool {
        if self.dma {
            let control = u32::from(item) << 16 | DMA_SELECT | DMA_READ;
            return Self::transfer(control, to.as_mut_ptr().expose_provenance(), to.len());
        }
        port::write16(SELECTOR, item);
        self.read_on(to)
    }

    /// Reads on in the item selected last.
    fn read_on(self, to: &mut [u8]) -> bool {
        if self.dma {
            return Self::transfer(DMA_READ, to.as_mut_ptr().expose_provenance(), to.len());
        }
        for byte in to {
            *byte = port::read8(DATA);
        }
        true
    }

    /// Runs one DMA operation. Whether it succeeded.
    fn transfer(control: u32, address: usize, len: usize) -> bool {
        let Ok(len) = u32::try_from(len) else {
            return false;
        };
        let access = Access {
            control: UnsafeCell::new(control.to_be()),
            length: UnsafeCell::new(len.to_be()),
            address: UnsafeCell::new((address as u64).to_be()),
        };
        let place = core::ptr::from_ref(&access).expose_provenance() as u64;
        let [high, low] = halves(place);
        // The device reads `access` and the buffer, and writes to both, while the second port is written.
        compiler_fence(Ordering::SeqCst);
        port::write32(DMA_HIGH, high.to_be());
        port::write32(DMA_LOW, low.to_be());
        loop {
            compiler_fence(Ordering::SeqCst);
            // SAFETY: the address of a live local.
            let left = u32::from_be(unsafe { access.control.get().read_volatile() });
            // QEMU ends an operation before the write to the port returns; anything else says so by this word.
            if left & !DMA_ERROR == 0 {
                return left == 0;
            }
        }
    }
}

impl Files for FwCfg {
    fn find(&mut self, name: &str) -> Option<(u16, u32)> {
        let mut count = [0; 4];
        self.read_item(ITEM_DIRECTORY, &mut count);
        for _ in 0..u32::from_be_bytes(count).min(MAX_FILES) {
            let mut entry = [0; ENTRY_SIZE];
            self.read_on(&mut entry);
            let [s0, s1, s2, s3, i0, i1, _, _, text @ ..] = entry;
            let end = text
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(text.len());
            if &text[..end] == name.as_bytes() {
                let size = u32::from_be_bytes([s0, s1, s2, s3]);
                return Some((u16::from_be_bytes([i0, i1]), size));
            }
        }
        None
    }

    fn read(&mut self, file: u16, to: &mut [u8]) -> bool {
        self.read_item(file, to)
    }

    fn write(&mut self, file: u16, offset: u32, from: &[u8]) -> bool {
        if !self.dma {
            return false;
        }
        let skip = u32::from(file) << 16 | DMA_SELECT | DMA_SKIP;
        Self::transfer(skip, 0, offset as usize)
            && Self::transfer(DMA_WRITE, from.as_ptr().expose_provenance(), from.len())
    }
}
