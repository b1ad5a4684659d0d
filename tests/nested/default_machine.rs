//! The default machine: three guests at once, their consoles, their falls, their disks.

use anyhow::{Result, ensure};
use tests::http::{free_port, page};
use tests::qemu::Builder;
use tests::{Image, Qemu};

use crate::shell::{log_in, until_well, view};

/// What the host says when the whole machine goes down in order.
const STOPPED: [&str; 3] = [
    "daruma: pocket: stopped",
    "daruma: web: stopped",
    "daruma: debian: stopped",
];

fn boot(image: &Image, disk: &std::path::Path, port: u16) -> Result<Qemu> {
    let mut machine = Builder::rom(&image.path("daruma.rom"))
        .disk(disk, true)
        .network(&[(port, 8080)])
        .boot()?;
    machine.console.expect_all(&[
        "daruma: pocket: ready: ",
        "daruma: web: ready: ",
        "daruma: debian: ready: ",
    ])?;
    Ok(machine)
}

#[test]
fn three_guests_live_side_by_side_and_debian_keeps_what_it_wrote() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let disk = image.private_disk(folder.path())?;

    let port = free_port()?;
    let mut machine = boot(&image, &disk, port)?;
    let console = &mut machine.console;

    // The appliance's page is reached from outside, through the host's published port.
    let text = page(port)?;
    ensure!(
        text.contains("<title>web, a guest of Daruma</title>"),
        "{text}"
    );

    // All three are alive at the same time, by the host's own account.
    console.send("list\r")?;
    console.expect_all(&["pocket", "debian", "web"])?;

    // A login works, and Ctrl-C reaches the guest and nothing else.
    view(console, 2)?;
    log_in(console, Some("daruma"))?;
    // Not before the command runs, and says so itself: a shell that is interrupted while it starts one may take the
    // terminal's prompt for its own while the command has the terminal, and ends.
    console.send("sh -c 'echo bu\"\"sy; exec sleep 100000'\r")?;
    console.expect("busy")?;
    console.send("\u{3}")?;
    console.expect("# ")?;
    console
        .send("until ip -4 route | grep -q default; do sleep 1; done; echo routed-$((3*7))\r")?;
    console.expect("routed-21")?;
    console.send("echo kept-$((6*7)) > /root/proof; sync; cat /root/proof\r")?;
    console.expect("kept-42")?;

    // What a guest says in the background is kept and shown on return.
    view(console, 1)?;
    log_in(console, None)?;
    console.send("(sleep 3; echo spoken-$((40+2))-behind) &\r")?;
    view(console, 0)?;

    // A VMM that is killed from outside, or by its cgroup's limit of memory, is started again; the others are untouched.
    let kill = "kill -9 $(ps | grep 'id we[b]' | awk '{print $1}')";
    let squeeze = "echo 4M > /sys/fs/cgroup/daruma/web/memory.max";
    for fall in [kill, squeeze] {
        console.send("shell\r")?;
        console.expect("# ")?;
        console.send(&format!("{fall} && echo done-$((5+5))\r"))?;
        console.expect("done-10")?;
        view(console, 0)?;
        let until_again = console.expect("daruma: web: starting: again")?;
        let until_ready = console.expect("daruma: web: ready: ")?;
        ensure!(
            until_again.contains("SIGKILL"),
            "no cause in: {until_again}"
        );
        for other in ["pocket", "debian"] {
            ensure!(
                !until_ready.contains(&format!("daruma: {other}:")),
                "{other} fell: {until_ready}"
            );
        }
    }
    view(console, 1)?;
    console.expect("spoken-42-behind")?;
    console.send("echo alive-$((20+1))\r")?;
    console.expect("alive-21")?;
    view(console, 2)?;
    console.send("echo alive-$((20+2))\r")?;
    console.expect("alive-22")?;

    // `poweroff` on the host's console shuts every guest down cleanly, then the machine.
    view(console, 0)?;
    console.send("poweroff\r")?;
    console.expect_all(&STOPPED)?;
    let (status, _) = machine.wait_off()?;
    ensure!(status.success(), "QEMU ended with {status}");

    // The same disk again: the file is there, and the screen shows something.
    let mut machine = boot(&image, &disk, port)?;
    let screen = folder.path().join("screen.ppm");
    machine.monitor(&format!(
        r#"{{"execute": "screendump", "arguments": {{"filename": {screen:?}}}}}"#
    ))?;
    let pixels = std::fs::read(&screen)?;
    ensure!(
        pixels.iter().skip(16).any(|byte| *byte != 0),
        "the screen is black"
    );
    let console = &mut machine.console;
    // It was suspended: the shell is open. One that does not go on well from there goes back to the checkpoint before, and
    // what was typed meanwhile is lost.
    until_well(console, "debian")?;
    view(console, 2)?;
    console.send("cat /root/proof\r")?;
    console.expect("kept-42")?;
    view(console, 0)?;

    // The power button does what `poweroff` does.
    machine.monitor(r#"{"execute": "system_powerdown"}"#)?;
    machine.console.expect_all(&STOPPED)?;
    let (status, _) = machine.wait_off()?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}
