//! One machine in which most guests are wrong in some way: each is `failed` or ends as it should,
//! with its reason, and the good ones run.

use anyhow::{Result, ensure};
use tests::Image;
use tests::image::place;
use tests::qemu::Builder;

/// What every guest below has in common.
fn guest(name: &str, rest: &str) -> String {
    format!("[[guest]]\nname = \"{name}\"\n{rest}\n")
}

const KERNEL: &str = "memory = \"96M\"\nkernel = \"flash:daruma/kernel\"\n";

/// A guest on pocket's root whose first process is one BusyBox command.
fn applet(name: &str, kernel_options: &str, command: &str) -> String {
    guest(
        name,
        &format!(
            "{KERNEL}restart = \"never\"\nready = {{ console = \"never said\" }}\n\
             cmdline = \"console=ttyS0 quiet panic=-1 {kernel_options} root=/dev/vda ro \
             init=/bin/busybox -- {command}\"\n{ROOT}"
        ),
    )
}

const ROOT: &str = "[[guest.disk]]\nsource = \"flash:guest/pocket/root.erofs\"\nread-only = true\n";

const READY: &str = "ready = { console = \"login:\" }\n";

fn pocket(name: &str, extra: &str) -> String {
    guest(
        name,
        &format!(
            "{KERNEL}{READY}{extra}\ncmdline = \"console=ttyS0 quiet root=/dev/vda ro\"\n{ROOT}"
        ),
    )
}

#[test]
fn one_guests_bad_config_or_end_never_stops_the_others() -> Result<()> {
    let machine_file = [
        "[machine]\nname = \"laboratory\"\n".to_owned(),
        pocket("good", ""),
        pocket("many", "vcpus = 32"),
        pocket("none", "vcpus = 0"),
        pocket("crowd", "vcpus = 33"),
        pocket("typo", "memroy = \"64M\""),
        pocket("good", ""),
        guest(
            "huge",
            &format!("kernel = \"flash:daruma/kernel\"\nmemory = \"64G\"\n{READY}"),
        ),
        guest(
            "lost",
            &format!("kernel = \"flash:no/such/file\"\nmemory = \"64M\"\n{READY}"),
        ),
        guest(
            "text",
            &format!("kernel = \"flash:daruma/cmdline\"\nmemory = \"64M\"\n{READY}"),
        ),
        guest(
            "torn",
            &format!("kernel = \"flash:guest/torn\"\nmemory = \"64M\"\n{READY}"),
        ),
        guest(
            "rotten",
            &format!("kernel = \"flash:guest/rotten\"\nmemory = \"64M\"\n{READY}"),
        ),
        guest(
            "fat",
            &format!(
                "kernel = \"flash:daruma/kernel\"\ninitrd = \"flash:guest/fat\"\n\
                 memory = \"32M\"\nrestart = \"never\"\n{READY}"
            ),
        ),
        applet("off", "", "poweroff -f"),
        applet("again", "", "reboot -f"),
        applet("triple", "reboot=t", "reboot -f"),
    ]
    .join("\n");

    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let rom = folder.path().join("laboratory.rom");
    let mut torn = image.read("bzImage")?;
    torn.truncate(torn.len() / 2);
    let parts = image
        .parts()?
        .machine(&machine_file)
        .file("guest/torn", torn)
        .file("guest/rotten", image.read("bzImage")?)
        .file("guest/fat", vec![0x55; 3 << 20]);
    let mut bytes = parts.rom()?;
    let (rotten, _) = place(&bytes, "guest/rotten")?;
    bytes[rotten + 1000] ^= 0x20;
    std::fs::write(&rom, bytes)?;

    let mut machine = Builder::rom(&rom).memory_mib(4096).boot()?;
    machine.console.expect_all(&[
        "daruma: good: ready: ",
        "daruma: many: ready: ",
        "daruma: none: failed: ",
        "daruma: crowd: failed: ",
        "daruma: typo: failed: ",
        "daruma: huge: failed: ",
        "daruma: lost: failed: ",
        "daruma: text: failed: ",
        "daruma: torn: failed: ",
        "daruma: rotten: failed: ",
        "daruma: fat: failed: ",
        "daruma: off: stopped",
        "daruma: triple: failed: ",
        // A reboot that the guest asked for is granted.
        "daruma: again: starting: again",
    ])?;
    let console = machine.console.transcript();
    let reason = |guest: &str| {
        let line = format!("daruma: {guest}");
        let mut lines = console.lines().filter(|text| text.contains(&line));
        lines
            .find_map(|text| text.split_once(": failed: "))
            .map_or("", |(_, reason)| reason)
    };
    for (guest, words) in [
        ("none", &["vcpus", "0", "32"][..]),
        ("crowd", &["vcpus", "33", "32"]),
        ("typo", &["memroy", "memory", "line"]),
        // The second of its name; the first one runs.
        ("good-line-", &["good", "line 4"]),
        ("huge", &["65536", "MiB"]),
        ("lost", &["no/such/file"]),
        ("text", &["daruma/cmdline"]),
        ("torn", &["guest/torn", "truncated"]),
        ("rotten", &["guest/rotten", "hash"]),
        ("fat", &["guest/fat", "memory"]),
        ("triple", &["triple fault"]),
    ] {
        for word in words {
            ensure!(
                reason(guest).contains(word),
                "{guest}: {:?} lacks {word:?}",
                reason(guest)
            );
        }
    }
    Ok(())
}
