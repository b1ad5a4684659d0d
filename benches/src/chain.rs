//! The whole chain in one boot: reset → kernel entry → host init → every guest ready.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::Image;
use tests::qemu::{Builder as Machine, Clock as MachineClock};

use crate::metric::{Clock, Metric};

/// What the ROM stage says last: the time-stamp counter, which starts at reset.
const KERNEL_ENTRY: &str = "bootblock: kernel entry, tsc=";

/// What the host says of each event under `daruma.timing`: `daruma-timing: <event> tsc=<counter>`.
const TIMING: &str = "daruma-timing: ";

/// Largest payload (kernel + host + VMM as they lie in flash) that the project allows itself.
const PAYLOAD_GOAL: f64 = 5.0 * 1024.0 * 1024.0;

/// `size.*`: what lies in flash.
pub fn sizes(image: &Image) -> Result<Vec<Metric>> {
    let manifest: Value = serde_json::from_slice(&image.read("manifest.json")?)?;
    let bytes = |value: &Value, name: &str| {
        value
            .as_f64()
            .with_context(|| format!("manifest.json does not tell the size of {name}"))
    };
    let size = |name: &str, value: f64| Metric::new(name, value, "B", Clock::None);
    let artefact = |name: &str| bytes(&manifest["artefacts"][name]["size"], name);
    let payload = bytes(&manifest["payload_bytes"], "the payload")?;
    let kernel_xz = bytes(&manifest["kernel_xz_bytes"], "the kernel by xz")?;
    Ok(vec![
        size("size.payload_bytes", payload).at_most(PAYLOAD_GOAL),
        size("size.kernel_bytes", artefact("bzImage")?),
        size("size.kernel_xz_bytes", kernel_xz).at_most(3.2e6),
        size("size.initramfs_bytes", artefact("initramfs")?),
        size("size.rom_bytes", artefact("daruma.rom")?),
    ])
}

/// `boot.*` and `host.*`: one boot of the default machine until every guest is ready.
pub fn boot(image: &Image) -> Result<Vec<Metric>> {
    let folder = tempfile::tempdir()?;
    let rom = folder.path().join("bench.rom");
    let parts = image
        .parts()?
        .cmdline(" daruma.onready=poweroff daruma.timing");
    fs::write(&rom, parts.rom()?)?;
    let machine = Machine::rom(&rom)
        .clock(MachineClock::Virtual)
        .disk(&image.path("disk.img"), false)
        .boot()?;
    let (_, console) = machine.wait_off()?;
    let after = |text: &str, words: &str| -> Option<f64> {
        let rest = text.split_once(words)?.1;
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    let ms = |counter: f64| counter / 1e6;
    let point = |name: &str, counter: f64| Metric::new(name, ms(counter), "ms", Clock::Virtual);
    let find = |words: &str| {
        after(&console, words)
            .with_context(|| format!("No `{words}…` on the console, which said:\n{console}"))
    };
    let entry = find(KERNEL_ENTRY)?;
    let host = find(&format!("{TIMING}host tsc="))?;
    let mut metrics = vec![
        point("boot.reset_to_kernel_ms", entry).at_most(60.0),
        point("boot.reset_to_host_ms", host),
    ];
    for guest in ["pocket", "web", "debian"] {
        let ready = find(&format!("{TIMING}{guest} ready tsc="))?;
        let metric = point(&format!("boot.reset_to_ready_ms.{guest}"), ready);
        metrics.push(if guest == "pocket" {
            metric.at_most(1500.0)
        } else {
            metric
        });
    }
    let kib = find(&format!("{TIMING}host memory_kib="))?;
    metrics.push(Metric::new("host.memory_kib", kib, "KiB", Clock::None));
    Ok(metrics)
}
