//! Several Linux guests that go on from one snapshot at the same time, each with a card, a socket address and a generation of
//! its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use tests::linux::{busybox, initramfs};
use tests::qemu::Builder;
use tests::{Image, image};

/// The program that plays the VMMs' parent, and in the guests says what their socket address is.
const PARENT: &str = include_str!("parent.rs");

/// The host.
const HOST: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t ext4 /dev/vda /disk
parent
echo "host: the parent ended with $?"
umount /disk
poweroff -f
"#;

/// The guest: with its card in use, it says who it is whenever that changes, and when it can reach the host as such.
const GUEST: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t sysfs sys /sys
head -c 16 /dev/urandom > /run/nonce
nonce=$(md5sum < /run/nonce)
last=
ping -q 10.0.99.1 > /dev/null 2>&1 &
echo "guest: ready"
while :; do
    for card in $(ls /sys/class/net); do
        [ $card = lo ] && continue
        mac=$(cat /sys/class/net/$card/address)
        ip link set $card up 2>/dev/null
        now="$card $mac link $(cat /sys/class/net/$card/carrier 2>/dev/null) cid $(identity cid)"
        if [ "$now" != "$last" ]; then
            last=$now
            echo "guest: $now memory ${nonce%% *}"
            net=10.0.$((0x${mac##*:}))
            ip addr add $net.2/24 dev $card 2>/dev/null
            for try in 1 2 3 4 5 6 7 8 9; do
                ping -c 1 -W 5 $net.1 > /run/ping 2>&1 && echo "guest: $mac reaches $net.1" && break
            done
        fi
    done
    usleep 50000
done
"#;

/// One static program from one file.
fn compile(source: &str, folder: &Path) -> Result<Vec<u8>> {
    let (from, to) = (folder.join("parent.rs"), folder.join("parent"));
    fs::write(&from, source)?;
    let mut rustc = Command::new("rustc");
    rustc.args([
        "--edition",
        "2024",
        "-O",
        "-C",
        "target-feature=+crt-static",
    ]);
    rustc.args(["--target", "x86_64-unknown-linux-gnu", "-o"]);
    image::run(rustc.arg(&to).arg(&from))?;
    Ok(fs::read(&to)?)
}

#[test]
fn forks_of_a_linux_guest_are_machines_of_their_own() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let tree = at("tree");
    fs::create_dir(&tree)?;
    let busybox = busybox(&image, folder.path())?;
    let (daruma, parent) = (image.read("daruma")?, compile(PARENT, folder.path())?);
    let mut guest = firmware_glue::initramfs::Builder::new();
    for name in ["bin", "dev", "proc", "run", "sys"] {
        guest.dir(name, 0o755)?;
    }
    guest.char_device("dev/console", 0o600, 5, 1)?;
    guest.file("bin/busybox", 0o755, busybox.clone())?;
    guest.file("bin/identity", 0o755, parent.clone())?;
    guest.file("init", 0o755, GUEST.as_bytes().to_vec())?;
    fs::write(tree.join("guest.cpio"), guest.build()?)?;
    fs::write(tree.join("bzImage"), image.read("bzImage")?)?;
    let disk = at("host.img");
    image::ext4(&tree, "forks", 64, &disk)?;
    let programs = [("bin/daruma-vmm", &daruma[..]), ("bin/parent", &parent[..])];
    fs::write(at("host.cpio"), initramfs(&busybox, HOST, &programs)?)?;

    let cmdline = "console=ttyS0 quiet";
    let machine = Builder::trio(&image.path("bzImage"), &at("host.cpio"), cmdline);
    let (status, transcript) = machine.disk(&disk, true).boot()?.wait_off()?;
    ensure!(status.success(), "QEMU ended with {status}");
    ensure!(!transcript.contains("failed"), "{transcript}");
    for words in [
        "parent: all forks are machines of their own",
        "host: the parent ended with 0",
    ] {
        ensure!(transcript.contains(words), "no {words:?}: {transcript}");
    }
    Ok(())
}
