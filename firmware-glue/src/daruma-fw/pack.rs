//! `daruma-fw pack`: Daruma into someone's coreboot image.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use firmware_glue::cbfs::{Kind, NewFile};
use firmware_glue::compress::Method;
use firmware_glue::fmap::flash_in_window;
use firmware_glue::image::Image;
use firmware_glue::layout::{AREA_CBFS, GUEST_PREFIX, KERNEL, MAX_ROM_SIZE, PAYLOAD};
use firmware_glue::pack::{Action, Replace, Report, pack};
use firmware_glue::payload::Payload;
use firmware_glue::payload::linux::Trio;
use firmware_glue::rom::human_size;

use crate::{open, output, read};

/// Machines lie there in flash.
const MACHINE_PREFIX: &str = "machine/";

#[derive(Args)]
pub struct Options {
    /// The coreboot image; it is only read
    #[arg(long, value_name = "ROM")]
    into: PathBuf,
    /// Where the new image goes [default: beside it, with -daruma in its name]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The area that takes payload and guests [default: COREBOOT, where boards and the host look for them]
    #[arg(long, value_name = "AREA")]
    region: Option<String>,
    /// Folder with daruma.payload, and daruma.rom for the guests, as `cargo xtask image` leaves it
    #[arg(long, value_name = "FOLDER", default_value = "target/image")]
    image: PathBuf,
    /// Another payload, in SELF format
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    payload: Option<PathBuf>,
    /// A payload made of this bzImage ...
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// ... this initramfs ...
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initramfs: Option<PathBuf>,
    /// ... and this command line
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "")]
    cmdline: String,
    /// How kernel and initramfs are stored where that makes them smaller
    #[arg(long, value_enum, requires = "kernel", default_value = "none")]
    compression: Compression,
    /// The payload's name in the image
    #[arg(long, value_name = "NAME", default_value = PAYLOAD)]
    name: String,
    /// Replaces the payload that the board boots now
    #[arg(long)]
    replace_payload: bool,
    /// Replaces other files of the same names
    #[arg(long)]
    replace_files: bool,
    /// Leaves out this file of the guests, or all below this name
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
    /// Leaves out all guests, and the machine
    #[arg(long)]
    no_guests: bool,
    /// One more file
    #[arg(long = "file", value_name = "NAME=FILE")]
    files: Vec<String>,
    /// Replaces the output if it exists
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Compression {
    None,
    Lzma,
    Lz4,
    Zstd,
}

impl From<Compression> for Method {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None,
            Compression::Lzma => Self::Lzma,
            Compression::Lz4 => Self::Lz4,
            Compression::Zstd => Self::Zstd,
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    let mut image = open(&options.into)?;
    let before = image.clone();
    let payload = options.payload()?;
    let memory = Payload::parse(&payload)
        .context("The payload cannot be started")?
        .memory_end();
    let mut files = vec![NewFile::new(&options.name, Kind::SELF, payload)];
    files.extend(options.guests()?);
    for given in &options.files {
        let Some((name, path)) = given.split_once('=') else {
            bail!("--file takes NAME=FILE, and {given} has no =");
        };
        files.push(NewFile::new(name, Kind::RAW, read(Path::new(path))?));
    }
    let replace = Replace {
        payload: options.replace_payload,
        others: options.replace_files,
    };
    let report = pack(&mut image, options.region.as_deref(), files, replace)
        .with_context(|| options.into.display().to_string())?;
    check_untouched(&before, &image, &report)?;
    let path = match &options.output {
        Some(path) => path.clone(),
        None => beside(&options.into),
    };
    output::write(&path, image.bytes(), options.force, &[&options.into])?;
    tell(&report, &path, memory, &image);
    Ok(())
}

impl Options {
    fn payload(&self) -> Result<Vec<u8>> {
        let Some(kernel) = &self.kernel else {
            let default = || self.image.join("daruma.payload");
            return read(&self.payload.clone().unwrap_or_else(default));
        };
        let initramfs = self.initramfs.as_deref().map(read).transpose()?;
        let trio = Trio {
            kernel: &read(kernel)?,
            initramfs: initramfs.as_deref(),
            cmdline: &self.cmdline,
            method: self.compression.into(),
        };
        let made = trio
            .payload()
            .with_context(|| kernel.display().to_string())?;
        Ok(made.bytes)
    }

