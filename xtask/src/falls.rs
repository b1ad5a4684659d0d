//! `cargo xtask falls`: guests are knocked over in a real machine, and have to stand again.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cargo::{self, cargo};
use crate::emulator::Emulator;
use crate::paths::Paths;
use crate::{image, setup};

/// Falls of a long run.
const LONG: u64 = 1_000;

#[derive(Args)]
pub struct Options {
    /// A thousand falls instead of two hundred
    #[arg(long)]
    long: bool,
}

pub fn run(paths: &Paths, options: &Options) -> Result<ExitCode> {
    setup::run(paths)?;
    let image = image::build(paths, &image::Options::for_tests())?;
    let mut command = cargo(&["test", "--package", "tests", "--test", "nested"]);
    command.args(["falls", "--", "--ignored", "--nocapture"]);
    command
        .env("PATH", Emulator::for_tests(paths)?.search_path())
        .env("DARUMA_IMAGE", image)
        .env("DARUMA_NESTED_RECORDS", paths.nested());
    if options.long {
        command.env("DARUMA_FALLS", LONG.to_string());
    }
    let status = cargo::on_terminal(&mut command, paths)?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
