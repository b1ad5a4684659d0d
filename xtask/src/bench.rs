//! `cargo xtask bench`: makes what the benchmarks need and starts them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::cargo::{self, cargo};
use crate::emulator::Emulator;
use crate::image::{self, product};
use crate::paths::Paths;
use crate::ui::{self, Step};

#[derive(Args)]
pub struct Options {
    /// Also writes the numbers as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only what has this text in its name
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

pub fn run(paths: &Paths, options: &Options) -> Result<ExitCode> {
    let folder = image::build(paths, &image::Options::keep())?;
    let step = Step::begin("bench");
    step.set("building the benchmarks");
    let lab = product::static_program(paths, "benches", "lab", &step)?;
    let mut build = cargo(&["build", "--package", "benches", "--bin", "bench"]);
    cargo::run(&mut build, paths, &step)?;
    drop(step);

    let mut bench = std::process::Command::new(paths.target.join("debug/bench"));
    bench
        .env("PATH", Emulator::for_machine(paths)?.search_path())
        .env("DARUMA_IMAGE", folder)
        .arg("--lab")
        .arg(lab);
    if let Some(file) = &options.json {
        bench.arg("--json").arg(file);
    }
    if let Some(text) = &options.only {
        bench.arg("--only").arg(text);
    }
    let _pause = ui::pause();
    let status = bench.status().context("Could not start the benchmarks")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
