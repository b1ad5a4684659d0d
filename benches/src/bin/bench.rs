//! `cargo xtask bench`: measures everything and writes the table.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool"
)]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use ::tests::Image;
use anyhow::{Context, Error, Result, bail};
use benches::laboratory::Laboratory;
use benches::{Metric, blk, chain, heal, many, metric, net, pause, resume, start, store};
use clap::Parser;

/// Measures the whole chain in virtual time.
#[derive(Parser)]
struct Arguments {
    /// Also writes the numbers as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The `lab` executable, static.
    #[arg(long, value_name = "FILE")]
    lab: PathBuf,
    /// Only what has this text in its name: `boot`, `vmm`, `blk.exits_per_request_qd32`.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// Machines of the benchmarks that run at the same time. Virtual time does not mind, and each has one busy thread.
const AT_ONCE: usize = 2;

/// Something that is measured in one go.
struct Part {
    /// How the names of its metrics begin.
    names: &'static [&'static str],
    /// What is said when it starts.
    what: &'static str,
    measure: fn(&Benches) -> Result<Vec<Metric>>,
}

/// What parts are measured with.
struct Benches {
    image: Image,
    laboratory: Laboratory,
    /// The `lab` executable.
    lab: Vec<u8>,
}

const PARTS: [Part; 14] = [
    Part {
        names: &["size"],
        what: "what lies in flash",
        measure: |benches| chain::sizes(&benches.image),
    },
    Part {
        names: &["boot", "host"],
        what: "the chain from reset to three guests",
        measure: |benches| chain::boot(&benches.image),
    },
    Part {
        names: &["blk"],
        what: "block I/O, by daruma-vmm and by QEMU",
        measure: |benches| blk::measure(&benches.laboratory),
    },
    Part {
        names: &["net"],
        what: "TCP over a tap, by daruma-vmm and by QEMU",
        measure: |benches| net::measure(&benches.laboratory),
    },
    Part {
        names: &["vmm.start_", "vmm.jail_ms", "vmm.overhead_kib.bare"],
        what: "starts of one guest, by daruma-vmm and by QEMU's microvm",
        measure: |benches| start::measure(&benches.laboratory),
    },
    Part {
        names: &["snap.restore_"],
        what: "a guest that goes on from its snapshot",
        measure: |benches| start::restore(&benches.laboratory),
    },
    Part {
        names: &["snap.pause_ms"],
        what: "snapshots of guests that write all the time",
        measure: |benches| pause::measure(&benches.image, &benches.lab),
    },
    Part {
        names: &["snap.idle_"],
        what: "snapshots of a guest that does nothing",
        measure: |benches| pause::idle(&benches.image, &benches.lab),
    },
    Part {
        names: &["heal.detect_to_ready_ms"],
        what: "a guest that falls and stands up again",
        measure: |benches| heal::measure(&benches.image, &benches.lab),
    },
    Part {
        names: &["heal.resume"],
        what: "a machine that is switched on again with its guests",
        measure: |benches| resume::measure(&benches.image, &benches.lab),
    },
    Part {
        names: &["snap.fork_"],
        what: "a hundred guests that go on from one snapshot",
        measure: |benches| start::forks(&benches.laboratory),
    },
    Part {
        names: &["vmm.overhead_kib"],
        what: "memory of a VMM with devices",
        measure: |benches| start::overhead(&benches.laboratory),
    },
    Part {
        names: &["many"],
        what: "many guests at once",
        measure: |benches| many::measure(&benches.laboratory),
    },
    Part {
        names: &["store", "snap.chain1000_"],
        what: "pages into the store and out of it, verified",
        measure: |_| store::measure(),
    },
];

impl Part {
    /// Whether something of it can have `text` in its name.
    fn wanted(&self, text: &str) -> bool {
        let matches = |name: &&str| name.contains(text) || text.starts_with(*name);
        self.names.iter().any(matches)
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let image = Image::built()?;
    let benches = Benches {
        laboratory: Laboratory::new(&image, &arguments.lab)?,
        lab: fs::read(&arguments.lab)
            .with_context(|| format!("Cannot read {}", arguments.lab.display()))?,
        image,
    };
    let text = arguments.only.as_deref().unwrap_or_default();
    let wanted: Vec<&Part> = PARTS.iter().filter(|part| part.wanted(text)).collect();
    if wanted.is_empty() {
        bail!("Nothing that is measured has \"{text}\" in its name");
    }
    let (mut metrics, failures) = measure(&benches, &wanted);
    metrics.retain(|metric| metric.name.contains(text));
    print!("{}", metric::table(&metrics));
    if let Some(file) = &arguments.json {
        fs::write(file, serde_json::to_string_pretty(&metrics)? + "\n")
            .with_context(|| format!("Cannot write {}", file.display()))?;
        println!("Written to {}", file.display());
    }
    for (what, error) in &failures {
        eprintln!("Not measured: {what}: {error:#}");
    }
    if !failures.is_empty() {
        bail!("{} of {} parts failed", failures.len(), wanted.len());
    }
    Ok(())
}

/// Why a part has no numbers.
type Failure = (&'static str, Error);

/// Measures all of `parts`, a few at a time; the results are in the order of the parts. One that fails keeps no other
/// from being told.
fn measure(benches: &Benches, parts: &[&Part]) -> (Vec<Metric>, Vec<Failure>) {
    let next = AtomicUsize::new(0);
    let results: Vec<OnceLock<Result<Vec<Metric>>>> =
        parts.iter().map(|_| OnceLock::new()).collect();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((part, result)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    parts.get(index).zip(results.get(index))
                } {
                    eprintln!("bench: {}", part.what);
                    // Each index is taken once.
                    let _ = result.set((part.measure)(benches));
                }
            });
        }
    });
    let (mut metrics, mut failures) = (Vec::new(), Vec::new());
    for (part, result) in parts.iter().zip(results) {
        match result.into_inner().context("Nobody measured it").flatten() {
            Ok(measured) => metrics.extend(measured),
            Err(error) => failures.push((part.what, error)),
        }
    }
    (metrics, failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts_of(text: &str) -> Vec<&'static str> {
        let wanted = PARTS.iter().filter(|part| part.wanted(text));
        wanted.map(|part| part.names[0]).collect()
    }

    #[test]
    fn a_name_or_part_of_one_chooses_what_is_measured() {
        assert_eq!(parts_of("").len(), PARTS.len());
        assert_eq!(parts_of("blk.exits_per_request_qd32"), ["blk"]);
        assert_eq!(parts_of("vmm"), ["vmm.start_", "vmm.overhead_kib"]);
        assert_eq!(parts_of("host.memory_kib"), ["boot"]);
        assert!(parts_of("nonsense").is_empty());
    }
}
