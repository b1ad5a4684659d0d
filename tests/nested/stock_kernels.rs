//! Debian's own kernels with their own initial RAM disks, unmodified, booted by the entry on their own disk.

use std::fs;
use std::io::Write;

use anyhow::{Result, ensure};
use tests::qemu::Builder;
use tests::{Console, Image, image};

use crate::CHORD;

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

[[guest.disk]]
source = "flash:guest/pocket/root.erofs"
read-only = true
pmem = true

[[guest]]
name = "blank"
memory = "64M"
kernel = "disk"
ready = { console = "never said" }

[[guest.disk]]
source = "disk:blank.img"
"#;

/// Logs in to `debian`, and returns what `command` prints.
fn ask(console: &mut Console, command: &str) -> Result<String> {
    // The words that are waited for are not those that are typed.
    console.send(&format!("echo be''gin; {command}; echo e''nd\r"))?;
    console.expect("begin\r\n")?;
    console.expect("end\r\n")
}

fn log_in(console: &mut Console) -> Result<()> {
    console.send(&format!("{CHORD}1\r"))?;
    console.expect("login:")?;
    console.send("root\r")?;
    console.expect("assword:")?;
    console.send("daruma\r")?;
    console.expect("# ")?;
    Ok(())
}

/// By the tool, as the guest does it.
fn sha256(bytes: &[u8]) -> Result<String> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(bytes)?;
    let said = std::process::Command::new("sha256sum")
        .arg(file.path())
        .output()?;
    let text = String::from_utf8(said.stdout)?;
    Ok(text
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned())
}

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

    log_in(console)?;
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

    // An image in flash is memory to the guest, of which its kernel can change nothing.
    let memory = ask(
        console,
        "cat /sys/block/pmem0/size; head -c 1M /dev/pmem0 | sha256sum; \
         dd if=/dev/zero of=/dev/pmem0 bs=64k count=1 conv=fsync; echo 3 > /proc/sys/vm/drop_caches; \
         head -c 1M /dev/pmem0 | sha256sum",
    )?;
    let sums: Vec<_> = memory.lines().filter(|line| line.contains("  -")).collect();
    let (offset, _) = image::place(&image.read("daruma.rom")?, "guest/pocket/root.erofs")?;
    let expected = &image.read("daruma.rom")?[offset..offset + (1 << 20)];
    ensure!(
        sums.len() == 2 && sums[0] == sums[1] && sums[0].contains(&sha256(expected)?),
        "{memory}"
    );

    // Debian's own tool makes the older kernel the default; a reboot obeys.
    ask(
        console,
        "echo 'U_BOOT_DEFAULT=\"l1\"' >> /etc/default/u-boot && u-boot-update && sync",
    )?;
    console.send("reboot\r")?;
    console.send(&format!("{CHORD}0"))?;
    console.expect("daruma: debian: starting: again")?;
    console.expect("daruma: debian: ready: ")?;
    log_in(console)?;
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

    console.send(&format!("{CHORD}0poweroff\r"))?;
    console.expect("daruma: debian: stopped")?;
    let (status, _) = machine.wait_off()?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}
