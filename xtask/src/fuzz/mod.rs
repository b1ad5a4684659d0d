//! `cargo xtask fuzz`: builds the targets in `fuzz/` and runs them under libFuzzer.
//!
//! Stable Rust has all it takes: the compiler's coverage instrumentation, and libFuzzer's source in a crate. Plain
//! `cargo fuzz` runs the same targets.

mod build;
mod run;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::run::{Limit, Outcome, Place};
use crate::paths::Paths;
use crate::setup;
use crate::ui::{self, Step};

/// Executions of each target in `cargo xtask test`.
const SHORT_RUNS: u64 = 100_000;
/// Targets that take far longer than others for as many executions: they start first, so that nothing waits for one at the
/// end.
const SLOW: [&str; 3] = ["fs", "block_qcow2", "store_import"];
/// What the mutations there begin with: the same ones each time.
const SHORT_SEED: u32 = 1;

/// What all targets have come to.
pub struct Outcomes {
    pub list: Vec<Outcome>,
    /// Without the build.
    pub took: Duration,
}

#[derive(Args)]
pub struct Options {
    /// Only this target (a file's name in fuzz/fuzz_targets)
    target: Option<String>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 60, conflicts_with = "runs")]
    seconds: u64,
    /// How many executions of each target, instead of a time
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// Runs the target once, with the input in this file
    #[arg(long, value_name = "FILE", requires = "target")]
    reproduce: Option<PathBuf>,
}

/// The targets, by name.
fn targets(paths: &Paths) -> Result<Vec<String>> {
    let folder = paths.root.join("fuzz/fuzz_targets");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("Could not read {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    let slow = |name: &str| SLOW.contains(&name);
    names.sort_by_key(|name| (!slow(name), name.clone()));
    Ok(names)
}

pub fn run(paths: &Paths, options: &Options) -> Result<ExitCode> {
    setup::run(paths)?;
    let all = targets(paths)?;
    let chosen = match &options.target {
        Some(target) if all.contains(target) => vec![target.clone()],
        Some(target) => bail!(
            "There is no fuzz target {target}; there are {}",
            all.join(", ")
        ),
        None => all,
    };
    let programs = build::build(paths)?;
    if let (Some(file), [target]) = (&options.reproduce, &chosen[..]) {
        return run::once(&programs.join(target), file);
    }
    let limit = options.runs.map_or_else(
        || Limit::Time(Duration::from_secs(options.seconds)),
        Limit::Executions,
    );
    let corpora = paths.cache.join("fuzz");
    let place = |target: &str| Place::lasting(&corpora, target);
    let outcomes = run_all(&programs, &chosen, limit, None, &place)?;
    for outcome in &outcomes {
        println!("{outcome}");
    }
    println!("Corpora are in {}", corpora.display());
    let failed = outcomes.iter().any(|outcome| outcome.failure.is_some());
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The short run of every target: always the same mutations, from what the targets themselves say is worth a look.
pub fn short(paths: &Paths) -> Result<Outcomes> {
    let programs = build::build(paths)?;
    let start = Instant::now();
    let folder = paths.target.join("fuzz-run");
    let place = |target: &str| Place::fresh(&folder, target);
    let targets = targets(paths)?;
    let limit = Limit::Executions(SHORT_RUNS);
    let list = run_all(&programs, &targets, limit, Some(SHORT_SEED), &place)?;
    Ok(Outcomes {
        list,
        took: start.elapsed(),
    })
}

/// Runs `targets`, as many at a time as there are processors.
fn run_all(
    programs: &Path,
    targets: &[String],
    limit: Limit,
    seed: Option<u32>,
    place: &(dyn Fn(&str) -> Result<Place> + Sync),
) -> Result<Vec<Outcome>> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
            let step = Step::begin(target);
            let outcome = run::target(
                &programs.join(target),
                target,
                limit,
                seed,
                &place(target)?,
                &step,
            )?;
            match &outcome.failure {
                None => step.done(&outcome.summary()),
                Some(failure) => {
                    drop(step);
                    ui::say(failure);
                }
            }
            let mut outcomes = outcomes
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            outcomes.push(outcome);
        }
        Ok(())
    };
    // Some targets wait for threads of their own most of the time.
    let threads = 1 + thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut results = running.into_iter().map(|thread| {
            let panicked = |_| anyhow::anyhow!("A thread that runs fuzz targets has panicked");
            thread.join().map_err(panicked).and_then(|result| result)
        });
        results.try_for_each(|result| result)
    })?;
    let mut outcomes = outcomes
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    outcomes.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(outcomes)
}
