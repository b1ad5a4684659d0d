//! Process 1 of the host falls, and its guests notice nothing.

use std::path::Path;

use anyhow::{Result, ensure};
use tests::qemu::{Builder, Qemu};
use tests::{Console, Image, image};

use crate::shell::{ask, ask_line, host_from_now_on, log_in, until_well, view};

const GUESTS: [(&str, &str); 2] = [("one", "pci"), ("two", "mmio")];

fn machine_file() -> String {
    let guests = GUESTS.map(|(name, transport)| {
        format!(
            r#"
[[guest]]
name = "{name}"
memory = "96M"
transport = "{transport}"
kernel = "flash:daruma/kernel"
cmdline = "console=ttyS0 quiet root=/dev/vda ro"
ready = {{ console = "pocket login:" }}
network = "nat"

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
        "[machine]\nname = \"supervisor\"\n[store]\npath = \"disk:store\"\n{}",
        guests.concat()
    )
}

fn boot(folder: &Path) -> Result<Qemu> {
    let image = Image::built()?;
    let rom = folder.join("supervisor.rom");
    std::fs::write(&rom, image.parts()?.machine(&machine_file()).rom()?)?;
    let files = [("one.img", &[0; 1 << 20][..]), ("two.img", &[0; 1 << 20])];
    let disk = image::machine_disk(folder, 1024, &files)?;
    Builder::rom(&rom).disk(&disk, true).boot()
}

/// Has process 1 fall by a signal, and waits until the next one has the guests.
fn fall(console: &mut Console, signal: &str, guests: &[&str]) -> Result<()> {
    host_from_now_on(console)?;
    console.send("shell\r")?;
    console.expect("--- shell (")?;
    console.expect("# ")?;
    console.send(&format!("kill -{signal} 1\r"))?;
    console.expect(&format!("host: process 1 fell: SIG{signal}"))?;
    console.expect("host: process 1 fell and stands again; its guests live on")?;
    let lines = guests.iter().flat_map(|name| {
        [
            format!("host: {name}: its VMM lives on"),
            format!("daruma: {name}: ready: "),
        ]
    });
    let lines: Vec<_> = lines.collect();
    console.expect_all(&lines.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The shells that were open are open, on a network that works.
fn are_the_same(console: &mut Console, nonces: &[String; 2]) -> Result<()> {
    for (guest, nonce) in (1..).zip(nonces) {
        view(console, guest)?;
        console.send("\r")?;
        let found = ask_line(console, "echo $nonce")?;
        ensure!(found == *nonce, "guest {guest} is another one: {found:?}");
        ensure!(
            ask(console, "udhcpc -i eth0 -n -q -s /bin/true 2>&1")?.contains("lease of"),
            "guest {guest} has no network"
        );
    }
    view(console, 0)
}

#[test]
fn guests_live_on_when_process_1_falls_and_are_healed_by_the_next() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut machine = boot(folder.path())?;
    let console = &mut machine.console;
    let ready = GUESTS.map(|(name, _)| format!("daruma: {name}: ready: "));
    console.expect_all(&ready.each_ref().map(String::as_str))?;
    let mut nonces = [const { String::new() }; 2];
    for (guest, nonce) in (1..).zip(&mut nonces) {
        view(console, guest)?;
        log_in(console, None)?;
        let words = "nonce=$(cat /proc/sys/kernel/random/uuid); echo $nonce";
        *nonce = ask_line(console, words)?;
    }

    fall(console, "ABRT", &["one", "two"])?;
    are_the_same(console, &nonces)?;
    until_well(console, "one")?;

    // The next one takes checkpoints, and goes back to them.
    view(console, 1)?;
    ask(console, "sleep 12")?;
    host_from_now_on(console)?;
    console.send("shell\r")?;
    console.expect("# ")?;
    console.send("kill -9 $(ps | grep 'id [o]ne ' | awk '{print $1}' | tail -n 1)\r")?;
    view(console, 0)?;
    console.expect("daruma: one: unhealthy: ")?;
    console.expect("host: one: fell ")?;
    ensure!(
        console.expect("\r\n")?.contains(" on snapshot "),
        "it was begun anew"
    );
    are_the_same(console, &nonces)?;

    console.send("fork one 1\r")?;
    console.expect("daruma: one-1: ready: ")?;
    fall(console, "SEGV", &["one", "two", "one-1"])?;
    are_the_same(console, &nonces)?;
    let [of_both, _] = nonces;
    view(console, 3)?;
    console.send("\r")?;
    ensure!(ask_line(console, "echo $nonce")? == of_both, "no fork");
    view(console, 0)?;
    console.send("poweroff\r")?;
    let (status, _) = machine.wait_off()?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}
