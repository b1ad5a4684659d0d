//! Guests that are broken on purpose stand up by themselves, with what they had in memory, while others go on.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};
use tests::qemu::{Builder, Qemu};
use tests::{Console, Image, image};

use crate::shell::{ask, ask_line, log_in, view};

/// Name, vCPUs and transport of each guest.
const GUESTS: [(&str, u32, &str); 2] = [("broken", 2, "pci"), ("steady", 1, "mmio")];

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
seconds = 30

[guest.health]
good-after = 4

[[guest.disk]]
source = "flash:guest/pocket/root.erofs"
read-only = true

[[guest.disk]]
source = "disk:{name}.img"
"#
        )
    });
    format!(
        "[machine]\nname = \"healing\"\n[store]\npath = \"disk:store\"\n{}",
        guests.concat()
    )
}

fn boot(folder: &Path) -> Result<Qemu> {
    let image = Image::built()?;
    let rom = folder.join("healing.rom");
    std::fs::write(&rom, image.parts()?.machine(&machine_file()).rom()?)?;
    let files = [
        ("broken.img", &[0; 1 << 20][..]),
        ("steady.img", &[0; 1 << 20]),
    ];
    let disk = image::machine_disk(folder, 1024, &files)?;
    Builder::rom(&rom).disk(&disk, true).boot()
}

/// Waits on the host's screen for the line about a fall that was not there before.
fn next_fall(console: &mut Console, seen: &mut BTreeSet<String>) -> Result<String> {
    view(console, 0)?;
    loop {
        console.expect("host: broken: fell ")?;
        let line = console.expect("\r\n")?;
        // A screen that is opened again shows what was there.
        if seen.insert(line.clone()) {
            return Ok(line);
        }
    }
}

/// A number that only the guest's memory has, in the shell that is open.
fn nonce(console: &mut Console, guest: u32) -> Result<String> {
    view(console, guest)?;
    log_in(console, None)?;
    ask_line(
        console,
        "nonce=$(cat /proc/sys/kernel/random/uuid); echo $nonce",
    )
}

/// Waits until the guest on screen has lived through a good checkpoint.
fn live_on(console: &mut Console) -> Result<()> {
    ask(console, "sleep 12").map(drop)
}

/// Overwrites the program of process 1 in its memory: the kernel panics when that is gone.
const KILL_INIT: &str = "at=$(sed -n '/r-xp/{s/-.*//p;q}' /proc/1/maps); dd if=/dev/zero of=/proc/1/mem \
     bs=4096 seek=$((0x$at / 4096)) count=32 conv=notrunc 2>/dev/null; kill -HUP 1\r";

#[test]
fn broken_guests_stand_up_by_themselves_and_nobody_else_notices() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut machine = boot(folder.path())?;
    let console = &mut machine.console;
    let ready = GUESTS.map(|(name, ..)| format!("daruma: {name}: ready: "));
    console.expect_all(&ready.each_ref().map(String::as_str))?;
    let steady = nonce(console, 2)?;
    let broken = nonce(console, 1)?;
    live_on(console)?;

    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        console.send(KILL_INIT)?;
        let line = next_fall(console, &mut seen)?;
        let expected = "(its kernel has panicked), stands ";
        ensure!(line.starts_with(expected), "{line}");
        ensure!(
            line.contains(" on snapshot ") && line.contains("; lost "),
            "{line}"
        );
        view(console, 1)?;
        console.send("\r")?;
        ensure!(ask_line(console, "echo $nonce")? == broken, "another shell");
        live_on(console)?;
    }

    view(console, 2)?;
    console.send("\r")?;
    ensure!(
        ask_line(console, "echo $nonce")? == steady,
        "it is another one"
    );
    let transcript = console.transcript();
    ensure!(
        !transcript.contains("daruma: steady: unhealthy"),
        "it fell, too"
    );
    view(console, 0)?;
    console.send("poweroff\r")?;
    machine.wait_off()?;
    Ok(())
}
