//! Guests that break every rule, beside a good one that must not notice.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tests::linux::{busybox, initramfs};
use tests::qemu::Builder;
use tests::{Image, image};

/// RAM of a hostile guest.
const HOSTILE_MIB: u64 = 64;
/// What its VMM may have besides: programs, buffers, and the pages of images that it reads.
const OVERHEAD_MIB: u64 = 48;
/// What a VMM may write to its log because of its guest, in bytes.
const LOG_BYTES: u64 = 256 << 10;
/// Fewer attacks than this on one transport, and the program did not do what it is for.
const FEWEST_ATTACKS: u64 = 900;
/// The VMMs with hostile guests: name, transport, and what the guest attacks.
const RUNS: [(&str, bool, &str); 3] = [
    ("mmio", false, "devices"),
    ("pci", true, "devices,let-go"),
    ("machine", false, "machine,processor,low-ports"),
];
/// Ended by SIGTERM, as the host's shell says it.
const TOLD_TO_END: u64 = 143;
/// Ways in which a guest ends itself, and how its VMM may end.
const ENDS: [(&str, &[u64]); 13] = [
    ("poweroff", &[0]),
    ("keyboard-reset", &[16]),
    ("acpi-reset", &[16]),
    ("triple-fault", &[17]),
    ("watchdog", &[18]),
    ("code-in-registers", &[1, 17]),
    ("code-in-a-hole", &[1, 17]),
    ("code-in-the-local-apic", &[1, 17]),
    ("code-over-the-end-of-memory", &[1, 17]),
    // A processor may also fault for ever, which is its own time: such a VMM is told to end and does so.
    ("page-tables-in-registers", &[1, 17, TOLD_TO_END]),
    ("page-tables-in-a-hole", &[1, 17, TOLD_TO_END]),
    ("stack-in-registers", &[1, 17, TOLD_TO_END]),
    ("init-to-itself", &[1, 16, 17]),
];
/// The kinds of device that are attacked.
const KINDS: [&str; 7] = ["balloon", "block", "console", "net", "pmem", "rng", "vsock"];

/// The host: a good guest, then a hostile one on each transport at the same time.
const HOST: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t ext4 /dev/vda /disk
mkfifo /run/good.in
daruma-vmm --id good --no-api --enable-pci --config-file /disk/good.json < /run/good.in > /run/good.out 2> /run/good.err &
good=$!
exec 9> /run/good.in
beat() { grep -a -o 'good: beat [0-9]*' /run/good.out | tail -n 1 | tr -dc 0-9; }
while [ -z "$(beat)" ]; do
    kill -0 $good || { cat /run/good.out /run/good.err; poweroff -f; }
    sleep 0.2
done
echo "host: good guest beats"
peak() { sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' /proc/$1/status 2>/dev/null; }
attack() {
    daruma-vmm --id hostile-$1 --no-api $2 --config-file /disk/$1.json < /dev/null > /run/$1.out 2> /run/$1.err &
    pid=$!
    kib=0
    while kill -0 $pid 2>/dev/null; do
        now=$(peak $pid)
        [ -n "$now" ] && kib=$now
        sleep 0.2
    done
    wait $pid
    echo "host: $1 ended with $? peak $kib log $(wc -c < /run/$1.err)" | tee -a /run/results
}
before=$(beat)
# A flood of frames from outside, whether the guest has buffers for them or not.
# Sent and dropped frames, as the kernel counts them, as long as the card is there.
frames() { sed -n "s/^ *$1: *//p" /proc/net/dev | awk '{ print $10, $12 }'; }
flood() {
    while [ -z "$(frames $1)" ]; do sleep 0.2; done
    # The VMM may still be at it with its card: each of these may fail, and is tried again until frames go out.
    while :; do
        ip link set $1 up
        ip addr add $2.1/24 dev $1
        arp -s $2.2 02:00:00:00:00:02
        ping -q -c 100 -W 1 -s 1400 -i 0.05 $2.2
        sleep 0.1
    done > /dev/null 2>&1 & pings=$!
    while :; do
        now=$(frames $1)
        [ -n "$now" ] || break
        echo "host: flood $1 $now" > /run/flood.$1
        sleep 1
    done
    kill $pings
}
flood mmio0 10.7.1 & flood pci0 10.7.2 &
pids=
RUNS
wait $pids
for how in ENDS; do
    sed "s/run=devices,let-go/end=$how/" /disk/pci.json > /run/end.json
    case $how in PATIENT) limit=4 ;; *) limit=60 ;; esac
    timeout -k 20 $limit daruma-vmm --id $how --no-api --enable-pci --config-file /run/end.json < /dev/null > /run/end.out 2> /run/end.err
    echo "host: end $how $?"
done
after=$(beat)
cat /run/results /run/flood.*
for name in NAMES; do
    grep -a '^attack .* on ' /run/$name.out | sed 's/.* on \([a-z]*\)[^:]*: \([a-zA-Z]*\).*/\1 \2/' | sort | uniq -c |
        sed "s/^ */host: tally $name /"
    grep -a '^hostile: ' /run/$name.out | sed "s/^/host: $name /"
    grep -a FAILED /run/$name.out | head -n 20
    tail -n 2 /run/$name.out
    tail -n 3 /run/$name.err
