//! Cargo, run by this program.

use std::env;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result};

use crate::paths::Paths;
use crate::tool;
use crate::ui::{self, Step};

/// The cargo that runs this program.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    command
}

/// Runs cargo in the workspace, its progress as the step's detail.
pub fn run(command: &mut Command, paths: &Paths, step: &Step) -> Result<()> {
    command
        .current_dir(&paths.root)
        .env("CARGO_TERM_COLOR", "never");
    tool::run(command, &paths.log("programs"), |line| {
        let words = line.trim_start();
        if words.starts_with("Compiling ") || words.starts_with("Downloading ") {
            step.set(words);
        }
    })
}

/// Runs cargo in the workspace with the terminal to itself.
pub fn on_terminal(command: &mut Command, paths: &Paths) -> Result<ExitStatus> {
    let _pause = ui::pause();
    command
        .current_dir(&paths.root)
        .stdin(Stdio::null())
        .status()
        .context("Could not start cargo")
}
