//! Proof that a nested boot really ran: one JSON file for each, counted by `cargo xtask test`.

use std::fs::{self, File};
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

/// What is written down about one boot.
pub struct Record {
    test: String,
    stem: PathBuf,
}

impl Record {
    /// The record of a machine that is about to boot for the test that runs on this thread.
    pub fn new() -> Result<Self> {
        let folder = folder();
        fs::create_dir_all(&folder)
            .with_context(|| format!("Cannot create {}", folder.display()))?;
        let number = BOOTS.fetch_add(1, Ordering::Relaxed);
        let test = thread::current()
            .name()
            .unwrap_or("main")
            .replace("::", "-");
        let stem = folder.join(format!("{}-{number:03}-{test}", process::id()));
        Ok(Self { test, stem })
    }

    /// Where the console is written while it speaks: what a hung machine said last can be read from outside.
    pub fn transcript(&self) -> Result<File> {
        let path = self.stem.with_extension("log");
        File::create(&path).with_context(|| format!("Cannot create {}", path.display()))
    }

    /// Writes down that the machine was booted and said something, and how it was lost if it was.
    pub fn boot(&self, accelerator: &str, console: &str, lost: Option<&str>) -> Result<()> {
        let record = serde_json::json!({
            "test": self.test,
            "accelerator": accelerator,
            "console_bytes": console.len(),
            "ready_lines": console.matches(": ready").count(),
            "lost": lost,
        });
        let path = self.stem.with_extension("json");
        fs::write(&path, record.to_string())
            .with_context(|| format!("Cannot write {}", path.display()))
    }
}
