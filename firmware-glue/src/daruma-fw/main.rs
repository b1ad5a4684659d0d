//! `daruma-fw`: looks into flash images, and puts Daruma into someone's coreboot.

mod diff;
mod extract;
mod flash;
mod inspect;
mod output;
mod pack;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use firmware_glue::image::Image;

/// Looks into flash images, Daruma's own and coreboot's, and puts Daruma into coreboot's.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows areas, files, sizes and the state of each hash
    Inspect {
        /// The flash image
        rom: PathBuf,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Checks all that can be checked; says nothing if all is well
    Verify {
        /// The flash image
        rom: PathBuf,
    },
    /// Puts Daruma into someone's coreboot image and leaves everything else as it is
    Pack(pack::Options),
    /// Takes a file out of an image, unpacked
    Extract(extract::Options),
    /// Says which areas and files of two images differ; 1 if any does
    Diff {
        /// One image
        a: PathBuf,
        /// The other
        b: PathBuf,
    },
    /// Writes one area of an image to this board's flash, by flashrom
    Flash(flash::Options),
}

fn main() -> ExitCode {
    let result = match &Arguments::parse().command {
        Command::Inspect { rom, json } => open(rom).and_then(|image| inspect::run(&image, *json)),
        Command::Verify { rom } => open(rom)
            .and_then(|image| verify::run(&image).with_context(|| rom.display().to_string())),
        Command::Pack(options) => pack::run(options),
        Command::Extract(options) => extract::run(options),
        Command::Diff { a, b } => return exit(diff::run(a, b)),
        Command::Flash(options) => flash::run(options),
    };
    exit(result.map(|()| true))
}

/// What a shell is told: 0 if all is well or the same, 1 if not, 2 if that cannot be known.
fn exit(result: Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("daruma-fw: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn open(path: &Path) -> Result<Image> {
    Image::open(read(path)?).with_context(|| path.display().to_string())
}

/// Nothing that is larger is a flash image: the largest chips of boards have 64 MiB.
const LARGEST: u64 = 1 << 30;

fn read(path: &Path) -> Result<Vec<u8>> {
    let name = || format!("Cannot read {}", path.display());
    let size = std::fs::metadata(path).with_context(name)?.len();
    anyhow::ensure!(
        size <= LARGEST,
        "{} has {size} bytes, more than any file that goes into flash",
        path.display()
    );
    std::fs::read(path).with_context(name)
}
