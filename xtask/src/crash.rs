//! `cargo xtask crash`: what is left of the store when the power goes, or its process, and of guests that go back to
//! snapshots again and again.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cargo::{self, cargo};
use crate::paths::Paths;
use crate::setup;

/// States of a long run.
const LONG: u64 = 1_000_000;
/// Cycles of snapshot and restore of a long run.
const CYCLES: u64 = 5_000;

#[derive(Args)]
pub struct Options {
    /// Opens and checks a million states after power cuts, and goes through 5,000 snapshots and restores, which takes up to
    /// an hour; otherwise as many as `cargo xtask test`
    #[arg(long)]
    long: bool,
}

pub fn run(paths: &Paths, options: &Options) -> Result<ExitCode> {
    setup::run(paths)?;
    let mut command = cargo(&["test", "--package", "store", "--package", "host"]);
    command.args(["--test", "crash", "--test", "kill", "--test", "cycles"]);
    command.arg("--no-fail-fast");
    if options.long {
        command.env("DARUMA_CRASH_STATES", LONG.to_string());
        command.env("DARUMA_CYCLES", CYCLES.to_string());
    }
    let status = cargo::on_terminal(&mut command, paths)?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
