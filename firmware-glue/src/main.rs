//! `daruma-fw`: looks into flash images.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use firmware_glue::anchor::Anchor;
use firmware_glue::cbfs::{Attribute, Cbfs, File, Kind};
use firmware_glue::fmap::Fmap;
use firmware_glue::layout::{AREA_CBFS, BOOTBLOCK};
use firmware_glue::rom::human_size;

/// Looks into flash images: Daruma's own and coreboot's.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows areas, files, sizes and the state of each hash.
    Inspect {
        /// The flash image.
        rom: PathBuf,
    },
    /// Checks everything the ROM stage would check, and every other hash; says nothing if all is well.
    Verify {
        /// The flash image.
        rom: PathBuf,
    },
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let (Command::Inspect { rom } | Command::Verify { rom }) = &command;
    let result = std::fs::read(rom)
        .context("Cannot be read")
        .and_then(|image| match command {
            Command::Inspect { .. } => inspect(&image),
            Command::Verify { .. } => verify(&image),
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("daruma-fw: {}: {error:#}", rom.display());
            ExitCode::FAILURE
        }
    }
}

fn inspect(image: &[u8]) -> anyhow::Result<()> {
    let map = Fmap::find(image)?;
    println!(
        "Flash: {} at {:#x}, flash map at offset {:#x}\n",
        human_size(map.size() as usize),
        map.base(),
        map.offset()
    );
    println!("{:<24} {:>10} {:>12}", "AREA", "OFFSET", "SIZE");
    for area in map.areas() {
        let size = human_size(area.size as usize);
        println!("{:<24} {:>#10x} {size:>12}", area.name, area.offset);
    }
    let cbfs = Cbfs::new(map.region(AREA_CBFS)?);
    println!(
        "\n{:<32} {:<10} {:>10} {:>12}  HASH",
        "FILE", "TYPE", "OFFSET", "SIZE"
    );
    for file in cbfs.walk() {
        match file {
            Ok(file) => println!(
                "{:<32} {:<10} {:>#10x} {:>12}  {}",
                if file.kind() == Kind::EMPTY {
                    "(free)"
                } else {
                    file.name()
                },
                file.kind().to_string(),
                file.data_range().start,
                human_size(file.data().len()),
                hash_state(&file)
            ),
            Err(error) => println!("{error}"),
        }
    }
    let state = match check_anchor(&map, &cbfs) {
        Ok(()) => "valid: vouches for the flash map and all file headers".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    println!("\nMetadata hash: {state}");
    Ok(())
}

fn hash_state(file: &File<'_>) -> String {
    if file.kind().is_free() {
        return String::new();
    }
    if file.kind() == Kind::BOOTBLOCK {
        return "holds the metadata hash".to_owned();
    }
    match file.verify_all() {
        Ok(_) => {
            let names = file
                .attributes()
                .filter_map(Result::ok)
                .filter_map(|attribute| match attribute {
                    Attribute::Sha256(_) => Some("SHA-256"),
                    Attribute::Sha512(_) => Some("SHA-512"),
                    Attribute::Blake3(_) => Some("BLAKE3"),
                    Attribute::Compression(_) | Attribute::Other { .. } => None,
                });
            format!("{} valid", names.collect::<Vec<_>>().join(", "))
        }
        Err(error) => error.to_string(),
    }
}

fn verify(image: &[u8]) -> anyhow::Result<()> {
    let map = Fmap::find(image)?;
    let cbfs = Cbfs::new(map.region(AREA_CBFS)?);
    check_anchor(&map, &cbfs)?;
    let mut files = 0;
    for file in cbfs.files() {
        let file = file?;
        if file.kind() != Kind::BOOTBLOCK {
            file.verify_all()?;
            files += 1;
        }
    }
    if files == 0 {
        bail!("CBFS has no file besides the boot block");
    }
    Ok(())
}

fn check_anchor(map: &Fmap<'_>, cbfs: &Cbfs<'_>) -> anyhow::Result<()> {
    let bootblock = cbfs.find(BOOTBLOCK)?;
    let at = Anchor::find(bootblock.data())?;
    Anchor::parse(&bootblock.data()[at..])?.verify(map, cbfs)?;
    Ok(())
}
