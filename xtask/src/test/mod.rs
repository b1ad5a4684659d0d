//! `cargo xtask test`: everything that is checked, in the order of what fails soonest.

mod libtest;
mod nested;

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Instant;

use ::tests::emulation;
use anyhow::{Context, Result, anyhow};
use clap::Args;

use self::libtest::Tally;
use self::nested::Boots;
use crate::cargo::{self, cargo};
use crate::emulator::Emulator;
use crate::image;
use crate::paths::Paths;
use crate::{background, fuzz, setup, ui};

#[derive(Args)]
pub struct Options {
    /// Only format, lints and the tests that need no machine
    #[arg(long, conflicts_with = "nested_only")]
    unit_only: bool,
    /// Only the tests that boot the ROM with real guests
    #[arg(long)]
    nested_only: bool,
    /// Only tests with this text in their names
    filter: Option<String>,
}

/// Tests that may fail in an emulated machine in one run, each of which is run once more. More are a fault of ours.
///
/// One boot in some forty is lost to QEMU 7.2: its `VMRUN` changes the pending interrupts without a lock, so that one of the
/// host's may be gone for good, and now and then the host's kernel takes an interrupt right behind `VMRUN`, where the
/// processor must not deliver any: it has the guest's GS there, and falls. Which of the two it was is printed. What it does
/// to a guest, nobody sees but the guest, which falls or is late.
const MAX_DOUBTFUL: usize = 4;
/// Times that those are run again which fail again.
const MAX_ROUNDS: usize = 2;

/// One line of the summary.
struct Part {
    name: &'static str,
    tally: Tally,
    note: String,
    took: std::time::Duration,
}

pub fn run(paths: &Paths, options: &Options) -> Result<ExitCode> {
    setup::run(paths)?;
    let emulator = Emulator::for_tests(paths)?;
    let parts = thread::scope(|scope| {
        let behind = scope.spawn(|| behind(paths, options));
        let mut parts = in_front(paths, &emulator, options)?;
        let behind = behind
            .join()
            .map_err(|_| anyhow!("What is done beside the tests has panicked"))?;
        parts.extend(behind?);
        anyhow::Ok(parts)
    })?;
    let (passed, failed) = summarize(&parts);
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What takes whatever processor time the tests leave: compiling kernels, which only the nested tests need, then fuzzing.
fn behind(paths: &Paths, options: &Options) -> Result<Option<Part>> {
    if options.filter.is_some() {
        return Ok(None);
    }
    background::stand_back()?;
    if !options.unit_only {
        image::kernels(paths)?;
    }
    if options.nested_only {
        return Ok(None);
    }
    fuzz_targets(paths).map(Some)
}

/// One part after the other, in the order of what fails soonest.
fn in_front(paths: &Paths, emulator: &Emulator, options: &Options) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let programs = &emulator.search_path();
    if !options.nested_only {
        if options.filter.is_none() {
            parts.push(check("format", paths, &["fmt", "--all", "--check"])?);
            let fuzz = ["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"];
            parts.push(check("format, fuzz", paths, &fuzz)?);
            let workspace: &[&str] = &["--workspace", "--all-targets"];
            // The ROM stage itself is left out there: it is built without the standard library.
            let alone = ["--profile", "dev-abort", "--package"];
            let stage: &[&str] = &[&alone[..], &["bootblock", "--features", "stage"]].concat();
            // The same holds for the hostile guest.
            let guest: &[&str] = &[&alone[..], &["hostile", "--features", "program"]].concat();
            // A workspace of its own, which shares what is checked already.
            let target = paths.target.to_string_lossy();
            let fuzz: &[&str] = &[
                "--manifest-path",
                "fuzz/Cargo.toml",
                "--target-dir",
                &target,
            ];
            for (name, what) in [
                ("lints", workspace),
                ("lints, stage", stage),
                ("lints, guest", guest),
                ("lints, fuzz", fuzz),
            ] {
                let arguments = [&["clippy"], what, &["--", "-D", "warnings"]].concat();
                parts.push(check(name, paths, &arguments)?);
            }
        }
        let workspace = [
            "test",
            "--no-fail-fast",
            "--workspace",
            "--exclude",
            "tests",
        ];
        // The VMMs that these start are traced, for the part after.
        let traces = paths.traces();
        if traces.exists() {
            fs::remove_dir_all(&traces)
                .with_context(|| format!("Could not empty {}", traces.display()))?;
        }
        fs::create_dir_all(&traces)
            .with_context(|| format!("Could not create {}", traces.display()))?;
        parts.push(tests("unit tests", paths, programs, &workspace, options)?);
        if options.filter.is_none() {
            // Of the same packages: others would have their dependencies built anew, with other features.
            let rules = ["--test", "system_calls", "--", "--ignored", "--nocapture"];
            let rules = [&workspace[..], &rules].concat();
            parts.push(tests("system calls", paths, programs, &rules, options)?);
        }
        let rules = [
            "test",
            "--no-fail-fast",
            "--package",
            "tests",
            "--lib",
            "--test",
            "workspace",
        ];
        parts.push(tests("workspace", paths, programs, &rules, options)?);
    }
    if !options.unit_only {
        parts.push(nested_tests(paths, emulator, options)?);
    }
    Ok(parts)
}

