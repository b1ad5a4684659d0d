//! Starting the VMM: under a tracer, where somebody wants to know which system calls it makes.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Names the folder for traces, if any are wanted.
pub const FOLDER: &str = "DARUMA_TRACES";

/// The VMM, without arguments yet.
pub fn vmm() -> Command {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let program = env!("CARGO_BIN_EXE_daruma-vmm");
    let Some(folder) = std::env::var_os(FOLDER) else {
        return Command::new(program);
    };
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let file = Path::new(&folder).join(format!("{}-{run}", std::process::id()));
    let mut command = Command::new("strace");
    // The tracer is a grandchild, so that the VMM is who its parent thinks it is.
    command
        .args(["-D", "-f", "-qq"])
        // With the threads' names, the calls' numbers, and arguments as the kernel gets them.
        .args(["--decode-pids=comm", "-n", "-e", "raw=all"])
        .args(["-e", "signal=none", "-o"])
        .arg(file)
        .arg(program);
    command
}