done
echo "host: good guest beat $before then $after"
# It still serves now, and keeps what it wrote.
echo stop >&9
wait $good
echo "host: good ended with $?"
grep -a 'good: ' /run/good.out | grep -v beat
echo "host: sum $(md5sum < /disk/good.raw)"
umount /disk
poweroff -f
"#;

/// The good guest: every beat it writes a part of its disk, reads it back past the page cache, and compares.
const GOOD: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
disk=/dev/vda
n=0
while :; do
    at=$((n % 64))
    dd if=/dev/urandom of=/run/block bs=64k count=1 2>/dev/null
    dd if=/run/block of=$disk bs=64k seek=$at oflag=direct 2>/dev/null || echo "good: write failed"
    dd if=$disk bs=64k skip=$at count=1 iflag=direct 2>/dev/null | cmp -s - /run/block || echo "good: wrong data"
    n=$((n + 1))
    echo "good: beat $n"
    read -t 1 word && [ "$word" = stop ] && break
done
sync
echo "good: sum $(dd if=$disk bs=64k iflag=direct 2>/dev/null | md5sum)"
poweroff -f
"#;

/// The hostile guest's devices: each kind, disks of each kind, and last the disk that it leaves alone.
fn hostile(name: &str, groups: &str) -> String {
    format!(
        r#"{{"boot-source": {{"kernel_image_path": "/disk/hostile", "boot_args": "run={groups}"}},
            "machine-config": {{"vcpu_count": 1, "mem_size_mib": {HOSTILE_MIB}}},
            "drives": [
              {{"drive_id": "sync", "is_root_device": false, "path_on_host": "/disk/{name}-sync.raw", "io_engine": "Sync"}},
              {{"drive_id": "async", "is_root_device": false, "path_on_host": "/disk/{name}-async.raw", "io_engine": "Async"}},
              {{"drive_id": "thin", "is_root_device": false, "path_on_host": "/disk/{name}-thin.qcow2", "format": "qcow2"}},
              {{"drive_id": "witness", "is_root_device": false, "path_on_host": "/disk/witness.raw", "is_read_only": true}}],
            "network-interfaces": [{{"iface_id": "eth0", "host_dev_name": "{name}0"}}],
            "vsock": {{"guest_cid": 3, "uds_path": "/run/{name}.vsock"}},
            "console": {{"ports": [{{"name": "port", "path": "/run/{name}.port"}}]}},
            "entropy": {{}},
            "balloon": {{"amount_mib": 0, "deflate_on_oom": false, "stats_polling_interval_s": 1, "free_page_reporting": true}},
            "pmem": [{{"id": "pmem", "path_on_host": "/disk/{name}-pmem.img"}}]}}"#
    )
}

const GOOD_CONFIG: &str = r#"{"boot-source": {"kernel_image_path": "/disk/bzImage", "initrd_path": "/disk/guest.cpio",
    "boot_args": "console=ttyS0 quiet reboot=t panic=-1"},
  "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
  "drives": [{"drive_id": "disk", "is_root_device": false, "path_on_host": "/disk/good.raw"}]}"#;

/// A disk whose sectors start with their numbers.
fn witness() -> Vec<u8> {
    let sector = |number: u64| {
        let mut sector = vec![0; 512];
        sector[..8].copy_from_slice(&number.to_le_bytes());
        sector
    };
    (0..64).flat_map(sector).collect()
}

fn prepare(image: &Image, folder: &Path, tree: &Path) -> Result<()> {
    fs::create_dir(tree)?;
    let busybox = busybox(image, folder)?;
    fs::write(tree.join("guest.cpio"), initramfs(&busybox, GOOD, &[])?)?;
    fs::write(tree.join("bzImage"), image.read("bzImage")?)?;
    fs::write(tree.join("hostile"), image.read("test/hostile")?)?;
    fs::write(tree.join("good.json"), GOOD_CONFIG)?;
    fs::write(tree.join("witness.raw"), witness())?;
    let sized = |name: String, mib: u64| fs::File::create(tree.join(name))?.set_len(mib << 20);
    sized("good.raw".into(), 4)?;
    for (name, _, groups) in RUNS {
        fs::write(tree.join(format!("{name}.json")), hostile(name, groups))?;
        sized(format!("{name}-sync.raw"), 1)?;
        sized(format!("{name}-async.raw"), 1)?;
        sized(format!("{name}-pmem.img"), 2)?;
        let thin = tree.join(format!("{name}-thin.qcow2"));
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]).arg(thin);
        image::run(create.arg("4M"))?;
    }
    let daruma = image.read("daruma")?;
    let ends = ENDS.map(|(how, _)| how).join(" ");
    let patient = ENDS
        .iter()
        .filter(|(_, codes)| codes.contains(&TOLD_TO_END));
    let patient: Vec<_> = patient.map(|&(how, _)| how).collect();
    let names = RUNS.map(|(name, ..)| name).join(" ");
    let runs = RUNS.map(|(name, pci, _)| {
        let option = if pci { "--enable-pci" } else { "" };
        format!("attack {name} \"{option}\" & pids=\"$pids $!\"\n")
    });
    let script = HOST.replace("ENDS", &ends).replace("NAMES", &names);
    let script = script.replace("PATIENT", &patient.join("|"));
    let script = script.replace("RUNS\n", &runs.concat());
    let host = initramfs(&busybox, &script, &[("bin/daruma-vmm", &daruma)])?;
    Ok(fs::write(folder.join("host.cpio"), host)?)
}

