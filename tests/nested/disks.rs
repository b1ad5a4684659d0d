//! A Linux guest's I/O on each kind of disk: what it writes is what it reads, and what is in the image afterwards.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tests::linux::{busybox, initramfs};
use tests::qemu::Builder;
use tests::{Image, image};

/// Of each of the guest's disks.
const DISK_MIB: u64 = 24;

/// Each disk: its name, and what its drive says besides the path.
const DISKS: [(&str, &str); 3] = [
    ("async.raw", r#""io_engine": "Async", "queues": 2"#),
    ("sync.raw", r#""io_engine": "Sync""#),
    (
        "thin.qcow2",
        r#""format": "qcow2", "backing_files": ["/disk/base.raw"]"#,
    ),
];

/// The host: starts the VMM once for each disk.
const HOST: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t ext4 /dev/vda /disk
for name in async.raw sync.raw thin.qcow2; do
    daruma-vmm --no-api --enable-pci --config-file /disk/$name.json < /dev/null 2>&1
    echo "host: $name ended with $?"
done
umount /disk
poweroff -f
"#;

/// The guest: four writers at once to places of their own, all verified past the page cache; then a file system whose
/// freed blocks are given back.
const GUEST: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
disk=/dev/vda
fail() { echo "guest: failed: $*"; poweroff -f; }
blockdev --getsz $disk | grep -qx 49152 || fail size
# What the image is based on is there, and the rest is zero.
[ "$(dd if=$disk bs=1M skip=20 count=1 2>/dev/null | tr -d '\0' | wc -c)" = 0 ] || fail zero
dd if=/dev/urandom of=/run/reference bs=1M count=16 2>/dev/null
dd if=/run/reference of=$disk bs=64k oflag=direct 2>/dev/null || fail sequential write
write() {
    i=0
    while [ $i -lt 24 ]; do
        at=$(( ($1 * 1024) + (i * 389 + $1 * 53) % 1024 ))
        dd if=/dev/urandom of=/run/block$1 bs=4k count=1 2>/dev/null
        dd if=/run/block$1 of=/run/reference bs=4k seek=$at conv=notrunc 2>/dev/null
        dd if=/run/block$1 of=$disk bs=4k seek=$at oflag=direct 2>/dev/null || echo bad > /run/bad
        dd if=$disk bs=4k skip=$at count=1 iflag=direct 2>/dev/null | cmp -s - /run/block$1 || echo bad > /run/bad
        i=$((i + 1))
    done
}
for writer in 0 1 2 3; do write $writer & done
wait
[ -e /run/bad ] && fail random I/O
sync
echo 3 > /proc/sys/vm/drop_caches
dd if=$disk bs=1M count=16 2>/dev/null | cmp - /run/reference || fail comparison
echo "guest: sum $(md5sum < /run/reference)"
dd if=$disk bs=512 skip=49152 count=1 iflag=direct 2>/dev/null | wc -c | grep -qx 0 || fail end
# The last MiBs are discarded, then zeroed by a write: they read as zero, or as nothing at all.
dd if=/dev/urandom of=$disk bs=1M seek=16 count=8 oflag=direct conv=fsync 2>/dev/null || fail write
blkdiscard -o 16777216 -l 8388608 $disk || fail discard
[ "$(dd if=$disk bs=1M skip=16 count=8 iflag=direct 2>/dev/null | tr -d '\0' | wc -c)" = 0 ] || fail discarded
echo "guest: verified"
poweroff -f
"#;

fn configuration(name: &str, drive: &str) -> String {
    format!(
        r#"{{"boot-source": {{"kernel_image_path": "/disk/bzImage", "initrd_path": "/disk/guest.cpio",
                              "boot_args": "console=ttyS0 quiet reboot=t panic=-1"}},
            "machine-config": {{"vcpu_count": 2, "mem_size_mib": 128}},
            "drives": [{{"drive_id": "disk", "is_root_device": false, "path_on_host": "/disk/{name}", {drive}}}]}}"#
    )
}

fn qemu_img(arguments: &[&str], paths: &[&Path]) -> Result<()> {
    image::run(Command::new("qemu-img").args(arguments).args(paths))
}

