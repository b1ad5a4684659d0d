//! One run of one target.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::tool;
use crate::ui::{self, Step};

/// One execution that takes longer is a finding: seconds, of which others may have most.
const TIMEOUT: &str = "-timeout=60";
/// More memory than this is one, too: MiB.
const MEMORY: &str = "-rss_limit_mb=1024";
/// Longest input in bytes. What is worth finding is in short ones.
const MAX_LEN: &str = "-max_len=4096";

/// How long a run is.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    Executions(u64),
    Time(Duration),
}

/// Where inputs come from and go to.
pub struct Place {
    /// Grows with what reaches new code.
    corpus: PathBuf,
    /// What a target is started with; made by itself.
    seeds: PathBuf,
    /// What has failed.
    findings: PathBuf,
    log: PathBuf,
}

impl Place {
    /// Goes on where the last run has ended.
    pub fn lasting(folder: &Path, target: &str) -> Result<Self> {
        Self::make(&folder.join(target))
    }

    /// Without anything from the last run but what had failed.
    pub fn fresh(folder: &Path, target: &str) -> Result<Self> {
        let folder = folder.join(target);
        let corpus = folder.join("corpus");
        if corpus.exists() {
            fs::remove_dir_all(&corpus)
                .with_context(|| format!("Could not empty {}", corpus.display()))?;
        }
        Self::make(&folder)
    }

    fn make(folder: &Path) -> Result<Self> {
        let place = Self {
            corpus: folder.join("corpus"),
            seeds: folder.join("seeds"),
            findings: folder.join("findings"),
            log: folder.join("log"),
        };
        for folder in [&place.corpus, &place.seeds, &place.findings] {
            fs::create_dir_all(folder)
                .with_context(|| format!("Could not create {}", folder.display()))?;
        }
        Ok(place)
    }
}

/// What a run has come to.
#[derive(Debug)]
pub struct Outcome {
    pub target: String,
    pub executions: u64,
    /// Edges of the code that were reached.
    coverage: u64,
    pub failure: Option<String>,
}

impl Outcome {
    pub fn summary(&self) -> String {
        format!("{} executions, {} edges", self.executions, self.coverage)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<20} {}", self.target, self.summary())?;
        match &self.failure {
            Some(failure) => write!(f, "\n{failure}"),
            None => Ok(()),
        }
    }
}

/// Runs `target` for `limit`.
pub fn target(
    program: &Path,
    target: &str,
    limit: Limit,
    seed: Option<u32>,
    place: &Place,
    step: &Step,
) -> Result<Outcome> {
    let mut command = Command::new(program);
    command
        .args([TIMEOUT, MEMORY, MAX_LEN, "-print_final_stats=1"])
        .arg(match limit {
            Limit::Executions(count) => format!("-runs={count}"),
            Limit::Time(time) => format!("-max_total_time={}", time.as_secs()),
        })
        .args(seed.map(|seed| format!("-seed={seed}")))
        .arg(format!("-artifact_prefix={}/", place.findings.display()))
        .args([&place.corpus, &place.seeds])
        // The target writes what it wants to begin with there.
        .env("DARUMA_FUZZ_SEEDS", &place.seeds)
        .env("RUST_BACKTRACE", "1");
    let mut progress = Progress::default();
    let result = tool::run(&mut command, &place.log, |line| {
        progress.line(line);
        step.set(progress.text());
    });
    let Progress {
        mut executions,
        coverage,
        finding,
        total,
    } = progress;
    executions = total.unwrap_or(executions);
    let mut failure = result.err().map(|error| {
        let reproduce = finding.map_or_else(String::new, |file| {
            format!(
                "\nThe input is kept; to see it again: cargo xtask fuzz {target} --reproduce {file}"
            )
        });
        format!("{target} fails: {error:#}{reproduce}")
    });
    if let (None, Limit::Executions(wanted)) = (&failure, limit)
        && executions < wanted
    {
        failure = Some(format!(
            "{target} ended after {executions} of {wanted} executions"
        ));
    }
    Ok(Outcome {
        target: target.to_owned(),
        executions,
        coverage,
        failure,
    })
}

/// Runs the target with one input, everything it says on the terminal.
pub fn once(program: &Path, input: &Path) -> Result<ExitCode> {
    let _pause = ui::pause();
    let status = Command::new(program)
        .arg(input)
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("Could not start {}", program.display()))?;
    Ok(if status.success() {
        println!("This input does no harm now");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What libFuzzer says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Progress {
    executions: u64,
    coverage: u64,
    /// Where the input is that has failed.
    finding: Option<String>,
    /// Executions, as it says at the end.
    total: Option<u64>,
}

impl Progress {
    fn line(&mut self, line: &str) {
        let number = |text: &str| text.trim().parse::<u64>().ok();
        if let Some(rest) = line.strip_prefix('#') {
            let (count, rest) = rest.split_once(['\t', ' ', ':']).unwrap_or((rest, ""));
            self.executions = number(count).unwrap_or(self.executions);
            let coverage = rest
                .split_once("cov: ")
                .and_then(|(_, rest)| rest.split(' ').next());
            self.coverage = coverage.and_then(number).unwrap_or(self.coverage);
        } else if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            self.total = number(count);
        } else if let Some((_, file)) = line.split_once("Test unit written to ") {
            self.finding = Some(file.to_owned());
        }
    }

    fn text(&self) -> String {
        format!("{} executions, {} edges", self.executions, self.coverage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_what_libfuzzer_says() {
        let mut progress = Progress::default();
        for line in [
            "INFO: Seed: 1",
            "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 26Mb",
            "#65536\tpulse  cov: 512 ft: 1633 corp: 210/12Kb lim: 411 exec/s: 21845 rss: 45Mb",
            "thread panicked",
            "artifact_prefix='/x/'; Test unit written to /x/crash-1",
            "stat::number_of_executed_units: 70000",
        ] {
            progress.line(line);
        }
        let expected = Progress {
            executions: 65_536,
            coverage: 512,
            finding: Some("/x/crash-1".into()),
            total: Some(70_000),
        };
        assert_eq!(progress, expected);
    }

    /// A stand-in for a target: says what libFuzzer says.
    fn play(script: &str, limit: Limit) -> Outcome {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let place = Place::fresh(folder.path(), "t").unwrap();
        let step = Step::begin("test");
        target(&program, "t", limit, Some(1), &place, &step).unwrap()
    }

    #[test]
    fn a_crash_fails_and_says_how_to_see_it_again() {
        let script = "echo 'x; Test unit written to /x/crash-1'; exit 77";
        let failure = play(script, Limit::Executions(1)).failure.unwrap();
        assert!(
            failure.ends_with("cargo xtask fuzz t --reproduce /x/crash-1"),
            "{failure}"
        );
    }

    #[test]
    fn too_few_executions_fail() {
        let script = "echo 'stat::number_of_executed_units: 99'";
        assert!(play(script, Limit::Executions(100)).failure.is_some());
        let outcome = play(script, Limit::Executions(99));
        assert!(outcome.failure.is_none(), "{outcome}");
        assert_eq!(outcome.executions, 99);
        assert!(
            play(script, Limit::Time(Duration::from_secs(1)))
                .failure
                .is_none()
        );
    }
}