    /// What our own ROM holds of guests and machines. A payload of one's own has none unless their folder is named.
    fn guests(&self) -> Result<Vec<NewFile>> {
        let rom = self.image.join("daruma.rom");
        let own_payload = self.payload.is_some() || self.kernel.is_some();
        if self.no_guests || (own_payload && !rom.exists()) {
            return Ok(Vec::new());
        }
        let rom = open(&rom).context("Guests come from daruma.rom (--no-guests goes without)")?;
        let mut files = Vec::new();
        let mut unused: Vec<&String> = self.without.iter().collect();
        for file in rom.cbfs(rom.region(None)?).files() {
            let file = file?;
            let name = file.name();
            let ours = name.starts_with(GUEST_PREFIX) || name.starts_with(MACHINE_PREFIX);
            if !ours {
                continue;
            }
            unused.retain(|without| !below(name, without));
            if self.without.iter().any(|without| below(name, without)) {
                continue;
            }
            file.verify_all()?;
            files.push(NewFile::copy_of(&file)?);
        }
        if let Some(name) = unused.first() {
            bail!("--without {name}: daruma.rom has no such file of a guest or machine");
        }
        Ok(files)
    }
}

/// Whether `name` is `of`, or in the folder `of`.
fn below(name: &str, of: &str) -> bool {
    name.strip_prefix(of)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || of.ends_with('/'))
}

/// The last look: nothing outside of the region has changed, whatever the library has done.
fn check_untouched(before: &Image, after: &Image, report: &Report) -> Result<()> {
    let range = &before.region(Some(&report.region))?.range;
    let outside = |image: &Image| {
        let bytes = image.bytes();
        [&bytes[..range.start], &bytes[range.end..]].concat()
    };
    ensure!(
        outside(before) == outside(after),
        "Something outside of {} would have changed; nothing was written",
        report.region
    );
    Ok(())
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let rom = OsStr::new("rom");
    let extension = path.extension().unwrap_or(rom).to_string_lossy();
    path.with_file_name(format!("{name}-daruma.{extension}"))
}

fn tell(report: &Report, path: &Path, memory: u64, image: &Image) {
    println!(
        "{} (changed in area {} only):",
        path.display(),
        report.region
    );
    for change in &report.changes {
        let what = match change.action {
            Action::Added => "added",
            Action::Replaced => "replaced",
            Action::Kept => "the same",
        };
        println!(
            "  {what:<9} {:<28} {:>12} at {:#010x}  SHA-256 {}",
            change.name,
            human_size(change.data.len()),
            change.data.start,
            change.sha256
        );
    }
    if report.anchor {
        println!("  made anew: the metadata hash in the boot block");
    }
    println!("  free now:  {}", human_size(report.free));
    println!(
        "The payload needs a board with memory to {} at least.",
        human_size(usize::try_from(memory).unwrap_or(usize::MAX))
    );
    let guests = report
        .changes
        .iter()
        .any(|change| change.name.starts_with(GUEST_PREFIX));
    if guests && !host_finds_them(image, &report.region) {
        println!(
            "Note: the host will not find the guests there. It looks in area {AREA_CBFS} of flash that ends at 4 GiB, has at most {}, and its flash map at a multiple of 4 KiB. Put machine and guests on a disk.",
            human_size(MAX_ROM_SIZE)
        );
    }
    if guests && !has_kernel(image, &report.region) {
        println!(
            "Note: guests whose kernel is flash:{KERNEL} will not find it, since the payload's is compressed once more. Add it: --file {KERNEL}=bzImage"
        );
    }
}

/// Whether `flash:daruma/kernel` is something: a file of its own, or the kernel in a payload that has it as it is.
fn has_kernel(image: &Image, region: &str) -> bool {
    let Ok(region) = image.region(Some(region)) else {
        return false;
    };
    let mut files = image.cbfs(region).files().filter_map(Result::ok);
    files.any(|file| {
        file.name() == KERNEL
            || (file.kind() == Kind::SELF
                && Payload::parse(file.data()).is_ok_and(|payload| payload.linux().is_some()))
    })
}

fn host_finds_them(image: &Image, region: &str) -> bool {
    let bytes = image.bytes();
    let window = &bytes[bytes.len().saturating_sub(MAX_ROM_SIZE)..];
    region == AREA_CBFS && flash_in_window(window).is_ok()
}
