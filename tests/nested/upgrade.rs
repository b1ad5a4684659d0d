//! A guest that boots from its own disk, and whose upgrade leaves no kernel there; before that the clocks jump by a year.

use std::fs;

use anyhow::{Result, ensure};
use tests::qemu::Builder;
use tests::{Image, image};

use crate::shell::{ask, ask_line, host_from_now_on, host_shell, log_in, view};

const MACHINE: &str = r#"
[machine]
name = "upgrade"

[store]
path = "disk:store"

[[guest]]
name = "upgraded"
memory = "96M"
kernel = "disk"
ready = { console = "pocket login:" }
network = "none"

[guest.checkpoints]
every = 2

[guest.health]
good-after = 4

[[guest.disk]]
source = "disk:upgraded.img"
"#;
/// What the guest boots.
const ENTRY: &str = "title pocket\nlinux /kernel\noptions quiet root=/dev/vda rw\n";
/// MiB of its disk.
const DISK_MIB: u64 = 24;
/// Sets the clock on by a year.
const NEXT_YEAR: &str = "date -s @$(($(date +%s) + 31536000)) > /dev/null; date +%Y";
/// Enough for checkpoints, and for one of them to be good.
const LIVE_ON: &str = "sleep 12";

#[test]
fn a_guest_without_a_kernel_after_its_upgrade_goes_back_and_clocks_that_jump_bring_nobody_down()
-> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let tree = image.pocket_tree(folder.path())?;
    fs::create_dir_all(tree.join("loader/entries"))?;
    fs::write(tree.join("loader/entries/pocket.conf"), ENTRY)?;
    fs::write(tree.join("kernel"), image.read("bzImage")?)?;
    let root = folder.path().join("root.img");
    image::ext4(&tree, "root", DISK_MIB, &root)?;
    let disk = image::machine_disk(
        folder.path(),
        1024,
        &[("upgraded.img", &fs::read(root)?[..])],
    )?;
    let rom = folder.path().join("upgrade.rom");
    fs::write(&rom, image.parts()?.machine(MACHINE).rom()?)?;

    let mut machine = Builder::rom(&rom).disk(&disk, true).boot()?;
    let console = &mut machine.console;
    console.expect("daruma: upgraded: ready: ")?;
    view(console, 1)?;
    log_in(console, None)?;
    let nonce = ask_line(
        console,
        "nonce=$(cat /proc/sys/kernel/random/uuid); echo $nonce",
    )?;
    ask(console, LIVE_ON)?;

    let year: u32 = ask_line(console, "date +%Y")?.parse()?;
    let next: u32 = ask_line(console, NEXT_YEAR)?.parse()?;
    ensure!(next == year + 1, "the guest's clock says {next}");
    ask(console, LIVE_ON)?;
    host_shell(console)?;
    let next: u32 = ask_line(console, NEXT_YEAR)?.parse()?;
    ensure!(next == year + 1, "the host's clock says {next}");
    view(console, 1)?;
    console.send("\r")?;
    ensure!(ask_line(console, "echo $nonce")? == nonce, "another shell");
    ask(console, LIVE_ON)?;
    let transcript = console.transcript();
    ensure!(!transcript.contains("unhealthy"), "a clock brought it down");

    console.send("rm -r /loader /kernel; sync; reboot -f\r")?;
    view(console, 0)?;
    console.expect("host: upgraded: fell (cannot boot from ")?;
    let line = console.expect("\r\n")?;
    ensure!(line.contains(" on snapshot "), "{line}");
    view(console, 1)?;
    console.send("\r")?;
    ensure!(ask_line(console, "echo $nonce")? == nonce, "another shell");
    let entries = ask_line(console, "ls /loader/entries")?;
    ensure!(entries == "pocket.conf", "{entries:?}");
    host_from_now_on(console)?;
    console.send("poweroff\r")?;
    let (status, _) = machine.wait_off()?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}
