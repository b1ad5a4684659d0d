//! Builds the fuzz targets: optimized, with overflow checks and assertions, and with coverage counters.

use std::path::PathBuf;

use anyhow::Result;

use crate::cargo::cargo;
use crate::paths::Paths;
use crate::tool;
use crate::ui::Step;

/// Named, so that build scripts and macros are not instrumented.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What `cargo fuzz` passes with `--sanitizer none`.
const FLAGS: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "--cfg=fuzzing",
    "-Cforce-frame-pointers",
];

/// Builds all targets and says where they are.
pub fn build(paths: &Paths) -> Result<PathBuf> {
    let step = Step::begin("fuzz targets");
    let folder = paths.target.join("fuzz");
    let mut build = cargo(&[
        "build",
        "--release",
        "--locked",
        "--bins",
        "--target",
        TARGET,
    ]);
    build
        .arg("--manifest-path")
        .arg(paths.root.join("fuzz/Cargo.toml"))
        .arg("--target-dir")
        .arg(&folder)
        .current_dir(&paths.root)
        .env("CARGO_TERM_COLOR", "never")
        .env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            FLAGS.join(" "),
        )
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    tool::run(&mut build, &paths.log("fuzz-build"), |line| {
        let words = line.trim_start();
        if words.starts_with("Compiling ") || words.starts_with("Downloading ") {
            step.set(words);
        }
    })?;
    step.done("built");
    Ok(folder.join(TARGET).join("release"))
}