/// A check that is no test run: counts as one failure if it fails, and not at all otherwise.
fn check(name: &'static str, paths: &Paths, arguments: &[&str]) -> Result<Part> {
    let start = Instant::now();
    say(name);
    let status = cargo::on_terminal(&mut cargo(arguments), paths)?;
    let mut tally = Tally::default();
    let mut note = "clean".to_owned();
    if !status.success() {
        tally.failed = 1;
        tally.failures.push(name.to_owned());
        note = format!("cargo {} fails", arguments.join(" "));
    }
    Ok(Part {
        name,
        tally,
        note,
        took: start.elapsed(),
    })
}

/// Runs tests that find other programs by the search path `programs`.
fn tests(
    name: &'static str,
    paths: &Paths,
    programs: &str,
    arguments: &[&str],
    options: &Options,
) -> Result<Part> {
    let start = Instant::now();
    say(name);
    let mut command = cargo(arguments);
    command
        .env("PATH", programs)
        .env("DARUMA_TRACES", paths.traces());
    command.args(&options.filter);
    let tally = cargo_test(&mut command, paths)?;
    Ok(Part {
        name,
        tally,
        note: String::new(),
        took: start.elapsed(),
    })
}

/// Every fuzz target, for as many executions as each time.
fn fuzz_targets(paths: &Paths) -> Result<Part> {
    let outcomes = fuzz::short(paths)?;
    let took = outcomes.took;
    let mut tally = Tally::default();
    for outcome in outcomes.list {
        tally.counted.push(format!(
            "{} executions of fuzz target {}",
            outcome.executions, outcome.target
        ));
        match &outcome.failure {
            None => tally.passed += 1,
            Some(failure) => {
                tally.failed += 1;
                tally.failures.push(format!("fuzz target {failure}"));
            }
        }
    }
    Ok(Part {
        name: "fuzz targets",
        tally,
        note: "beside the other tests; build time apart".to_owned(),
        took,
    })
}

