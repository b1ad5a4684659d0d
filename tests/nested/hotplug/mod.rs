//! A drive and a network interface that come to a running Linux guest and go again.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use tests::linux::{busybox, initramfs};
use tests::qemu::Builder;
use tests::{Image, image};

/// The program that plays the VMM's parent.
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

/// The guest: beside a writer that never rests on the disk it started with, it uses what comes, until it goes.
const GUEST: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t sysfs sys /sys
fail() { echo "guest: failed: $*"; poweroff -f; }
steady() {
    n=0
    while [ ! -e /run/stop ]; do
        dd if=/dev/urandom of=/run/steady bs=64k count=1 2>/dev/null
        dd if=/run/steady of=/dev/vda bs=64k seek=$((n % 16)) oflag=direct 2>/dev/null || echo "guest: failed: steady write"
        dd if=/dev/vda bs=64k skip=$((n % 16)) count=1 iflag=direct 2>/dev/null | cmp -s - /run/steady || echo "guest: failed: steady read"
        n=$((n + 1))
        echo $n > /run/count
        usleep 20000
    done
}

[ -d /sys/bus/pci/slots/2 ] || fail "no slots: $(ls /sys/bus/pci/slots)"
[ -d /sys/bus/pci/slots/1 ] || fail "no slot of the first drive"
steady &
net() { grep -l "02:00:00:00:00:$1" /sys/class/net/*/address 2>/dev/null; }
echo "guest: ready"
n=1
while [ $n -le 20 ]; do
    until [ -b /dev/vdb ]; do usleep 50000; done
    [ "$(cat /sys/block/vdb/size)" = $((16384 + n * 8)) ] || fail "size of drive $n: $(cat /sys/block/vdb/size)"
    { printf 'cycle %08d\n' $n; dd if=/dev/urandom bs=4096 count=16 2>/dev/null; } | dd of=/run/data bs=4096 count=16 iflag=fullblock 2>/dev/null
    dd if=/run/data of=/dev/vdb bs=4096 oflag=direct 2>/dev/null || fail "write to drive $n"
    dd if=/dev/vdb bs=4096 count=16 iflag=direct 2>/dev/null | cmp -s - /run/data || fail "data of drive $n"
    sync
    echo "guest: drive $n ok"
    mac=$(printf %02x $n)
    until [ -n "$(net $mac)" ]; do usleep 50000; done
    card=$(basename $(dirname $(net $mac)))
    ip link set $card up || fail "card $n"
    echo "guest: net $n ok"
    while [ -b /dev/vdb ] || [ -n "$(net $mac)" ]; do usleep 50000; done
    echo "guest: gone $n"
    n=$((n + 1))
done
until [ -b /dev/vdb ]; do usleep 50000; done
echo 0 > /sys/bus/pci/slots/2/power || fail "slot 2 cannot be switched off"
while [ -b /dev/vdb ]; do usleep 50000; done
touch /run/stop
wait
echo "guest: steady wrote $(cat /run/count) times"
poweroff -f
"#;

const CONFIG: &str = r#"{"boot-source": {"kernel_image_path": "/disk/bzImage", "initrd_path": "/disk/guest.cpio",
    "boot_args": "console=ttyS0 quiet reboot=t panic=-1"},
  "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
  "drives": [{"drive_id": "steady", "is_root_device": false, "path_on_host": "/disk/steady.raw"}]}"#;

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
fn a_drive_and_a_network_interface_come_and_go_twenty_times() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let tree = at("tree");
    fs::create_dir(&tree)?;
    let busybox = busybox(&image, folder.path())?;
    let mut guest = firmware_glue::initramfs::Builder::new();
    for name in ["bin", "dev", "proc", "run", "sys"] {
        guest.dir(name, 0o755)?;
    }
    guest.char_device("dev/console", 0o600, 5, 1)?;
    guest.file("bin/busybox", 0o755, busybox.clone())?;
    guest.file("init", 0o755, GUEST.as_bytes().to_vec())?;
    fs::write(tree.join("guest.cpio"), guest.build()?)?;
    fs::write(tree.join("bzImage"), image.read("bzImage")?)?;
    fs::write(tree.join("vm.json"), CONFIG)?;
    fs::File::create(tree.join("steady.raw"))?.set_len(1 << 20)?;
    let disk = at("host.img");
    image::ext4(&tree, "hotplug", 64, &disk)?;
    let (daruma, parent) = (image.read("daruma")?, compile(PARENT, folder.path())?);
    let programs = [("bin/daruma-vmm", &daruma[..]), ("bin/parent", &parent[..])];
    fs::write(at("host.cpio"), initramfs(&busybox, HOST, &programs)?)?;

    let cmdline = "console=ttyS0 quiet";
    let machine = Builder::trio(&image.path("bzImage"), &at("host.cpio"), cmdline);
    let (status, transcript) = machine.disk(&disk, true).boot()?.wait_off()?;
    ensure!(status.success(), "QEMU ended with {status}");
    ensure!(!transcript.contains("failed"), "{transcript}");
    for words in [
        "parent: cycles 20 ",
        "parent: the VMM ended with exit status: 0",
        "host: the parent ended with 0",
    ] {
        ensure!(transcript.contains(words), "no {words:?}: {transcript}");
    }
    Ok(())
}
