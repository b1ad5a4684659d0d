//! The trio — kernel, initramfs, command line — under a loader that is not ours.

use anyhow::{Result, ensure};
use tests::{Image, image};

const MACHINE: &str = r#"
[machine]
name = "on-disk"

[[guest]]
name = "pocket"
vcpus = 4
memory = "96M"
kernel = "disk:kernel"
cmdline = "console=ttyS0 quiet root=/dev/vda ro"
ready = { console = "pocket login:" }

[[guest.disk]]
source = "disk:root.erofs"
read-only = true

[[guest]]
name = "writer"
vcpus = 2
memory = "64M"
transport = "mmio"
kernel = "disk:kernel"
cmdline = "console=ttyS0 quiet root=/dev/vda ro"
ready = { console = "pocket login:" }

[[guest.disk]]
source = "disk:root.erofs"
read-only = true

[[guest.disk]]
source = "disk:spare.img"

[[guest]]
name = "third"
vcpus = 3
memory = "64M"
kernel = "disk:kernel"
cmdline = "console=ttyS0 quiet root=/dev/vda ro"
ready = { console = "pocket login:" }

[[guest.disk]]
source = "disk:root.erofs"
read-only = true

[[guest]]
name = "thief"
memory = "64M"
kernel = "disk:kernel"
cmdline = "console=ttyS0 quiet"
ready = { console = "never said" }

[[guest.disk]]
source = "disk:./spare.img"
"#;

#[test]
fn the_trio_boots_without_our_rom_and_takes_its_machine_from_a_disk() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let (kernel, root) = (image.read("bzImage")?, image.pocket_root()?);
    let files = [
        ("machine.toml", MACHINE.as_bytes()),
        ("kernel", &kernel),
        ("root.erofs", &root),
        ("spare.img", &[0; 1 << 20]),
    ];
    let disk = image::machine_disk(folder.path(), 64, &files)?;
    let mut machine = image.trio()?.disk(&disk, false).boot()?;
    // One disk is written to by one guest, whatever path the other takes to it.
    machine.console.expect_all(&[
        "daruma: pocket: ready: ",
        "daruma: writer: ready: ",
        "daruma: third: ready: ",
        "daruma: thief: failed: ",
    ])?;

    // Ctrl-Alt-Del on the host's keyboard shuts the guests down, then restarts the machine
    // (which ends QEMU here).
    machine.monitor(
        r#"{"execute": "send-key", "arguments": {"keys": [
            {"type": "qcode", "data": "ctrl"}, {"type": "qcode", "data": "alt"},
            {"type": "qcode", "data": "delete"}]}}"#
            .replace('\n', " ")
            .as_str(),
    )?;
    // Guests on PCI and on MMIO, with several vCPUs each, hear of it by their power buttons.
    machine.console.expect_all(&[
        "daruma: pocket: stopped",
        "daruma: writer: stopped",
        "daruma: third: stopped",
    ])?;
    let (status, _) = machine.wait_off()?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}
