//! Proof that a nested boot really ran: one JSON file for each, counted by `cargo xtask test`.

use std::fs;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result};

static BOOTS: AtomicU32 = AtomicU32::new(0);

/// Where the records of this run are kept.
///
/// `DARUMA_NESTED_RECORDS` names the folder (`cargo xtask test` empties it first); without it,
/// `target/nested` of the workspace.
pub fn folder() -> PathBuf {
    std::env::var_os("DARUMA_NESTED_RECORDS").map_or_else(
        || crate::image::workspace().join("target/nested"),
        PathBuf::from,
    )
}

/// Writes down that a machine was booted and said something, with its whole console.
pub fn boot(accelerator: &str, console: &str) -> Result<()> {
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let number = BOOTS.fetch_add(1, Ordering::Relaxed);
    let test = thread::current()
        .name()
        .unwrap_or("main")
        .replace("::", "-");
    let stem = folder.join(format!("{}-{number:03}-{test}", process::id()));
    let record = serde_json::json!({
        "test": test,
        "accelerator": accelerator,
        "console_bytes": console.len(),
        "ready_lines": console.matches(": ready").count(),
    });
    fs::write(stem.with_extension("log"), console)?;
    let path = stem.with_extension("json");
    fs::write(&path, record.to_string()).with_context(|| format!("Cannot write {}", path.display()))
}
