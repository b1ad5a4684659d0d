//! Debian's own kernels with their own initial RAM disks, unmodified, booted by the entry on their own disk.

use std::fs;

use anyhow::{Result, ensure};
use tests::qemu::Builder;
use tests::{Image, image};

use crate::shell::{ask, log_in, view};

const MACHINE: &str = r#"
[machine]
name = "stock"

[[guest]]
name = "debian"
memory = "512M"
kernel = "disk"
ready = { console = "login:" }

[[guest.disk]]
source = "disk:debian.img"

[[guest]]
name = "blank"
memory = "64M"
kernel = "disk"
ready = { console = "never said" }

[[guest.disk]]
source = "disk:blank.img"
"#;

#[test]
fn debians_own_kernels_boot_by_the_entry_on_their_disk_and_a_changed_entry_takes_effect()
-> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let tree = folder.path().join("tree");
    fs::create_dir(&tree)?;
    let stock = fs::canonicalize(image.path("test/debian-two-kernels.img"))?;
    image::run(
        std::process::Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .arg(stock)
            .arg(tree.join("debian.img")),
    )?;
    fs::write(tree.join("blank.img"), vec![0; 1 << 20])?;
    let disk = folder.path().join("machine.img");
    image::ext4(&tree, "daruma", 3072, &disk)?;
    fs::remove_dir_all(&tree)?;
    let rom = folder.path().join("stock.rom");
    fs::write(&rom, image.parts()?.machine(MACHINE).rom()?)?;

    let mut machine = Builder::rom(&rom).disk(&disk, true).boot()?;
    let console = &mut machine.console;
    console.expect_all(&["daruma: blank: failed: ", "daruma: debian: ready: "])?;
    let transcript = console.transcript();
    let refusal = transcript
        .lines()
        .find(|line| line.contains("blank: failed"));
    ensure!(
        refusal.is_some_and(|line| line.contains("ext2, ext3 and ext4 are supported")),
        "{refusal:?}"
    );

    view(console, 1)?;
    log_in(console, Some("daruma"))?;
    let newest = ask(console, "uname -r")?;
    ensure!(
        newest.contains("6.12.") && newest.contains("cloud-amd64"),
        "{newest}"
    );
    let cmdline = ask(console, "cat /proc/cmdline")?;
    ensure!(
        cmdline.contains("root=PARTUUID=") && cmdline.contains("console=ttyS0"),
        "{cmdline}"
    );
    let state = ask(console, "systemctl is-system-running --wait | cat")?;
    ensure!(
        state.lines().any(|line| line.trim() == "running"),
        "{state}"
    );

    // Debian's own tool makes the older kernel the default; a reboot obeys.
    ask(
        console,
        "echo 'U_BOOT_DEFAULT=\"l1\"' >> /etc/default/u-boot && u-boot-update && sync",
    )?;
    console.send("reboot\r")?;
    view(console, 0)?;
    console.expect("daruma: debian: starting: again")?;
    console.expect("daruma: debian: ready: ")?;
    view(console, 1)?;
    log_in(console, Some("daruma"))?;
    let older = ask(console, "uname -r")?;
    ensure!(
        older.contains("6.1.0-") && older.contains("cloud-amd64"),
        "{older}"
    );
    let state = ask(console, "systemctl is-system-running --wait | cat")?;
    ensure!(
        state.lines().any(|line| line.trim() == "running"),
        "{state}"
    );

    view(console, 0)?;
    console.send("poweroff\r")?;
    console.expect("daruma: debian: stopped")?;
    let (status, _) = machine.wait_off()?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}
