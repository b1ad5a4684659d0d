//! The command line of `daruma`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command line is for"
)]

mod asking;
mod attach;
mod terminal;
mod top;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::errors::chain;
use crate::own_kernel::{READER_NAME, reader};
use crate::snapshots::STORE_NAME;
use crate::supervisor::VMM_NAME;
use crate::{init, remote, up};

/// Runs several guest operating systems side by side, each on its own virtual machine monitor.
#[derive(Debug, Parser)]
#[command(name = "daruma", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a machine in the foreground, with its console on this terminal (needs /dev/kvm)
    Up {
        /// The machine file (TOML)
        file: PathBuf,
        /// What to do once every autostart guest is ready
        #[arg(long, value_name = "ACTION")]
        onready: Option<OnReady>,
        /// ROM image that `flash:` sources come from
        #[arg(long)]
        rom: Option<PathBuf>,
        /// Folder that `disk:` sources come from [default: the machine file's folder]
        #[arg(long)]
        disk: Option<PathBuf>,
    },
    /// Show what the devices of running guests have counted
    Metrics {
        /// Of this guest only, by its name or number
        guest: Option<String>,
        /// All numbers, as JSON
        #[arg(long)]
        json: bool,
        /// The supervisor's socket [default: that of the one machine that runs here]
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
    /// Snapshots of guests
    Snapshot {
        #[command(subcommand)]
        what: asking::Snapshot,
        #[command(flatten)]
        manner: asking::Manner,
    },
    /// The guests: what they are, and what they are to do
    Guest {
        #[command(subcommand)]
        what: asking::Guest,
        #[command(flatten)]
        manner: asking::Manner,
    },
    /// Falls and stands of the guests, or what the VMM of one said
    Log {
        /// The guest, by its name or number
        guest: Option<String>,
        #[command(flatten)]
        manner: asking::Manner,
    },
    /// Watch the guests: what they use, how they are, what they have been through; q leaves
    Top {
        /// Say it once, as text
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        manner: asking::Manner,
    },
    /// What snapshots are kept in
    Store {
        #[command(subcommand)]
        what: asking::Store,
        #[command(flatten)]
        manner: asking::Manner,
    },
    /// Say what is wrong in a machine file, and run nothing
    Check {
        /// The machine file (TOML)
        file: PathBuf,
    },
    /// Be process 1 of a machine (the kernel starts this)
    Init,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnReady {
    /// Stop the guests and leave
    Poweroff,
}

/// Runs the program that the first argument names: `daruma`, the VMM as [`VMM_NAME`], the reader of boot entries as
/// [`READER_NAME`], or the store's service as [`STORE_NAME`].
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    match called(arguments.first()) {
        Some(VMM_NAME) => return vmm::cli::main(arguments),
        Some(READER_NAME) => return reader::main(),
        Some(STORE_NAME) => return crate::snapshots::main(arguments),
        _ => {}
    }
    if std::process::id() == 1 {
        init::main();
    }
    let result = match Arguments::parse_from(arguments).command {
        Command::Metrics {
            guest,
            json,
            socket,
        } => return metrics(guest, json, socket),
        Command::Snapshot { what, manner } => return asking::snapshot(what, &manner),
        Command::Guest { what, manner } => return asking::guest(what, &manner),
        Command::Log { guest, manner } => return asking::log(guest, &manner),
        Command::Store { what, manner } => return asking::store(what, &manner),
        Command::Top { once, manner } => return top::top(once, &manner),
        Command::Up {
            file,
            onready,
            rom,
            disk,
        } => std::env::current_exe()
            .map_err(|source| up::UpError::System {
                step: "find this program",
                source,
            })
            .and_then(|program| {
                let power_off_when_ready = matches!(onready, Some(OnReady::Poweroff));
                up::up(up::Options {
                    file,
                    program,
                    rom,
                    disk,
                    power_off_when_ready,
                })
            }),
        Command::Check { file } => up::check(&file).map(|(errors, guests)| {
            errors.iter().for_each(|error| eprintln!("{error}"));
            if errors.is_empty() {
                println!("{}: {guests} guests, nothing wrong", file.display());
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }),
        Command::Init => {
            eprintln!("daruma init is for process 1, started by the kernel; try 'daruma up FILE'");
            Ok(ExitCode::FAILURE)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("daruma: {}", chain(&error));
        ExitCode::FAILURE
    })
}

/// Shows what guests' devices have counted.
fn metrics(guest: Option<String>, json: bool, socket: Option<PathBuf>) -> ExitCode {
    let command = remote::Command::Metrics { guest };
    let found = socket.map_or_else(remote::find, Ok);
    match found.and_then(|socket| remote::ask(&socket, &command, |_, _, _| ())) {
        Ok(metrics) if json => println!("{metrics}"),
        Ok(metrics) => println!("{}", remote::metrics_as_text(&metrics)),
        Err(error) => {
            eprintln!("daruma: {}", chain(&error));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// The name that this program was called by.
fn called(program: Option<&OsString>) -> Option<&str> {
    Path::new(program?).file_name()?.to_str()
}
