//! Many small guests started at once on one host.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::laboratory::Laboratory;
use crate::metric::{Clock, Metric, median};

/// Measures `many.*`: every one of the guests must have become ready for there to be a number.
pub fn measure(laboratory: &Laboratory) -> Result<Vec<Metric>> {
    let samples = laboratory.run("many")?;
    let all: Vec<&Value> = samples.of(&[("vmm", "daruma")]).collect();
    let (count, together) = all
        .iter()
        .filter_map(|sample| Some((sample["count"].as_f64()?, sample["us"].as_f64()?)))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .context("The laboratory started no guests")?;
    let single = all.iter().filter(|sample| sample["count"] == 1);
    let single = median(single.filter_map(|sample| sample["us"].as_f64()).collect())
        .context("The laboratory started no single guest")?;
    Ok(vec![
        Metric::new(
            "many.start_ratio",
            together / (count * single),
            "",
            Clock::Virtual,
        )
        .at_most(1.3),
        Metric::new("many.start_all_ms", together / 1000.0, "ms", Clock::Virtual),
        Metric::new("many.start_one_ms", single / 1000.0, "ms", Clock::Virtual),
    ])
}
