//! `daruma`: the host of a machine, and the VMM of each of its guests, in one program.

use std::process::ExitCode;

fn main() -> ExitCode {
    host::cli::main(std::env::args_os().collect())
}
