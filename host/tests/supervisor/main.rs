//! The mechanics of processes and consoles, with real processes: this program supervises machines whose VMMs are this
//! program again. What real guests do is tested nested, by the `tests` crate.
#![expect(
    clippy::print_stdout,
    reason = "the test program reports, and its VMM is a serial line"
)]

mod scenarios;
mod stand_in;
mod terminal;
mod watching;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use host::own_kernel::{READER_NAME, reader};
use host::supervisor::VMM_NAME;
use host::up;

/// First argument of the supervising process.
const SUPERVISE: &str = "supervise";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let name = arguments
        .first()
        .and_then(|path| Path::new(path).file_name()?.to_str());
    match name {
        Some(VMM_NAME) => return stand_in::main(&arguments),
        Some(READER_NAME) => return reader::main(),
        _ => {}
    }
    if arguments.get(1).is_some_and(|word| word == SUPERVISE) {
        let Some(file) = arguments.get(2) else {
            return ExitCode::FAILURE;
        };
        let on_ready = arguments.get(3).is_some_and(|word| word == "--onready");
        return supervise(PathBuf::from(file), on_ready);
    }
    let filter = arguments
        .get(1)
        .and_then(|word| word.to_str())
        .unwrap_or_default();
    let filter = if filter.starts_with('-') { "" } else { filter };
    let (mut passed, mut failed) = (0, 0);
    let chosen = scenarios::ALL
        .iter()
        .filter(|(name, _)| name.contains(filter));
    for (name, scenario) in chosen {
        match scenario() {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok");
            }
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED: {error:#}");
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    // As the standard harness says it, for whoever counts.
    println!("test result: {verdict}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn supervise(file: PathBuf, power_off_when_ready: bool) -> ExitCode {
    let Ok(program) = std::env::current_exe() else {
        return ExitCode::FAILURE;
    };
    let options = up::Options {
        file,
        program,
        rom: None,
        disk: None,
        power_off_when_ready,
    };
    match up::up(options) {
        Ok(code) => code,
        Err(error) => {
            println!("up failed: {error}");
            ExitCode::FAILURE
        }
    }
}
