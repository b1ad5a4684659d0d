//! Snapshots of guests that go on, by the whole host: how long a guest stands still, and what a further snapshot costs.

use anyhow::{Context, Result, bail};
use tests::{Console, Image};

use crate::metric::{Clock, Metric, median};
use crate::whole::{Guests, Whole};

/// Memory of the guests in MiB, each with the end of its metric's name; the first is what is promised.
const SIZES: [(u32, &str); 3] = [(1024, ""), (256, ".256m"), (4096, ".4g")];
/// Snapshots of each guest; the first has all its memory and is not counted.
const SNAPSHOTS: usize = 6;
/// Memory of the guest that does nothing, in MiB.
const IDLE_MIB: u32 = 512;

/// Measures `snap.pause_ms*`: the median of the snapshots of a guest with two vCPUs, a disk and a card that writes to
/// its memory and its disk all the time.
pub fn measure(image: &Image, lab: &[u8]) -> Result<Vec<Metric>> {
    let mut metrics = Vec::new();
    for (mib, suffix) in SIZES {
        let told = snapshots(image, lab, mib, "dirty")?;
        let pauses = told.iter().skip(1).map(|told| told.pause_ms).collect();
        let pause = median(pauses).context("There are no snapshots")?;
        let metric = Metric::new(
            format!("snap.pause_ms{suffix}"),
            pause,
            "ms",
            Clock::Virtual,
        );
        metrics.push(metric.at_most(5.0));
    }
    Ok(metrics)
}

/// Measures `snap.idle_delta_kib`: the pages of memory that are in a further snapshot of a guest that does nothing,
/// before the store packs them.
pub fn idle(image: &Image, lab: &[u8]) -> Result<Vec<Metric>> {
    let told = snapshots(image, lab, IDLE_MIB, "stay")?;
    let kib = told.iter().skip(1).map(|told| told.memory_kib).collect();
    let kib = median(kib).context("There are no snapshots")?;
    let metric = Metric::new("snap.idle_delta_kib", kib, "KiB", Clock::None);
    Ok(vec![metric.at_most(4.0 * 1024.0)])
}

/// What the console says of a snapshot.
struct Told {
    memory_kib: f64,
    pause_ms: f64,
}

fn snapshots(image: &Image, lab: &[u8], mib: u32, work: &str) -> Result<Vec<Told>> {
    let folder = tempfile::tempdir()?;
    let guests = Guests {
        count: 1,
        mib,
        work,
        rules: "",
    };
    let mut machine = Whole::new(image, lab, folder.path(), &guests)?.boot(image)?;
    let console = &mut machine.console;
    console.expect("daruma: g1: ready: ")?;
    let told = (0..SNAPSHOTS).map(|_| snapshot(console)).collect();
    console.send("kill g1\r")?;
    console.expect("daruma: g1: stopped")?;
    console.send("poweroff\r")?;
    machine.wait_off()?;
    told
}

fn snapshot(console: &mut Console) -> Result<Told> {
    console.send("snapshot g1\r")?;
    console.expect("snapshot g1\r\n")?;
    let before = console.expect(" of memory, paused for ")?;
    let pause = console.expect(" ms")?;
    let mut words = before
        .trim_end_matches(" of memory, paused for ")
        .rsplit(' ');
    let (unit, amount) = (words.next(), words.next());
    let number = |text: &str| -> Result<f64> {
        text.trim()
            .parse()
            .with_context(|| format!("The console said {text:?} of a snapshot"))
    };
    let factor = match unit {
        Some("bytes") => 1.0 / 1024.0,
        Some("KiB") => 1.0,
        Some("MiB") => 1024.0,
        Some("GiB") => 1024.0 * 1024.0,
        _ => bail!("No size in {before:?}"),
    };
    let amount = amount.context("A unit without a number")?;
    Ok(Told {
        memory_kib: number(amount)? * factor,
        pause_ms: number(pause.trim_end_matches(" ms"))?,
    })
}