/// The rest of the line that starts with `words`, apart from white space.
fn said<'a>(transcript: &'a str, words: &str) -> Result<&'a str> {
    let mut lines = transcript.lines().map(str::trim);
    lines
        .find_map(|line| line.strip_prefix(words))
        .map(str::trim)
        .with_context(|| format!("no line {words:?} in:\n{transcript}"))
}

fn number(word: Option<&str>) -> Result<u64> {
    Ok(word.context("a number is missing")?.parse()?)
}

/// Checks what is known of one hostile guest and its VMM; returns how many attacks there were on each kind of device.
fn check(transcript: &str, name: &str) -> Result<BTreeMap<String, u64>> {
    let words = said(transcript, &format!("host: {name} ended with "))?;
    let words: Vec<_> = words.split(' ').collect();
    let [code, "peak", peak, "log", log] = words[..] else {
        bail!("{words:?}");
    };
    ensure!(code == "0", "the VMM {name} ended with {code}");
    let peak = number(Some(peak))? >> 10;
    let permitted = 1..=HOSTILE_MIB + OVERHEAD_MIB;
    ensure!(permitted.contains(&peak), "the VMM {name} took {peak} MiB");
    let log = number(Some(log))?;
    ensure!(
        log <= LOG_BYTES,
        "the VMM {name} wrote {log} bytes into its log"
    );

    let mut tally = BTreeMap::new();
    for line in transcript.lines() {
        let Some(rest) = line.trim().strip_prefix(&format!("host: tally {name} ")) else {
            continue;
        };
        let mut words = rest.split_whitespace();
        let count = number(words.next())?;
        let kind = words.next().context("no kind")?;
        ensure!(words.next() == Some("survived"), "{line}");
        tally.insert(kind.to_owned(), count);
    }
    let all: u64 = tally.values().sum();
    let total = said(transcript, &format!("host: {name} hostile: "))?;
    ensure!(total == format!("survived {all}, failed 0"), "{total}");
    println!("{name}: {all} attacks survived, {tally:?}; peak {peak} MiB, log {log} bytes");
    Ok(tally)
}

#[test]
fn a_hostile_guest_harms_neither_its_vmm_nor_its_neighbours() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let tree = folder.path().join("tree");
    prepare(&image, folder.path(), &tree)?;
    let disk = folder.path().join("host.img");
    image::ext4(&tree, "hostile", 96, &disk)?;

    let host = folder.path().join("host.cpio");
    let machine = Builder::trio(&image.path("bzImage"), &host, "console=ttyS0 quiet");
    let machine = machine.disk(&disk, false).boot()?;
    let (status, transcript) = machine.wait_off()?;
    ensure!(status.success(), "QEMU ended with {status}");
    ensure!(!transcript.contains("FAILED"), "{transcript}");

    let mut flood = 0;
    for (name, _, groups) in RUNS {
        let tally = check(&transcript, name)?;
        if groups.starts_with("devices") {
            for kind in KINDS {
                ensure!(tally.contains_key(kind), "no {kind} was attacked on {name}");
            }
            let all: u64 = tally.values().sum();
            ensure!(all >= FEWEST_ATTACKS, "only {all} attacks on {name}");
            let frames = said(&transcript, &format!("host: flood {name}0 "))?;
            println!("{name}: frames from outside, and dropped ones: {frames}");
            for word in frames.split(' ') {
                flood += number(Some(word))?;
            }
        }
    }
    // A card whose guest has no buffers keeps frames without counting them: the attacks on one of the two may be over
    // before the flood begins.
    ensure!(flood > 0, "no frame came from outside");
    for (how, permitted) in ENDS {
        let code = number(Some(said(&transcript, &format!("host: end {how} "))?))?;
        ensure!(permitted.contains(&code), "{how} ended the VMM with {code}");
    }

    // The good guest went on all the while, and its disk is as it says.
    let beats = said(&transcript, "host: good guest beat ")?;
    let (before, after) = beats.split_once(" then ").context("no beats")?;
    let (before, after) = (number(Some(before))?, number(Some(after))?);
    ensure!(
        after > before + 5,
        "the good guest beat {before}, then {after}"
    );
    println!(
        "the good guest served itself {} times meanwhile",
        after - before
    );
    ensure!(said(&transcript, "host: good ended with")? == "0");
    ensure!(!transcript.contains("good: wrong") && !transcript.contains("good: write"));
    ensure!(said(&transcript, "good: sum ")? == said(&transcript, "host: sum ")?);
    Ok(())
}