/// Real guests in a nested machine, one test after the other: each has the whole computer.
fn nested_tests(paths: &Paths, emulator: &Emulator, options: &Options) -> Result<Part> {
    let image = image::build(paths, &image::Options::for_tests())?;
    let start = Instant::now();
    let version = emulation::version(&emulator.program())?;
    say(&format!("nested tests ({version})"));
    let records = paths.nested();
    if records.exists() {
        fs::remove_dir_all(&records)
            .with_context(|| format!("Could not empty {}", records.display()))?;
    }
    let nested = |arguments: &[&str], records: &Path| {
        let program = ["test", "--package", "tests", "--test", "nested"];
        let mut command = cargo(&program);
        command
            .args(arguments)
            .env("PATH", emulator.search_path())
            .env("DARUMA_IMAGE", &image)
            .env("DARUMA_NESTED_RECORDS", records);
        cargo_test(&mut command, paths)
    };
    let filter = options.filter.as_deref();
    let once = ["--", "--test-threads=1"];
    let mut tally = nested(&[filter.as_slice(), &once].concat(), &records)?;

    let mut boots = Boots::read(&records)?;
    let mut doubtful = boots.doubtful(&tally.failures);
    let mut repeated = 0;
    for round in 1..=MAX_ROUNDS {
        if doubtful.is_empty() || repeated + doubtful.len() > MAX_DOUBTFUL {
            break;
        }
        repeated += doubtful.len();
        for (test, how) in &doubtful {
            println!("{test} failed in an emulated machine ({how}): it is run once more");
        }
        let exact: Vec<_> = doubtful.iter().map(|(test, _)| test.as_str()).collect();
        let records = records.join(format!("again-{round}"));
        let again = nested(&[&once[..], &["--exact"], &exact].concat(), &records)?;
        let theirs = Boots::read(&records)?;
        doubtful = theirs.doubtful(&again.failures);
        boots.add(theirs);
        tally.again(again);
    }
    if repeated > 0 {
        tally.counted.push(format!(
            "{repeated} times a test that failed in an emulated machine was run once more"
        ));
    }
    let unproved: Vec<String> = boots
        .unproved(&tally.names)
        .into_iter()
        .map(str::to_owned)
        .collect();
    for test in unproved {
        println!(
            "Test {test} passed, but left no record of a nested boot in {}",
            records.display()
        );
        tally.passed -= 1;
        tally.failed += 1;
        tally.failures.push(test);
    }
    if boots.total() == 0 && options.filter.is_none() {
        println!("Not a single nested boot ran: this run proves nothing about guests");
        tally.failed += 1;
        tally.failures.push("nested boots".to_owned());
    }
    let note = format!(
        "{} nested boots really ran; consoles in {}",
        boots.total(),
        records.display()
    );
    Ok(Part {
        name: "nested tests",
        tally,
        note,
        took: start.elapsed(),
    })
}

/// Runs `cargo test`, shows its output as it comes, and counts.
fn cargo_test(command: &mut Command, paths: &Paths) -> Result<Tally> {
    let _pause = ui::pause();
    let (reader, writer) = io::pipe().context("Could not make a pipe")?;
    command
        .current_dir(&paths.root)
        .stdin(Stdio::null())
        .stdout(writer);
    let mut child = command.spawn().context("Could not start cargo")?;
    // The command holds the pipe's writing end too: the reader would never see the end.
    command.stdout(Stdio::null());
    let mut tally = Tally::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.context("Could not read from cargo")?;
        let line = String::from_utf8_lossy(&line);
        tally.line(&line);
        println!("{line}");
    }
    let status = child.wait().context("Could not wait for cargo")?;
    if !status.success() && tally.failed == 0 {
        // It did not compile, or a test program died without a result.
        tally.failed = 1;
        tally.failures.push("cargo test".to_owned());
    }
    Ok(tally)
}

fn say(name: &str) {
    ui::say(&format!("\n=== {name}"));
}

fn summarize(parts: &[Part]) -> (usize, usize) {
    println!(
        "\n{:<14} {:>7} {:>7} {:>8} {:>8}",
        "", "passed", "failed", "ignored", "time"
    );
    for Part {
        name,
        tally,
        note,
        took,
    } in parts
    {
        let time = ui::clock(*took);
        println!(
            "{name:<14} {:>7} {:>7} {:>8} {time:>8}  {note}",
            tally.passed, tally.failed, tally.ignored
        );
    }
    for count in parts.iter().flat_map(|part| &part.tally.counted) {
        println!("counted: {count}");
    }
    for failure in parts.iter().flat_map(|part| &part.tally.failures) {
        println!("failed: {failure}");
    }
    let sum = |count: fn(&Tally) -> usize| parts.iter().map(|part| count(&part.tally)).sum();
    (sum(|tally| tally.passed), sum(|tally| tally.failed))
}
