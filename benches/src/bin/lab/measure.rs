//! What is measured of a VMM: a start, a guest's work, many guests at once.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::system::monotonic_us;
use crate::vmm::{Counters, Guest, Running, Vmm};

/// Starts `guest` to its init and ends it; times in microseconds since the VMM's process start.
pub fn start(vmm: Vmm, guest: &Guest) -> Result<Value> {
    let mut running = vmm.start(guest, 0)?;
    let (mut running_us, mut boot_timer_us) = (Value::Null, Value::Null);
    let mut ready_us = None;
    if vmm.is_ours() {
        running_us = running.event("running")?["us"].take();
        boot_timer_us = running.event("boot-timer")?["us"].take();
        // By this clock: a guest that is started by the API has its own.
        ready_us = Some(monotonic_us() - running.start);
    }
    let answered_us = running.answered;
    let marker_us = running.wait_for_marker()?;
    let overhead_kib = running.overhead_kib()?;
    running.end()?;
    Ok(json!({
        "marker_us": marker_us,
        "running_us": running_us,
        "boot_timer_us": boot_timer_us,
        "ready_us": ready_us,
        "answered_us": answered_us,
        "overhead_kib": overhead_kib,
    }))
}

/// Runs the phases of `guest`'s work and gives each to `report`.
pub fn work(vmm: Vmm, guest: &Guest, mut report: impl FnMut(Value)) -> Result<()> {
    let mut running = vmm.start(guest, 0)?;
    if vmm.is_ours() {
        running.event("running")?;
        running.event("boot-timer")?;
    }
    let mut before = Counters::new();
    let mut said = Vec::new();
    loop {
        let Some(line) = running.line()? else {
            bail!(
                "The VMM ended in the middle of the work; its guest said:\n{}",
                said.join("\n")
            );
        };
        if line.contains("@end") {
            // Not every machine type of the peer can be switched off by its guest.
            return running.end();
        }
        if line.contains("@ready") {
            before = running.counters()?;
            running.go()?;
        } else if let Some((_, done)) = line.split_once("@done ") {
            let after = running.counters()?;
            let mut sample: Value =
                serde_json::from_str(done).with_context(|| format!("The guest says {done:?}"))?;
            sample["counters"] = json!(difference(&before, &after));
            report(sample);
        } else if let Some((_, error)) = line.split_once("@error ") {
            bail!("The guest's work failed: {error}");
        }
        said.push(line);
    }
}

/// What has been counted between two looks, without what stood still.
fn difference(before: &Counters, after: &Counters) -> Counters {
    after
        .iter()
        .map(|(name, value)| {
            let start = before.get(name).copied().unwrap_or(0);
            (name.clone(), value.saturating_sub(start))
        })
        .filter(|(_, value)| *value > 0)
        .collect()
}

/// Starts `count` guests at once; returns the microseconds until the last of them was ready.
pub fn many(guest: &Guest, count: usize) -> Result<u64> {
    let ours = Vmm::Daruma { pci: false };
    let mut guests = Vec::with_capacity(count);
    for number in 0..count {
        guests.push(ours.start(guest, number)?);
    }
    let first = guests.first().context("No guests were asked for")?.start;
    let mut last = first;
    for running in &mut guests {
        running.event("running")?;
        let us = running.event("boot-timer")?["us"].as_u64();
        last = last.max(running.start + us.context("A boot timer without a time")?);
    }
    guests.into_iter().try_for_each(Running::end)?;
    Ok(last - first)
}
