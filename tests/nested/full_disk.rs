//! The host's disk, with the store on it, takes nothing any more while a guest runs.

use anyhow::{Result, ensure};
use tests::qemu::Builder;
use tests::{Image, image};

use crate::shell::{ask, ask_line, host_shell, log_in, view};

const MACHINE: &str = r#"
[machine]
name = "full"

[store]
path = "disk:store"

[[guest]]
name = "keeper"
memory = "96M"
kernel = "flash:daruma/kernel"
cmdline = "console=ttyS0 quiet root=/dev/vda ro"
ready = { console = "pocket login:" }

[guest.checkpoints]
every = 2

[guest.health]
good-after = 2

[[guest.disk]]
source = "flash:guest/pocket/root.erofs"
read-only = true

[[guest.disk]]
source = "disk:data.img"
"#;

/// Leaves no room on the host's disk, nor for what the file system keeps in reserve.
const FILL: &str = "disk=/proc/1/root/run/daruma/disk/0; dd if=/dev/zero of=$disk/full bs=64k 2>/dev/null; \
                    dd if=/dev/zero of=$disk/fuller bs=512 2>/dev/null; sync";

/// Reads what the disk has, not what the guest remembers of it.
const READ: &str = "echo 3 > /proc/sys/vm/drop_caches; head -c 5 /dev/vdb; echo";

#[test]
fn a_guest_goes_on_when_the_stores_disk_is_full_and_the_console_says_so() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    // The host's shell is in flash.
    let rom = folder.path().join("full.rom");
    std::fs::write(&rom, image.parts()?.machine(MACHINE).rom()?)?;
    let files = [("data.img", &[0; 1 << 20][..])];
    let disk = image::machine_disk(folder.path(), 512, &files)?;
    let mut machine = Builder::rom(&rom).disk(&disk, true).boot()?;
    let console = &mut machine.console;
    console.expect("daruma: keeper: ready: ")?;
    view(console, 1)?;
    log_in(console, None)?;
    let nonce = ask_line(
        console,
        "nonce=$(cat /proc/sys/kernel/random/uuid); echo $nonce",
    )?;
    let write = "echo first | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null && echo written";
    ensure!(ask_line(console, write)? == "written");
    // Until there is a checkpoint with it.
    ask(console, "sleep 8")?;

    host_shell(console)?;
    ask(console, FILL)?;
    view(console, 0)?;
    console.expect("host: keeper: no checkpoint: ")?;

    view(console, 1)?;
    console.send("\r")?;
    let write =
        "echo later | dd of=/dev/vdb seek=512 conv=notrunc,fsync 2>/dev/null || echo refused";
    ensure!(
        ask(console, write)?.contains("refused"),
        "what cannot be kept was taken"
    );
    ensure!(
        ask_line(console, READ)? == "first",
        "the disk lost what it had"
    );
    // Far longer than a heart may be silent.
    ask(console, "sleep 40")?;
    ensure!(ask_line(console, READ)? == "first");
    ensure!(ask_line(console, "echo $nonce")? == nonce, "another shell");
    ensure!(!console.transcript().contains("host: keeper: fell"));
    view(console, 0)?;
    console.send("poweroff\r")?;
    machine.wait_off()?;
    Ok(())
}
