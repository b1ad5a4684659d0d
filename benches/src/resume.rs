//! A machine that is switched on again, whose guests go on from where they were suspended.

use anyhow::{Context, Result};
use tests::Image;

use crate::metric::{Clock, Metric};
use crate::whole::{Guests, Whole};

/// Memory of each guest in MiB.
const MIB: u32 = 512;
/// Guests that are compared with one.
const SEVERAL: u32 = 4;
const RULES: &str = "[guest.checkpoints]\nevery = 10\n";

/// Measures `heal.resume_ms`, from the host's first step until a guest that was suspended is ready, and `heal.resume4_ratio`: how
/// much longer that takes until the last of four is.
pub fn measure(image: &Image, lab: &[u8]) -> Result<Vec<Metric>> {
    let one = resumed(image, lab, 1)?;
    let last = resumed(image, lab, SEVERAL)?;
    let ratio = Metric::new("heal.resume4_ratio", last / one, "", Clock::Virtual);
    Ok(vec![
        Metric::new("heal.resume_ms", one, "ms", Clock::Virtual),
        ratio.at_most(1.5),
    ])
}

/// Milliseconds until the last of so many is ready again.
fn resumed(image: &Image, lab: &[u8], count: u32) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let guests = Guests {
        count,
        mib: MIB,
        work: "stay",
        rules: RULES,
    };
    let whole = Whole::new(image, lab, folder.path(), &guests)?;
    let mut machine = whole.boot(image)?;
    let lines = |what: &str| -> Vec<_> {
        (1..=count)
            .map(|number| format!("daruma: g{number}: {what}"))
            .collect()
    };
    let expected = lines("ready: ");
    let expected: Vec<_> = expected.iter().map(String::as_str).collect();
    machine.console.expect_all(&expected)?;
    machine.console.send("poweroff\r")?;
    let suspended = lines("stopped: suspended as snapshot ");
    let suspended: Vec<_> = suspended.iter().map(String::as_str).collect();
    machine.console.expect_all(&suspended)?;
    machine.wait_off()?;

    let mut machine = whole.boot(image)?;
    machine.console.expect_all(&expected)?;
    machine.console.send("poweroff\r")?;
    let (_, said) = machine.wait_off()?;
    let mut last: f64 = 0.0;
    for line in &expected {
        let (_, rest) = said.split_once(line).context("It was ready before")?;
        let ms = rest.split_once(" ms, from snapshot ");
        let ms = ms
            .with_context(|| format!("{line} did not go on from a snapshot"))?
            .0;
        last = last.max(ms.parse().with_context(|| format!("{line}{ms}"))?);
    }
    Ok(last)
}
