//! `cargo xtask`: sets the machine up, builds the image, runs, tests and measures it.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool"
)]

mod apt;
mod background;
mod bench;
mod cache;
mod cargo;
mod crash;
mod doctor;
mod emulator;
mod falls;
mod fuzz;
mod guests;
mod image;
mod kernel;
mod paths;
mod qemu;
mod requirements;
mod run;
mod setup;
mod test;
mod tool;
mod ui;
mod world;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::paths::Paths;

/// Builds, runs, tests and measures Daruma. Each command first installs or builds what is missing
/// and says so.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boots the ROM in QEMU with this terminal attached: the host and its three guests
    Run(run::Options),
    /// Runs all tests: format, lints, unit tests, and real guests in a nested machine
    Test(test::Options),
    /// Builds target/image: daruma.rom, bzImage, initramfs, cmdline, disk.img, manifest.json
    Image(image::Options),
    /// Measures boot, VMM and sizes in virtual time
    Bench(bench::Options),
    /// Cuts the power under the store and kills its writer, and looks at what is left
    Crash(crash::Options),
    /// Knocks guests over in a real machine, again and again, and looks whether they stand
    Falls(falls::Options),
    /// Runs the fuzz targets for a minute each, or for as long as you say
    Fuzz(fuzz::Options),
    /// Says what this computer can do, what is missing, and what takes space
    Doctor,
    /// Installs the packages that the other commands need (they call it themselves)
    Setup,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match dispatch(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            ui::clear();
            eprintln!("\nxtask: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    let paths = Paths::find()?;
    match command {
        Command::Run(options) => run::run(&paths, &options),
        Command::Test(options) => test::run(&paths, &options),
        Command::Image(options) => image::build(&paths, &options).map(|_| ExitCode::SUCCESS),
        Command::Bench(options) => bench::run(&paths, &options),
        Command::Crash(options) => crash::run(&paths, &options),
        Command::Falls(options) => falls::run(&paths, &options),
        Command::Fuzz(options) => fuzz::run(&paths, &options),
        Command::Doctor => doctor::run(&paths),
        Command::Setup => setup::run(&paths).map(|()| ExitCode::SUCCESS),
    }
}

/// The whole chain of an error, each cause once.
fn chain(error: &anyhow::Error) -> String {
    let words: Vec<String> = error.chain().map(ToString::to_string).collect();
    words.join("\n  because: ")
}
