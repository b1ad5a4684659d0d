//! `cargo xtask bench`: measures everything and writes the table.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool"
)]

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use benches::laboratory::Laboratory;
use benches::{chain, metric, start};
use clap::Parser;
use tests::Image;

/// Measures the whole chain in virtual time.
#[derive(Parser)]
struct Arguments {
    /// Also writes the numbers as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The `lab` executable, static.
    #[arg(long, value_name = "FILE")]
    lab: PathBuf,
    /// Only what has this text in its name: `boot`, `vmm`, `size`.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let image = Image::built()?;
    let wanted = |part: &str| {
        arguments
            .only
            .as_deref()
            .is_none_or(|only| part.contains(only))
    };
    let mut metrics = Vec::new();
    if wanted("size") {
        metrics.extend(chain::sizes(&image)?);
    }
    if wanted("boot") {
        eprintln!("bench: the chain from reset to three guests (one boot, about two minutes)");
        metrics.extend(chain::boot(&image)?);
    }
    if wanted("vmm") {
        eprintln!("bench: starts of one guest, by daruma-vmm and by QEMU's microvm");
        metrics.extend(start::measure(&Laboratory::new(&image, &arguments.lab)?)?);
    }
    print!("{}", metric::table(&metrics));
    if let Some(file) = &arguments.json {
        fs::write(file, serde_json::to_string_pretty(&metrics)? + "\n")
            .with_context(|| format!("Cannot write {}", file.display()))?;
        println!("Written to {}", file.display());
    }
    Ok(())
}
