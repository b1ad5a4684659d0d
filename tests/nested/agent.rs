//! What only the inside of a guest knows: agents tell the host, and guests stand up by themselves that are not well.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{Console, Image, image};

use crate::shell::{ask_line, host_from_now_on, log_in, until_well, view};

const MACHINE: &str = r#"
[machine]
name = "inside"
[store]
path = "disk:store"

[[guest]]
name = "first"
memory = "96M"
kernel = "disk:kernel"
cmdline = "console=ttyS0 quiet root=/dev/vda ro"
ready = { vsock = 1024 }

[guest.checkpoints]
every = 2

[guest.health]
good-after = 3
heartbeat = 6

[[guest.disk]]
source = "disk:root.erofs"
read-only = true

[[guest]]
name = "other"
memory = "96M"
kernel = "disk:kernel"
cmdline = "console=ttyS0 quiet root=/dev/vda ro"
ready = { console = "pocket login:" }

[[guest.disk]]
source = "disk:root.erofs"
read-only = true
"#;

/// Ways to make a guest fall that only its agent notices, and what is said of them.
const FALLS: [(&str, &[&str]); 3] = [
    (
        "kill -STOP $(pidof daruma-agent)",
        &["unhealthy: no sign of life for "],
    ),
    // The root cannot be written to: this is as good as to remove all programs.
    (
        "mount -t tmpfs none /bin",
        &["unhealthy: its agent says: cannot start a program: there is none"],
    ),
    (
        "bomb() { bomb | bomb & }; bomb",
        &[
            "unhealthy: its agent says: ",
            "unhealthy: no sign of life for ",
            "unhealthy: its watchdog expired",
        ],
    ),
];

/// Waits until agents of both guests say that they are well.
fn both_well(console: &mut Console) -> Result<()> {
    ["first", "other"]
        .into_iter()
        .try_for_each(|guest| until_well(console, guest))
}

/// A guest whose agent stands still, whose programs are gone, or which is full of processes, goes back to where it was
/// well, by itself; its neighbour notices nothing.
#[test]
fn a_guest_that_is_not_well_inside_stands_up_by_itself() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let (kernel, root) = (image.read("bzImage")?, image.pocket_root()?);
    let files = [
        ("machine.toml", MACHINE.as_bytes()),
        ("kernel", &kernel),
        ("root.erofs", &root),
    ];
    let disk = image::machine_disk(folder.path(), 1024, &files)?;
    let mut machine = image.trio()?.disk(&disk, true).boot()?;
    let console = &mut machine.console;
    console.expect_all(&["daruma: first: ready: ", "daruma: other: ready: "])?;
    both_well(console)?;
    view(console, 1)?;
    log_in(console, None)?;
    let nonce = ask_line(
        console,
        "nonce=$(cat /proc/sys/kernel/random/uuid); echo $nonce",
    )?;
    for (fall, said) in FALLS {
        // Some checkpoints, and time enough for one of them to be good.
        thread::sleep(Duration::from_secs(15));
        view(console, 1)?;
        console.send(&format!("{fall}\r"))?;
        host_from_now_on(console)?;
        console.expect_any(said)?;
        console.expect("daruma: first: restoring: snapshot ")?;
        console.expect("daruma: first: ready: ")?;
        console.expect("stands ")?;
        both_well(console)?;
        view(console, 1)?;
        console.send("\r")?;
        let found = ask_line(console, "echo $nonce")?;
        ensure!(found == nonce, "after {fall:?} another shell: {found:?}");
    }
    // It says goodbye: its silence is no fall.
    console.send("poweroff\r")?;
    host_from_now_on(console)?;
    let (which, _) = console.expect_any(&[
        "daruma: first: stopped: powered off",
        "daruma: first: unhealthy",
        "daruma: other: unhealthy",
    ])?;
    ensure!(which == 0, "a fall in the end");
    console.send("poweroff\r")?;
    machine.wait_off()?;
    Ok(())
}
