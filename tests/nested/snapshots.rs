//! Snapshots of a guest that works: what it is after a restore is what it was, memory, disk and devices together.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tests::qemu::Builder;
use tests::{Console, Image};

use crate::shell::{ask, log_in, view};

/// A number that a command prints.
fn number(console: &mut Console, command: &str) -> Result<u64> {
    let text = ask(console, command)?;
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits
        .parse()
        .with_context(|| format!("{command} printed {text:?}"))
}

/// Makes five forks of the Debian, each of which has to be a machine of its own on the network.
fn fork_five(console: &mut Console) -> Result<()> {
    console.send("fork debian 5\r")?;
    let lines = [1, 2, 3, 4, 5].map(|number| format!("daruma: debian-{number}: ready: "));
    console.expect_all(&lines.each_ref().map(String::as_str))?;
    let mut addresses = BTreeSet::new();
    // A fork's card is exchanged while it runs, and asks for an address.
    for _ in 0..150 {
        console.send("list\r")?;
        console.expect("no guest")?;
        let table = console.expect("debian-5 ")? + &console.expect("\r\n")?;
        let address = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.get(1).filter(|name| name.starts_with("debian-"))?;
            words.get(6)?.parse::<Ipv4Addr>().ok()
        };
        addresses = table.lines().filter_map(address).collect();
        if addresses.len() == 5 {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(2));
    }
    bail!("The forks have only these addresses: {addresses:?}")
}

/// A Debian is taken a snapshot of while it writes, then its disk and its memory are wrecked. It goes on from the snapshot
/// with the shell that was open, the number that only its memory had, and a disk that agrees with it. Then it is forked.
#[test]
fn a_wrecked_debian_goes_on_from_its_snapshot_and_five_forks_are_machines_of_their_own()
-> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let disk = image.private_disk(folder.path())?;
    let mut machine = Builder::rom(&image.path("daruma.rom"))
        .disk(&disk, true)
        .memory_mib(4096)
        .boot()?;
    let console = &mut machine.console;
    console.expect("daruma: debian: ready: ")?;
    view(console, 2)?;
    log_in(console, Some("daruma"))?;

    // In memory only: a variable of this shell. On the disk: a counter that goes up, each step made durable.
    console.send("nonce=$RANDOM$RANDOM; boot=$(cat /proc/sys/kernel/random/boot_id)\r")?;
    console.send("(i=0; while :; do i=$((i+1)); echo $i >/root/new; sync; mv /root/new /root/count; done) &\r")?;
    let nonce = number(console, "echo $nonce")?;
    console
        .send("until [ $(cat /root/count) -gt 3 ]; do sleep 1; done; echo counted-$((6*7))\r")?;
    console.expect("counted-42")?;
    view(console, 0)?;
    console.send("snapshot debian\r")?;
    let (which, text) = console.expect_any(&[" of debian: ", "took no snapshot", "cannot"])?;
    ensure!(which == 0, "no snapshot: {text}");
    let digits = text.trim_end_matches(" of debian: ");
    let snapshot = digits.rsplit(' ').next().unwrap_or_default().to_owned();
    console.expect("paused for")?;
    console.expect(" ms")?;
    view(console, 2)?;
    let counted = number(console, "cat /root/count")?;
    console.send("echo late > /root/late; sync\r")?;

    // The disk goes first, then the kernel.
    console.send(
        "kill %1; dd if=/dev/zero of=/dev/vda bs=1M count=48 oflag=direct; echo wrecked-$((6*7))\r",
    )?;
    console.expect("wrecked-42")?;
    console.send("echo c > /proc/sysrq-trigger\r")?;
    view(console, 0)?;
    // By itself it goes back to a checkpoint, which may be of a disk that was wrecked already.
    console.expect("daruma: debian: unhealthy: its kernel has panicked")?;
    console.expect("daruma: debian: ready: ")?;
    console.send(&format!("restore debian {snapshot}\r"))?;
    // It may have gone back to the same one by itself.
    console.expect(&format!("daruma: debian: restoring: snapshot {snapshot}\r"))?;
    console.expect(&format!("from snapshot {snapshot}\r"))?;

    view(console, 2)?;
    console.send("\r")?;
    ensure!(number(console, "echo $nonce")? == nonce, "another shell");
    let after = number(console, "cat /root/count")?;
    ensure!(
        after <= counted + 3,
        "{after} after {counted}: the disk is newer than the memory"
    );
    // It goes on counting, on a disk that is sound, in the boot that it was in.
    console.send(&format!(
        "until [ $(cat /root/count) -gt {counted} ]; do sleep 1; done; echo counted-$((7*7))\r"
    ))?;
    console.expect("counted-49")?;
    console.send("[ $boot = $(cat /proc/sys/kernel/random/boot_id) ] && [ ! -e /root/late ] && echo same-$((5*5))\r")?;
    console.expect("same-25")?;
    ensure!(
        number(console, "dmesg | grep -c 'EXT4-fs error'")? == 0,
        "its file system is damaged"
    );
    // Six guests that write all the time are more than two emulated processors can serve.
    console.send("kill %1; wait; echo quiet-$((6*6))\r")?;
    console.expect("quiet-36")?;
    view(console, 0)?;
    fork_five(console)?;
    console.send("poweroff\r")?;
    let (status, _) = machine.wait_off()?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}
