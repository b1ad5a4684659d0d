//! ROMs that must not boot: each ends in one clear line of the ROM stage, never in silence.

use anyhow::{Result, ensure};
use tests::Image;
use tests::image::place;
use tests::qemu::Builder;

/// Boots `rom` and returns the line with which the ROM stage gave up.
fn refusal(rom: &[u8]) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("bad.rom");
    std::fs::write(&path, rom)?;
    let mut machine = Builder::rom(&path).boot()?;
    machine.console.expect("bootblock: error: ")?;
    let line = machine.console.expect("\n")?.trim_end().to_owned();
    ensure!(
        !machine.console.transcript().contains("kernel entry"),
        "it booted all the same"
    );
    Ok(line)
}

#[test]
fn a_rom_without_a_flash_map_is_refused() -> Result<()> {
    let mut rom = Image::built()?.read("daruma.rom")?;
    rom[..8].fill(0xff);
    ensure!(refusal(&rom)?.contains("FMAP"));
    Ok(())
}

#[test]
fn one_flipped_bit_in_the_kernel_is_refused_by_name() -> Result<()> {
    let mut rom = Image::built()?.read("daruma.rom")?;
    let (offset, len) = place(&rom, "daruma/kernel")?;
    rom[offset + len / 2] ^= 0x10;
    ensure!(refusal(&rom)?.contains("daruma/kernel"));
    Ok(())
}

#[test]
fn one_flipped_bit_in_the_initramfs_is_refused_by_name() -> Result<()> {
    let mut rom = Image::built()?.read("daruma.rom")?;
    let (offset, len) = place(&rom, "daruma/initramfs")?;
    rom[offset + len - 1] ^= 0x01;
    ensure!(refusal(&rom)?.contains("daruma/initramfs"));
    Ok(())
}

#[test]
fn a_changed_hash_is_refused() -> Result<()> {
    let mut rom = Image::built()?.read("daruma.rom")?;
    let (offset, _) = place(&rom, "daruma/kernel")?;
    // The attributes, with the hashes, end where the data begins.
    rom[offset - 1] ^= 0x80;
    refusal(&rom)?;
    Ok(())
}

#[test]
fn a_truncated_kernel_with_a_right_hash_is_refused() -> Result<()> {
    let image = Image::built()?;
    let mut kernel = image.read("bzImage")?;
    kernel.truncate(kernel.len() / 3);
    let line = refusal(&image.parts()?.kernel(kernel).rom()?)?;
    ensure!(
        line.contains("truncated") || line.contains("bytes"),
        "{line}"
    );
    Ok(())
}
