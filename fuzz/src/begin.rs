//! How a target begins: with seeds that it makes by itself, so that no files of bytes are in the repository, and as every
//! program in Rust does.

#![expect(unsafe_code, reason = "a signal is ignored")]

use std::fs;
use std::path::Path;

use nix::sys::signal::{SigHandler, Signal, signal};

/// Where whoever starts a target wants its seeds.
const FOLDER: &str = "DARUMA_FUZZ_SEEDS";

/// Writes what `make` makes to the folder that is named in the environment, if one is. libFuzzer reads it after that.
pub fn begin(make: impl FnOnce() -> Vec<Vec<u8>>) {
    // `main` is libFuzzer's, so the standard library has not done it: a peer that is gone is an error to a write, and no
    // end of the process.
    // SAFETY: there is no handler, and no other thread yet.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }.expect("a signal that can be ignored");
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    for (index, seed) in make().iter().enumerate() {
        let path = Path::new(&folder).join(format!("{index:03}"));
        fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// Some series of steps, each as good as any other: mutations need something to begin with.
pub fn steps() -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = || {
        // Xorshift: any bytes will do, but the same each time.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (1..=24)
        .map(|count| (0..count * 24).map(|_| byte()).collect())
        .collect()
}
