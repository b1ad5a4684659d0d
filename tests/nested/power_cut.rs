//! The power of the whole machine is cut while guests write and checkpoints are taken of them.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::qemu::{Builder, Qemu};
use tests::{Console, Image, image};

use crate::shell::{ask, ask_line, host_from_now_on, log_in, view};

/// Guests on both transports; the disk with the counter is the second of each.
const GUESTS: [(&str, u32, &str); 2] = [("first", 2, "pci"), ("second", 1, "mmio")];

fn machine_file() -> String {
    let guests = GUESTS.map(|(name, vcpus, transport)| {
        format!(
            r#"
[[guest]]
name = "{name}"
vcpus = {vcpus}
memory = "96M"
transport = "{transport}"
kernel = "flash:daruma/kernel"
cmdline = "console=ttyS0 quiet root=/dev/vda ro"
ready = {{ console = "pocket login:" }}

[guest.checkpoints]
every = 2
seconds = 10
minutes = 2

[guest.health]
good-after = 3

[[guest.disk]]
source = "flash:guest/pocket/root.erofs"
read-only = true

[[guest.disk]]
source = "disk:{name}.img"
"#
        )
    });
    format!(
        "[machine]\nname = \"cut\"\n[store]\npath = \"disk:store\"\n{}",
        guests.concat()
    )
}

/// What a guest is known by: what only its memory has.
fn begin_to_count(console: &mut Console, guest: u32) -> Result<String> {
    view(console, guest)?;
    log_in(console, None)?;
    let nonce = "nonce=$(cat /proc/sys/kernel/random/uuid); echo $nonce";
    let nonce = ask_line(console, nonce)?;
    // Memory first, and then the disk: of one instant, they are equal or one apart.
    console.send(
        "(i=10000000; while :; do i=$((i+1)); echo $i >/tmp/new; mv /tmp/new /tmp/count; \
         echo $i | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null; done) &\r",
    )?;
    let counts = "until [ -e /tmp/count ] && [ $(cat /tmp/count) -gt 10000002 ]; do sleep 1; done";
    ask(console, counts)?;
    Ok(nonce)
}

/// The counters in memory and on the disk, as they are now.
fn counters(console: &mut Console) -> Result<(u64, u64)> {
    let read = "kill -STOP %1; sleep 1; cat /tmp/count; dd if=/dev/vdb bs=8 count=1 2>/dev/null; echo; kill -CONT %1; sleep 2";
    let text = ask(console, read)?;
    let numbers: Vec<u64> = text
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect();
    let [memory, disk] = numbers[..] else {
        anyhow::bail!("two counters are not {text:?}");
    };
    Ok((memory, disk))
}

fn boot(rom: &Path, disk: &Path, lines: &[&str]) -> Result<Qemu> {
    let mut machine = Builder::rom(rom).disk(disk, true).boot()?;
    machine.console.expect_all(lines)?;
    Ok(machine)
}

/// What takes the whole machine down.
#[derive(Debug, Clone, Copy)]
enum Blow {
    /// After so many seconds, without a warning.
    PowerCut(u64),
    /// Its kernel panics and restarts it.
    HostPanic,
}
use Blow::{HostPanic, PowerCut};

const BLOWS: [Blow; 3] = [PowerCut(20), HostPanic, PowerCut(7)];

fn strike(mut machine: Qemu, blow: Blow) -> Result<()> {
    match blow {
        PowerCut(seconds) => {
            thread::sleep(Duration::from_secs(seconds));
            drop(machine);
        }
        HostPanic => {
            let console = &mut machine.console;
            host_from_now_on(console)?;
            console.send("shell\r")?;
            console.expect("--- shell (")?;
            console.expect("# ")?;
            // Time for a good checkpoint of its own.
            ask(
                console,
                "echo 1 > /proc/sys/kernel/unknown_nmi_panic; sleep 10",
            )?;
            machine.monitor(r#"{"execute": "inject-nmi"}"#)?;
            machine.wait_off()?;
        }
    }
    Ok(())
}

/// What has to hold for a guest that went on: it is who it was, its disk agrees with its memory, and it goes on. Returns how
/// far it has counted.
fn is_itself(console: &mut Console, guest: u32, nonce: &str) -> Result<u64> {
    view(console, guest)?;
    console.send("\r")?;
    let found = ask_line(console, "echo $nonce")?;
    ensure!(found == nonce, "another shell, with {found:?}");
    let (memory, disk) = counters(console)?;
    ensure!(
        memory == disk || memory == disk + 1,
        "memory has {memory}, the disk {disk}"
    );
    let next = counters(console)?;
    ensure!(next.0 > memory, "it stopped at {memory}");
    Ok(next.0)
}

/// Guests count in memory and on a disk while checkpoints are taken and thinned. The power goes, or the host's kernel. When
/// the machine is back each goes on from its newest good checkpoint by itself: with what only its memory had, and a disk that
/// agrees with it.
#[test]
fn after_a_power_cut_guests_go_on_by_themselves_from_their_newest_good_checkpoints() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    // The host's shell is in flash.
    let rom = folder.path().join("cut.rom");
    std::fs::write(&rom, image.parts()?.machine(&machine_file()).rom()?)?;
    let files = [
        ("first.img", &[0; 1 << 20][..]),
        ("second.img", &[0; 1 << 20]),
    ];
    let disk = image::machine_disk(folder.path(), 1024, &files)?;

    let ready = ["daruma: first: ready: ", "daruma: second: ready: "];
    let mut machine = boot(&rom, &disk, &ready)?;
    let console = &mut machine.console;
    let nonces = [begin_to_count(console, 1)?, begin_to_count(console, 2)?];
    let counted = counters(console)?.0;

    // Nobody asks for it.
    let lines = [
        "daruma: first: restoring: snapshot ",
        "daruma: second: restoring: snapshot ",
        ready[0],
        ready[1],
        "host: first: the host went down while it ran on snapshot ",
        "host: second: the host went down while it ran on snapshot ",
    ];
    for blow in BLOWS {
        strike(machine, blow)?;
        machine = boot(&rom, &disk, &lines).with_context(|| format!("After {blow:?}"))?;
        let console = &mut machine.console;
        is_itself(console, 1, &nonces[0])?;
        let now = is_itself(console, 2, &nonces[1])?;
        ensure!(now > counted, "{now} is no newer than {counted}");
    }
    let console = &mut machine.console;
    view(console, 0)?;
    console.send("store\r")?;
    console.expect("snapshots").context("What is stored")?;
    // In order this time: suspended, and on again from there without a loss.
    console.send("poweroff\r")?;
    console.expect_all(&[
        "daruma: first: stopped: suspended as snapshot ",
        "daruma: second: stopped: suspended as snapshot ",
    ])?;
    machine.wait_off()?;
    let mut machine = boot(&rom, &disk, &lines[..4])?;
    is_itself(&mut machine.console, 1, &nonces[0])?;
    view(&mut machine.console, 0)?;
    machine.console.send("poweroff\r")?;
    machine.wait_off()?;
    Ok(())
}
