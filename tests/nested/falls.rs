//! A campaign: guest after guest is knocked over, for minutes, and each has to stand again by itself every time.

use std::env;

use anyhow::{Context, Result, ensure};
use tests::qemu::Builder;
use tests::{Image, image};

use crate::shell::view;

const GUESTS: usize = 8;
/// Falls in `cargo xtask falls`; `DARUMA_FALLS` says otherwise.
const FALLS: usize = 96;
/// Signals that end a VMM as its own faults would.
const SIGNALS: &str = "KILL SEGV ABRT BUS";

fn machine_file() -> String {
    let guests = (0..GUESTS).map(|number| {
        let transport = if number % 2 == 0 { "pci" } else { "mmio" };
        format!(
            r#"
[[guest]]
name = "g{number}"
memory = "80M"
transport = "{transport}"
kernel = "flash:daruma/kernel"
cmdline = "console=ttyS0 quiet root=/dev/vda ro"
ready = {{ console = "pocket login:" }}
network = "none"
[guest.checkpoints]
every = 2
seconds = 20
minutes = 0
hours = 0
[guest.health]
good-after = 2
heartbeat = 5
restores = 8
[[guest.disk]]
source = "flash:guest/pocket/root.erofs"
read-only = true
"#
        )
    });
    let guests: Vec<_> = guests.collect();
    format!(
        "[machine]\nname = \"falls\"\n[store]\npath = \"disk:store\"\n{}",
        guests.concat()
    )
}

/// The numbers in a line of `show` about falls and stands.
fn falls_and_stands(line: &str) -> Result<(usize, usize)> {
    let mut numbers = line
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok());
    numbers
        .next()
        .zip(numbers.next())
        .with_context(|| format!("two numbers are not in {line:?}"))
}

#[test]
#[ignore = "minutes of falls: cargo xtask falls"]
fn every_guest_that_is_knocked_over_stands_again() -> Result<()> {
    let falls = env::var("DARUMA_FALLS").map_or(Ok(FALLS), |count| count.parse())?;
    let rounds = falls.div_ceil(GUESTS);
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let rom = folder.path().join("falls.rom");
    std::fs::write(&rom, image.parts()?.machine(&machine_file()).rom()?)?;
    let tree = folder.path().join("tree");
    std::fs::create_dir(&tree)?;
    let disk = folder.path().join("machine.img");
    image::ext4(&tree, "daruma", 2048, &disk)?;
    let mut machine = Builder::rom(&rom).disk(&disk, true).boot()?;
    let console = &mut machine.console;
    let ready: Vec<_> = (0..GUESTS)
        .map(|number| format!("daruma: g{number}: ready: "))
        .collect();
    console.expect_all(&ready.iter().map(String::as_str).collect::<Vec<_>>())?;

    console.send("shell\r")?;
    console.expect("# ")?;
    // All have a good checkpoint then. The process outside of the jail comes first in the list.
    console.send(&format!(
        "sleep 20; for round in $(seq {rounds}); do for g in $(seq 0 {last}); do set -- {SIGNALS}; \
         shift $(((round + g) % 4)); kill -$1 $(ps | grep \"id [g]$g \" | awk '{{print $1}}' | tail -n 1); sleep 2; done; done; \
         sleep 15; echo all-knoc''ked-over\r",
        last = GUESTS - 1
    ))?;
    console.expect("all-knocked-over")?;
    view(console, 0)?;
    let mut all = 0;
    for number in 0..GUESTS {
        console.send(&format!("show g{number}\r"))?;
        console.expect(&format!("g{number} (guest {})", number + 1))?;
        console.expect("  state      ")?;
        let state = console.expect("\r\n")?;
        ensure!(state.starts_with("ready"), "g{number} is {state}");
        console.expect("  falls      ")?;
        let (fell, stood) = falls_and_stands(&console.expect("\r\n")?)?;
        ensure!(
            fell == stood,
            "g{number} fell {fell} times and stood {stood} times"
        );
        ensure!(fell >= rounds, "g{number} fell {fell} times, not {rounds}");
        all += stood;
    }
    let transcript = console.transcript();
    ensure!(!transcript.contains(": failed"), "a guest gave up");
    println!("counted: {all} falls and stands of {GUESTS} guests");
    console.send("poweroff\r")?;
    machine.wait_off()?;
    Ok(())
}
