//! The store by itself, on this computer and not in virtual time: pages go in and come out, verified, on one core.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::image::workspace;

use crate::metric::{Clock, Metric};

/// Bytes that one iteration of `store/benches/chunks.rs` moves.
const BYTES: f64 = (64 << 20) as f64;

/// `store.*`: what criterion measures in processor time of one thread.
pub fn measure() -> Result<Vec<Metric>> {
    let home = tempfile::tempdir()?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace())
        .args([
            "bench",
            "--quiet",
            "--package",
            "store",
            "--bench",
            "chunks",
        ])
        .args(["--", "--noplot"])
        .env("CRITERION_HOME", home.path())
        .stdin(Stdio::null())
        .output()
        .context("Could not start cargo")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("The store's benchmark failed: {said}");
    }
    let speed = |name: &str, benchmark: &str| -> Result<Metric> {
        // Bytes in a nanosecond are gigabytes in a second.
        let value = BYTES / nanoseconds(home.path(), benchmark)?;
        Ok(Metric::new(name, value, "GB/s", Clock::Processor))
    };
    let depth = |what| nanoseconds(home.path(), &format!("restore at depth/{what}"));
    let faults = depth("faults/1000")? / depth("faults/1")?;
    let all = depth("1000")? / depth("1")?;
    let fault = nanoseconds(home.path(), "read, verified/a fault/lz4")? / 1000.0;
    Ok(vec![
        speed("store.write_gb_s", "write/lz4")?.at_least(1.0),
        speed("store.write_noise_gb_s", "write/lz4, noise")?.at_least(1.0),
        speed("store.write_raw_gb_s", "write/raw")?.at_least(1.0),
        speed("store.write_known_gb_s", "write/known already")?.at_least(1.0),
        speed("store.read_verified_gb_s", "read, verified/lz4")?.at_least(1.5),
        speed("store.read_verified_raw_gb_s", "read, verified/raw")?.at_least(1.5),
        Metric::new("snap.chain1000_ratio", faults, "", Clock::Processor).at_most(1.05),
        Metric::new("snap.chain1000_ratio.all", all, "", Clock::Processor),
        Metric::new("store.fault_us", fault, "µs", Clock::Processor),
    ])
}

/// Processor time of one iteration of `benchmark`.
fn nanoseconds(home: &Path, benchmark: &str) -> Result<f64> {
    // What criterion makes of a name that would be two folders.
    let (group, name) = benchmark.split_once('/').unwrap_or((benchmark, ""));
    let file = home.join(group).join(name).join("new/estimates.json");
    let text = fs::read(&file).with_context(|| format!("Cannot read {}", file.display()))?;
    let estimates: Value = serde_json::from_slice(&text)?;
    let median = estimates["median"]["point_estimate"].as_f64();
    median.with_context(|| format!("{} tells no median", file.display()))
}
