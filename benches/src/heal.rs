//! A guest that falls and stands up again, by the whole host.

use anyhow::{Context, Result};
use tests::Image;

use crate::metric::{Clock, Metric, median};
use crate::whole::{Guests, Whole};

/// Memory of the guest in MiB.
const MIB: u32 = 512;
/// Falls: the ladder has a rung for each of them.
const FALLS: usize = 5;

/// Measures `heal.detect_to_ready_ms`: from the moment at which the host knows that the guest's kernel has panicked until the
/// guest goes on from a good snapshot.
pub fn measure(image: &Image, lab: &[u8]) -> Result<Vec<Metric>> {
    let folder = tempfile::tempdir()?;
    let rules = format!(
        "[guest.checkpoints]\nevery = 2\n[guest.health]\ngood-after = 3\nrestores = {FALLS}\n"
    );
    let guests = Guests {
        count: 1,
        mib: MIB,
        work: "fall",
        rules: &rules,
    };
    let mut machine = Whole::new(image, lab, folder.path(), &guests)?.boot(image)?;
    let console = &mut machine.console;
    let mut took = Vec::new();
    for _ in 0..FALLS {
        console.expect("host: g1: fell (its kernel has panicked), stands ")?;
        let text = console.expect(" ms later on snapshot ")?;
        let ms = text.trim_end_matches(" ms later on snapshot ").parse();
        took.push(ms.with_context(|| format!("The console said {text:?}"))?);
    }
    console.send("kill g1\r")?;
    console.send("poweroff\r")?;
    machine.wait_off()?;
    let took = median(took).context("It never stood")?;
    let metric = Metric::new("heal.detect_to_ready_ms", took, "ms", Clock::Virtual);
    Ok(vec![metric.at_most(1000.0)])
}
