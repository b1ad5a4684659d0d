//! Starting the VMM: under a tracer, where somebody wants to know which system calls it makes.

use std::cell::Cell;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Names the folder for traces, if any are wanted.
pub const FOLDER: &str = "DARUMA_TRACES";

thread_local! {
    /// Whether this test's VMMs are traced. Each test has a thread of its own.
    static WANTED: Cell<bool> = const { Cell::new(true) };
}

/// The VMMs that this test starts from now on are not traced: they leave the guest or take page faults so often that the
/// tracer would need minutes, and make no call that no other test's VMM makes.
pub fn not_in_this_test() {
    WANTED.set(false);
}

/// The VMM, without arguments yet.
pub fn vmm() -> Command {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let program = env!("CARGO_BIN_EXE_daruma-vmm");
    let folder = std::env::var_os(FOLDER).filter(|_| WANTED.get());
    let Some(folder) = folder else {
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
