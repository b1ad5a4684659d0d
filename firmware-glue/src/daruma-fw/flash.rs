//! `daruma-fw flash`: one area of an image to this board's flash, by flashrom.
//!
//! The chip is read twice and kept as a backup, compared with the image, written in the one area, and read again.

mod board;
mod flashrom;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use firmware_glue::image::Image;
use firmware_glue::rom::human_size;

use self::flashrom::Flashrom;
use crate::{diff, open, output};

#[derive(Args)]
pub struct Options {
    /// The flash image, as `daruma-fw pack` makes it from what was read from this board
    rom: PathBuf,
    /// The area to write
    #[arg(long, value_name = "AREA", default_value = "COREBOOT")]
    region: String,
    /// What flashrom writes with (its -p)
    #[arg(short, long, value_name = "PROGRAMMER", default_value = "internal")]
    programmer: String,
    /// The chip, if flashrom finds several (its -c)
    #[arg(short, long, value_name = "CHIP")]
    chip: Option<String>,
    /// Where what is on the chip now goes; must not exist
    #[arg(long, value_name = "FILE", default_value = "flash-backup.rom")]
    backup: PathBuf,
    /// Also writes an image whose coreboot is another build for the same board
    #[arg(long)]
    other_build: bool,
    /// Reads and compares, and writes nothing but the backup
    #[arg(long)]
    dry_run: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let image = open(&options.rom)?;
    let region = image.region(Some(&options.region))?.clone();
    let flashrom = Flashrom::new(&options.programmer, options.chip.as_deref())?;

    println!("Reading the chip, twice");
    let now = flashrom.read()?;
    if flashrom.read()? != now {
        bail!(
            "The chip was read twice and was not the same: check the connection, and write nothing until that is right"
        );
    }
    output::write(&options.backup, &now, false, &[&options.rom])?;
    println!("Kept as {}", options.backup.display());
    let chip = Image::open(now.clone()).context("What is on the chip")?;
    board::check(&chip, &image, options.other_build)
        .context("The image is not for this board, and nothing was written")?;

    let lines = diff::differences(&chip, &image);
    if image.bytes()[region.range.clone()] == now[region.range.clone()] {
        println!(
            "Area {} is on the chip already: nothing to write",
            region.name
        );
        return Ok(());
    }
    println!("What differs, of which {} is written:", region.name);
    lines.iter().for_each(|line| println!("  {line}"));
    if options.dry_run {
        println!("Nothing was written");
        return Ok(());
    }
    println!(
        "Writing {} to {} ({} at {:#x})",
        options.rom.display(),
        region.name,
        human_size(region.range.len()),
        region.range.start
    );
    let restore = || {
        format!(
            "Do not switch the board off. This writes back what was there: {}",
            flashrom.command_to_write(&options.backup)
        )
    };
    flashrom
        .write(&region, image.bytes())
        .with_context(restore)?;
    let after = flashrom.read().with_context(restore)?;
    let mut expected = now;
    expected[region.range.clone()].copy_from_slice(&image.bytes()[region.range.clone()]);
    if after != expected {
        let differ = match Image::open(after) {
            Ok(after) => diff::differences(&Image::open(expected)?, &after).join("\n  "),
            Err(error) => error.to_string(),
        };
        bail!(
            "What was read back is not what should be there:\n  {differ}\n{}",
            restore()
        );
    }
    println!(
        "Written and read back: {} is as in the image, all else as it was",
        region.name
    );
    Ok(())
}
