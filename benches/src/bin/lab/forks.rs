//! Many guests that go on from one snapshot: how much memory each of them takes that no other one has.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::restore::{self, Source};
use crate::system::stop;

/// A guest that has gone on, said something, and stands still.
struct Fork {
    child: Child,
    /// The process that runs the guest: in a jail a child of the one that was started.
    inside: u32,
}

/// Lets `count` guests go on from the snapshot, each until it has said something. In KiB.
pub fn measure(jail: bool, count: usize) -> Result<Value> {
    restore::request(Source::File)?;
    let before = available_kib()?;
    let mut forks = Vec::with_capacity(count);
    for number in 0..count {
        forks.push(start(jail, number)?);
    }
    let available = available_kib()?;
    let (mut most, mut sum) = (0, 0);
    for fork in &forks {
        let own = own_kib(fork)?;
        most = own.max(most);
        sum += own;
    }
    let guest = forks.first().map(|fork| guest_kib(fork.inside));
    for fork in &mut forks {
        fork.child.kill()?;
        fork.child.wait()?;
    }
    let count = u64::try_from(count)?;
    Ok(json!({
        "count": count,
        "most_kib": most,
        "mean_kib": sum / count,
        // With what the kernel has for it: page tables, KVM's own, pipes, threads' stacks.
        "host_kib": before.saturating_sub(available) / count,
        "guest_kib": guest.transpose()?,
    }))
}

fn start(jail: bool, number: usize) -> Result<Fork> {
    let mut command = Command::new("/bin/daruma-vmm");
    command
        .args(["--id", &format!("fork{number}"), "--no-api", "--load-file"])
        .arg(restore::REQUEST)
        .args(jail.then_some("--jail"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().context("Cannot start the VMM")?;
    let output = child.stdout.as_mut().context("No standard output")?;
    output
        .read_exact(&mut [0])
        .context("The guest says nothing")?;
    let outside = child.id();
    let inside = if jail { child_of(outside)? } else { outside };
    stop(inside)?;
    Ok(Fork { child, inside })
}

/// The process whose parent is `pid`.
fn child_of(pid: u32) -> Result<u32> {
    let parent = format!("PPid:\t{pid}");
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        if status.lines().any(|line| line == parent) {
            return Ok(child);
        }
    }
    bail!("There is no process in the jail")
}

/// What a fork has that no other process has, but those that are a part of it. Its guest's memory is a part of that.
fn own_kib(fork: &Fork) -> Result<u64> {
    let rollup = |pid: u32| -> Result<String> {
        Ok(fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?)
    };
    let private = |text: &str| sum(text, &["Private_Clean:", "Private_Dirty:"]);
    let inside = rollup(fork.inside)?;
    let own = private(&inside);
    if fork.inside == fork.child.id() {
        return Ok(own);
    }
    // What it has in common with the process outside of its jail is nobody else's either.
    let common = sum(&inside, &["Anonymous:"]).saturating_sub(own);
    Ok(own + common + private(&rollup(fork.child.id())?))
}

/// How much of the guest's memory is the process's own.
fn guest_kib(pid: u32) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let name = format!("{}\n", restore::MEMORY);
    let mapping = maps.split_once(&name).map_or("", |(_, rest)| rest);
    let mapping = mapping.split_once("VmFlags").map_or("", |(all, _)| all);
    Ok(sum(mapping, &["Private_Clean:", "Private_Dirty:"]))
}

/// The sum of the fields `names` in `text`.
fn sum(text: &str, names: &[&str]) -> u64 {
    let fields = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        names.contains(&words.next()?).then_some(())?;
        words.next()?.parse::<u64>().ok()
    });
    fields.sum()
}

fn available_kib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    Ok(sum(&text, &["MemAvailable:"]))
}
