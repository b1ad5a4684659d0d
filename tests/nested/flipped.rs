//! The host's disk changes bits of a guest's newest snapshot, and then the guest falls.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::qemu::Builder;
use tests::{Console, Image, image};

use crate::shell::{ask, ask_line, daruma, host_from_now_on, host_shell, log_in, view};

const MACHINE: &str = r#"
[machine]
name = "flipped"

[store]
path = "disk:store"

[[guest]]
name = "victim"
memory = "96M"
kernel = "flash:daruma/kernel"
cmdline = "console=ttyS0 quiet root=/dev/vda ro"
ready = { console = "pocket login:" }

[guest.checkpoints]
every = 600

[guest.health]
good-after = 2

[[guest.disk]]
source = "flash:guest/pocket/root.erofs"
read-only = true
"#;
/// Contents of the guest's memory that no two snapshots share.
const NEW_CONTENTS: &str =
    "dd if=/dev/urandom of=/run/contents bs=64k count=32 2>/dev/null; md5sum /run/contents";
/// The store's newest segment, and its size.
const SEGMENT: &str =
    "newest=$(ls /proc/1/root/run/daruma/disk/0/store/segment-* | tail -n 1); stat -c %s $newest";
/// Bytes from one changed one to the next: there is one in every other chunk.
const STRIDE: u64 = 8192;
/// How often the host is asked whether the newest snapshot is good, about a second apart.
const LOOKS: u32 = 60;

/// Takes a snapshot from the host's shell, and waits until the guest has been healthy for long enough.
fn good_snapshot(console: &mut Console) -> Result<u64> {
    let id = daruma(console, "snapshot take victim")?["id"].clone();
    for _ in 0..LOOKS {
        let list: Value = daruma(console, "guest list")?;
        if list["guests"][0]["last_good"]["snapshot"] == id {
            return id.as_u64().context("its id is no number");
        }
        ask(console, "sleep 1")?;
    }
    anyhow::bail!("snapshot {id} is not good after a minute")
}

/// What is printed in the guest by `commands`; the host's shell is on the host's screen afterwards.
fn in_guest(console: &mut Console, commands: &str) -> Result<String> {
    view(console, 1)?;
    console.send("\r")?;
    let line = ask_line(console, commands)?;
    host_shell(console)?;
    Ok(line)
}

#[test]
fn a_guest_whose_newest_snapshot_has_flipped_bits_goes_on_from_the_one_before() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let rom = folder.path().join("flipped.rom");
    std::fs::write(&rom, image.parts()?.machine(MACHINE).rom()?)?;
    let disk = image::machine_disk(folder.path(), 512, &[])?;
    let mut machine = Builder::rom(&rom).disk(&disk, true).boot()?;
    let console = &mut machine.console;
    console.expect("daruma: victim: ready: ")?;
    view(console, 1)?;
    log_in(console, None)?;
    let before = ask_line(console, NEW_CONTENTS)?;
    host_shell(console)?;
    let older = good_snapshot(console)?;
    let after = in_guest(console, NEW_CONTENTS)?;
    ensure!(before != after, "{after}");
    let from: u64 = ask_line(console, SEGMENT)?.parse()?;
    let newer = good_snapshot(console)?;
    let to: u64 = ask_line(console, SEGMENT)?.parse()?;
    ensure!(newer > older && to > from + (1 << 20), "{from}..{to}");

    let flip = format!(
        "at={from}; while [ $at -lt {to} ]; do printf x | dd of=$newest bs=1 seek=$at conv=notrunc 2>/dev/null; \
         at=$((at + {STRIDE})); done"
    );
    ask(console, &flip)?;
    // The process outside of the jail comes first in the list.
    let kill = "kill -KILL $(ps | grep 'id [v]ictim ' | awk '{print $1}' | tail -n 1)";
    ask(console, kill)?;
    view(console, 0)?;
    console.expect(&format!("snapshot {newer} cannot be used ("))?;
    let line = console.expect("\r\n")?;
    ensure!(line.contains(" is taken"), "{line}");
    console.expect("host: victim: fell (")?;
    console.expect(&format!(" later on snapshot {older}"))?;
    let now = in_guest(console, "md5sum /run/contents")?;
    ensure!(now == before, "{now} after {before}, {after}");
    host_from_now_on(console)?;
    console.send("poweroff\r")?;
    let (status, _) = machine.wait_off()?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}
