//! The VMM as an executable of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm::cli::main(std::env::args_os())
}