#[test]
fn what_a_guest_writes_is_what_it_reads_and_what_is_in_the_image() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let tree = at("tree");
    fs::create_dir(&tree)?;
    let busybox = busybox(&image, folder.path())?;
    fs::write(tree.join("guest.cpio"), initramfs(&busybox, GUEST, &[])?)?;
    fs::write(tree.join("bzImage"), image.read("bzImage")?)?;
    let len = DISK_MIB << 20;
    for (name, drive) in DISKS {
        fs::write(
            tree.join(format!("{name}.json")),
            configuration(name, drive),
        )?;
    }
    fs::File::create(tree.join("async.raw"))?.set_len(len)?;
    fs::File::create(tree.join("sync.raw"))?.set_len(len)?;
    fs::write(tree.join("base.raw"), vec![0x5a; 1 << 20])?;
    qemu_img(
        &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw"],
        &[&tree.join("thin.qcow2"), Path::new(&len.to_string())],
    )?;
    let disk = at("host.img");
    image::ext4(&tree, "disks", 160, &disk)?;
    let daruma = image.read("daruma")?;
    let host = initramfs(&busybox, HOST, &[("bin/daruma-vmm", &daruma)])?;
    fs::write(at("host.cpio"), host)?;

    let cmdline = "console=ttyS0 quiet";
    let machine = Builder::trio(&image.path("bzImage"), &at("host.cpio"), cmdline);
    let machine = machine.disk(&disk, true).boot()?;
    let (status, transcript) = machine.wait_off()?;
    ensure!(status.success(), "QEMU ended with {status}");
    ensure!(!transcript.contains("guest: failed"), "{transcript}");
    let sums: Vec<_> = transcript
        .lines()
        .filter_map(|line| line.trim().strip_prefix("guest: sum "))
        .map(|line| line.trim_end_matches([' ', '-']).to_owned())
        .collect();
    ensure!(sums.len() == DISKS.len(), "{transcript}");

    for ((name, _), sum) in DISKS.iter().zip(sums) {
        ensure!(
            transcript.contains(&format!("host: {name} ended with 0")),
            "{transcript}"
        );
        let path = at(name);
        let mut debugfs = Command::new("debugfs");
        debugfs.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
        debugfs
            .arg("-R")
            .arg(format!("dump /{name} {}", path.display()));
        image::run(debugfs.arg(&disk))?;
        let raw = if name.ends_with("qcow2") {
            // QEMU's own tool finds nothing wrong, and the same data.
            fs::write(at("base.raw"), vec![0x5a; 1 << 20])?;
            qemu_img(&["check", "-q", "-f", "qcow2"], &[&path])?;
            qemu_img(
                &["convert", "-q", "-f", "qcow2", "-O", "raw"],
                &[&path, &at("flat")],
            )?;
            at("flat")
        } else {
            path
        };
        let mut bytes = fs::read(&raw)?;
        ensure!(
            bytes.len() as u64 == len,
            "{name} holds {} bytes",
            bytes.len()
        );
        ensure!(
            bytes[16 << 20..].iter().all(|byte| *byte == 0),
            "{name} keeps what was discarded"
        );
        bytes.truncate(16 << 20);
        fs::write(at("data"), bytes)?;
        let output = Command::new("md5sum").arg(at("data")).output()?;
        let found = String::from_utf8(output.stdout)?;
        let found = found
            .split_whitespace()
            .next()
            .context("md5sum says nothing")?;
        ensure!(found == sum, "{name} holds {found}, the guest wrote {sum}");
    }
    // Discarded blocks are free in the file system below.
    let mut debugfs = Command::new("debugfs");
    debugfs.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let output = debugfs
        .args(["-R", "stat /async.raw"])
        .arg(&disk)
        .output()?;
    let stat = String::from_utf8(output.stdout)?;
    let blocks = stat
        .split("Blockcount: ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    let blocks: u64 = blocks.context("debugfs says no block count")?.parse()?;
    ensure!(
        blocks * 512 < 17 << 20,
        "async.raw still takes {blocks} sectors"
    );
    Ok(())
}
