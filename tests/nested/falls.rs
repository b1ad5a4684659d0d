//! A campaign: guests are knocked over in every way that we know, several at once and again and again, and each has to stand
//! again by itself every time, with what only its memory had.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::qemu::Builder;
use tests::{Console, Image, image};

use crate::shell::{ask, ask_line, daruma, host_from_now_on, host_shell, log_in, view};

/// Falls at least; `DARUMA_FALLS` says otherwise.
const FALLS: usize = 200;
/// Times that each guest is knocked over in one machine: what is emulated does not live for ever.
const ROUNDS: usize = 3;
/// Machines that may be lost to their emulator.
const MAX_LOST: usize = 8;
/// How often the host is asked, about once a second, before a guest counts as not having stood up.
const POLLS: u32 = 600;
/// Looks at a guest that stands, about a second apart, before it is knocked over again: more than `good-after`.
const HEALTHY: u32 = 4;
/// MiB of each guest's root.
const ROOT_MIB: u64 = 12;

/// Where a guest is knocked over.
enum Place {
    /// In the shell that is open in the guest.
    Inside(&'static str),
    /// By a signal to its VMM, in the host's shell.
    Vmm(&'static str),
    /// By one to the process outside of the jail that waits for the VMM.
    Keeper(&'static str),
}
use Place::{Inside, Keeper, Vmm};

/// What knocks a guest over. Each goes through all ways.
const WAYS: [(&str, Place); 12] = [
    (
        "panic",
        Inside(
            "echo 2 > /proc/sys/vm/panic_on_oom; mkdir -p /mnt; mount -t tmpfs -o size=1g none /mnt; dd if=/dev/zero of=/mnt/full bs=64k",
        ),
    ),
    (
        "process 1 overwritten",
        Inside(
            "at=$(sed -n '/r-xp/{s/-.*//p;q}' /proc/1/maps); dd if=/dev/zero of=/proc/1/mem bs=4096 \
             seek=$((0x$at / 4096)) count=32 conv=notrunc 2>/dev/null; kill -HUP 1",
        ),
    ),
    ("rm -rf", Inside("rm -rf /bin /sbin /usr /etc /lib /root")),
    (
        "root overwritten with noise",
        Inside(
            "dd if=/dev/urandom of=/dev/vda bs=64k count=190 2>/dev/null; sync; echo 3 > /proc/sys/vm/drop_caches",
        ),
    ),
    ("fork bomb", Inside("bomb() { bomb | bomb & }; bomb")),
    (
        "memory exhausted",
        Inside(
            "mkdir -p /mnt; mount -t tmpfs -o size=1g none /mnt; dd if=/dev/zero of=/mnt/full bs=64k; kill -9 -1",
        ),
    ),
    ("agent stopped", Inside("kill -STOP $(pidof daruma-agent)")),
    ("VMM SIGKILL", Vmm("KILL")),
    ("VMM SIGSEGV", Vmm("SEGV")),
    // In the jail the VMM is process 1, to which the kernel delivers no SIGABRT from outside.
    ("VMM's keeper SIGABRT", Keeper("ABRT")),
    ("VMM SIGBUS", Vmm("BUS")),
    ("VMM SIGSTOP", Vmm("STOP")),
];
/// More would only wait for each other where processors are emulated.
const GUESTS: usize = 8;

/// A guest that nobody knocks over.
const STEADY: &str = "steady";
/// One that falls soon after it is ready, however it was begun.
const DOOMED: &str = "doomed";

/// What the doomed guest has for process 1, whose end is a panic.
const DOOM: &str = "#!/bin/sh\nmount -t proc none /proc\necho pocket login:\nsleep 8\n";

fn machine_file() -> String {
    let mut file = "[machine]\nname = \"falls\"\n[store]\npath = \"disk:store\"\n".to_owned();
    for (number, name) in names().iter().enumerate() {
        let transport = if number % 2 == 0 { "pci" } else { "mmio" };
        let doom = if name == DOOMED { " init=/doom" } else { "" };
        let restores = if name == DOOMED { 3 } else { 8 };
        // Writing to a string cannot fail.
        let _ = write!(
            file,
            r#"
[[guest]]
name = "{name}"
memory = "80M"
transport = "{transport}"
kernel = "flash:daruma/kernel"
cmdline = "console=ttyS0 quiet root=/dev/vda rw{doom}"
ready = {{ console = "pocket login:" }}
network = "none"
[guest.checkpoints]
every = 20
[guest.health]
good-after = 2
restores = {restores}
[[guest.disk]]
source = "disk:{name}.img"
"#
        );
    }
    file
}

fn names() -> Vec<String> {
    let mut names: Vec<_> = (0..GUESTS).map(|number| format!("g{number}")).collect();
    names.extend([STEADY, DOOMED].map(str::to_owned));
    names
}

/// Makes the disk of a machine on which each guest has a root of its own that it can ruin.
fn disk(image: &Image, folder: &Path) -> Result<PathBuf> {
    let root = image.pocket_tree(folder)?;
    fs::write(root.join("doom"), DOOM)?;
    fs::set_permissions(root.join("doom"), Permissions::from_mode(0o755))?;
    let common = folder.join("root.img");
    image::ext4(&root, "root", ROOT_MIB, &common)?;
    let root = fs::read(common)?;
    let names: Vec<_> = names().iter().map(|name| format!("{name}.img")).collect();
    let files: Vec<_> = names.iter().map(|name| (&name[..], &root[..])).collect();
    image::machine_disk(folder, 3072, &files)
}

/// What the host's program says of all guests.
fn described(console: &mut Console) -> Result<Vec<Value>> {
    let mut all = daruma(console, "guest list")?;
    serde_json::from_value(all["guests"].take()).context("guests are not listed")
}

fn number(guest: &Value, key: &str) -> u64 {
    guest[key].as_u64().unwrap_or(0)
}

/// A guest of the campaign.
#[derive(Default)]
struct Victim {
    /// How often it had stood up when it was knocked over, each time, and in the end.
    stood: Vec<u64>,
    /// In how many looks at it, about one a second, it has stood since.
    seen: u32,
    /// The first snapshot of it that has what only its memory has.
    first: u64,
}

impl Victim {
    /// Whether it stands again by now and has been healthy for a while: how often it has stood up.
    fn stands(&mut self, guest: &Value) -> Option<u64> {
        let stands = number(guest, "stands");
        let has_stood = self.stood.last().is_none_or(|before| stands > *before);
        // What it can go back to.
        let is_safe = number(&guest["last_good"], "snapshot") >= self.first;
        if guest["state"] != "ready" || number(guest, "falls") != stands || !has_stood || !is_safe {
            self.seen = 0;
            return None;
        }
        self.seen += 1;
        (self.seen >= HEALTHY).then_some(stands)
    }
}

/// Sends a signal to the first or last process (`head` or `tail`) of a guest.
fn kill(signal: &str, guest: usize, which: &str) -> String {
    format!("kill -{signal} $(ps | grep 'id [g]{guest} ' | awk '{{print $1}}' | {which} -n 1); ")
}

/// Knocks guests over: each of these in a way.
fn knock_over(console: &mut Console, victims: &[(usize, &Place)]) -> Result<()> {
    let mut signals = String::new();
    for (guest, place) in victims {
        match place {
            Inside(command) => {
                view(console, u32::try_from(*guest)? + 1)?;
                console.send(&format!("{command}\r"))?;
            }
            // The keeper is older, and comes first in the list.
            Vmm(signal) => signals.push_str(&kill(signal, *guest, "tail")),
            Keeper(signal) => signals.push_str(&kill(signal, *guest, "head")),
        }
    }
    host_shell(console)?;
    ask(console, &format!("{signals}true")).map(drop)
}

/// In what way a guest is knocked over when it has stood so many times in this machine.
fn way(first: usize, guest: usize, stood: usize) -> &'static (&'static str, Place) {
    &WAYS[(first + guest + stood) % WAYS.len()]
}

/// Knocks each guest over so many times, whenever it stands, in the ways from the `first` on.
fn campaign(console: &mut Console, first: usize) -> Result<[Victim; GUESTS]> {
    let mut victims: [Victim; GUESTS] = Default::default();
    for (guest, victim) in victims.iter_mut().enumerate() {
        victim.first = number(&daruma(console, &format!("snapshot take g{guest}"))?, "id");
    }
    let mut idle = 0;
    loop {
        let all = described(console)?;
        let mut falling = Vec::new();
        for (number, (guest, victim)) in all.iter().zip(&mut victims).enumerate() {
            ensure!(guest["state"] != "failed", "it gave up: {guest:#}");
            if victim.stood.len() > ROUNDS {
                continue;
            }
            if let Some(stands) = victim.stands(guest) {
                victim.seen = 0;
                victim.stood.push(stands);
                falling.push((number, &way(first, number, victim.stood.len()).1));
                idle = 0;
            }
        }
        if victims.iter().all(|victim| victim.stood.len() > ROUNDS) {
            return Ok(victims);
        }
        falling.retain(|(guest, _)| victims[*guest].stood.len() <= ROUNDS);
        if falling.is_empty() {
            idle += 1;
            ensure!(idle < POLLS, "not all guests stand again: {all:#?}");
            thread::sleep(Duration::from_secs(1));
        } else {
            knock_over(console, &falling)?;
        }
    }
}

/// What happened to those that were knocked over in one way.
#[derive(Default)]
struct Outcome {
    falls: usize,
    /// How long each took to stand after it was detected, in ms.
    took: Vec<u64>,
    /// What each lost, in tenths of a second.
    lost: Vec<u64>,
}

/// Adds a line of the log to what is known.
fn note(outcome: &mut Outcome, line: &str) -> Result<()> {
    let number = |from: &str, to: &str| -> Option<u64> {
        let (_, rest) = line.split_once(from)?;
        rest.split_once(to)?.0.replace('.', "").parse().ok()
    };
    let took = number("), stands ", " ms later on snapshot ");
    outcome
        .took
        .push(took.with_context(|| format!("not to a snapshot: {line}"))?);
    outcome.lost.extend(number("; lost ", " s"));
    Ok(())
}

fn report(outcomes: &BTreeMap<&str, Outcome>) {
    for (way, outcome) in outcomes {
        let mut took = outcome.took.clone();
        took.sort_unstable();
        let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
        let lost = outcome.lost.iter().max().copied().unwrap_or(0);
        let (falls, stands) = (outcome.falls, took.len());
        println!(
            "counted: {falls} falls by {way}, {stands} stands, {median} ms after detection (worst {worst}), at most {}.{} s lost",
            lost / 10,
            lost % 10
        );
    }
}

/// Knocks over the guests of one machine that has just been switched on; returns how often they fell.
fn knock_about(
    console: &mut Console,
    first: usize,
    outcomes: &mut BTreeMap<&str, Outcome>,
) -> Result<usize> {
    let ready: Vec<_> = names()
        .iter()
        .map(|name| format!("daruma: {name}: ready: "))
        .collect();
    console.expect_all(&ready.iter().map(String::as_str).collect::<Vec<_>>())?;
    let mut nonces = Vec::new();
    for guest in 1..=u32::try_from(GUESTS + 1)? {
        view(console, guest)?;
        log_in(console, None)?;
        // Who is short of memory does not end this shell, whose memory is the witness, nor what it starts.
        let nonce = "echo -1000 > /proc/$$/oom_score_adj; nonce=$(cat /proc/sys/kernel/random/uuid); echo $nonce";
        nonces.push(ask_line(console, nonce)?);
    }
    host_shell(console)?;

    let victims = campaign(console, first)?;
    let all = described(console)?;
    let steady = &all[GUESTS];
    ensure!(number(steady, "falls") == 0, "it fell, too: {steady:#}");
    let doomed = &all[GUESTS + 1];
    ensure!(
        doomed["state"] == "failed" && number(doomed, "falls") <= 5,
        "at most three snapshots and a boot, then it stays down: {doomed:#}"
    );
    let mut all = 0;
    for (guest, victim) in victims.iter().enumerate() {
        let log = ask(console, &format!("daruma log | grep ' g{guest}: fell '"))?;
        let lines: Vec<_> = log
            .lines()
            .filter(|line| line.contains("), stands "))
            .collect();
        for (round, fell) in (1..).zip(victim.stood.windows(2)) {
            let outcome = outcomes.entry(way(first, guest, round).0).or_default();
            let fell = usize::try_from(fell[0])?..usize::try_from(fell[1])?;
            outcome.falls += fell.len();
            all += fell.len();
            let lines = lines.get(fell).context("The log has not all falls")?;
            lines.iter().try_for_each(|line| note(outcome, line))?;
        }
    }
    // Nobody has booted: what only their memory had is there.
    for (guest, nonce) in (1..).zip(&nonces) {
        view(console, guest)?;
        console.send("\r")?;
        let found = ask_line(console, "echo $nonce")?;
        ensure!(
            found == *nonce,
            "guest {guest} has another shell: {found:?}"
        );
    }
    host_from_now_on(console)?;
    console.send("poweroff\r")?;
    Ok(all)
}

#[test]
#[ignore = "a campaign of many minutes: cargo xtask falls"]
fn every_guest_that_is_knocked_over_stands_again() -> Result<()> {
    let falls = env::var("DARUMA_FALLS").map_or(Ok(FALLS), |count| count.parse())?;
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let rom = folder.path().join("falls.rom");
    fs::write(&rom, image.parts()?.machine(&machine_file()).rom()?)?;
    let mut outcomes = BTreeMap::new();
    let (mut all, mut machines, mut lost) = (0, 0, 0);
    while all < falls {
        let folder = tempfile::tempdir()?;
        let disk = disk(&image, folder.path())?;
        let builder = Builder::rom(&rom).disk(&disk, true).memory_mib(4096);
        let mut machine = builder.boot()?;
        match knock_about(&mut machine.console, machines * ROUNDS, &mut outcomes) {
            Ok(more) => {
                all += more;
                machines += 1;
                machine.wait_off()?;
                println!("counted: {all} falls of {falls}");
            }
            Err(error) => match machine.lost().filter(|_| lost < MAX_LOST) {
                Some(how) => {
                    lost += 1;
                    println!("counted: a machine was lost in between: {how}");
                }
                None => return Err(error),
            },
        }
    }
    report(&outcomes);
    println!(
        "counted: {all} falls of {GUESTS} guests in {machines} machines, each of which stood up by itself; {lost} more machines were lost"
    );
    Ok(())
}
