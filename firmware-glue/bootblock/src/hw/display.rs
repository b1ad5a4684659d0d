//! QEMU's standard VGA: a linear frame buffer by the Bochs display registers (QEMU, docs/specs/standard-vga.rst).

use super::port;
use crate::pci::{Config, Inventory, register};
use crate::zero_page::FrameBuffer;

const ID: u32 = 0x1111_1234;
const CLASS_VGA: u32 = 0x03_0000;

const INDEX: u16 = 0x1ce;
const VALUE: u16 = 0x1cf;
const INDEX_ID: u16 = 0;
const INDEX_WIDTH: u16 = 1;
const INDEX_HEIGHT: u16 = 2;
const INDEX_BITS: u16 = 3;
const INDEX_ENABLE: u16 = 4;
const ENABLED: u16 = 1;
const LINEAR: u16 = 0x40;
/// Identifiers of the interface are 0xB0C0 to 0xB0CF.
const BOCHS: u16 = 0xb0c0;

/// Reading it makes the next write to [`VGA_ATTRIBUTE`] an index.
const VGA_STATUS: u16 = 0x3da;
const VGA_ATTRIBUTE: u16 = 0x3c0;
/// Index with this bit: the screen shows the frame buffer.
const VGA_SCREEN_ON: u8 = 0x20;

const WIDTH: u16 = 1024;
const HEIGHT: u16 = 768;

/// Sets 1024 × 768 with 32 bits for each pixel, if there is a standard VGA whose memory has an address below 4 GiB.
pub fn set_up(config: &mut impl Config, found: &Inventory) -> Option<FrameBuffer> {
    let vga = found
        .iter()
        .find(|function| function.id == ID && function.class == CLASS_VGA)?;
    let base = config.read32(vga.address, register::BAR0) & !15;
    if base == 0 || read(INDEX_ID) & !15 != BOCHS {
        return None;
    }
    write(INDEX_ENABLE, 0);
    write(INDEX_WIDTH, WIDTH);
    write(INDEX_HEIGHT, HEIGHT);
    write(INDEX_BITS, 32);
    write(INDEX_ENABLE, ENABLED | LINEAR);
    port::read8(VGA_STATUS);
    port::write8(VGA_ATTRIBUTE, VGA_SCREEN_ON);
    Some(FrameBuffer {
        base,
        width: WIDTH,
        height: HEIGHT,
    })
}

fn write(index: u16, value: u16) {
    port::write16(INDEX, index);
    port::write16(VALUE, value);
}

fn read(index: u16) -> u16 {
    port::write16(INDEX, index);
    port::read16(VALUE)
}
