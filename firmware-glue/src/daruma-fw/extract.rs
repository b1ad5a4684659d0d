//! `daruma-fw extract`: a file out of an image.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use firmware_glue::cbfs::{Compression, File};
use firmware_glue::compress::{Method, unpack};

use crate::{open, output};

#[derive(Args)]
pub struct Options {
    /// The flash image
    rom: PathBuf,
    /// The file's name, e.g. fallback/payload
    name: String,
    /// Where to write it
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The area it is in, if not the main CBFS
    #[arg(long, value_name = "AREA")]
    region: Option<String>,
    /// As it is stored: not unpacked
    #[arg(long)]
    raw: bool,
    /// Replaces a file that exists
    #[arg(long)]
    force: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let image = open(&options.rom)?;
    let region = image.region(options.region.as_deref())?;
    let file = image
        .cbfs(region)
        .find(&options.name)
        .with_context(|| format!("{}, area {}", options.rom.display(), region.name))?;
    if file
        .attributes()
        .any(|attribute| attribute.is_ok_and(|a| a.is_hash()))
    {
        file.verify_all()?;
    }
    let data = if options.raw {
        file.data().to_vec()
    } else {
        unpacked(&file)?
    };
    output::write(&options.output, &data, options.force, &[&options.rom])
}

/// The data of a file as they were before they were compressed.
pub fn unpacked(file: &File<'_>) -> Result<Vec<u8>> {
    let (method, size) = match file.compression()? {
        Compression::None => return Ok(file.data().to_vec()),
        Compression::Lzma(size) => (Method::Lzma, size),
        Compression::Lz4(size) => (Method::Lz4, size),
        Compression::Zstd(size) => (Method::Zstd, size),
        Compression::Unknown { algorithm, .. } => {
            bail!("{}: compression {algorithm} is not known", file.name())
        }
    };
    unpack(method, file.data(), size as usize).with_context(|| file.name().to_owned())
}
