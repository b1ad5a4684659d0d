//! What a guest's memory costs its host: a VMM started by hand on the host's shell, with the guest's own configuration and
//! a balloon beside it.

use anyhow::{Context, Result, ensure};
use tests::Image;
use tests::qemu::Builder;

use crate::shell::ask;

const MACHINE: &str = r#"
[machine]
name = "balloon"

[[guest]]
name = "pocket"
memory = "192M"
network = "none"
kernel = "flash:daruma/kernel"
cmdline = "console=ttyS0 root=/dev/vda ro quiet loglevel=3"
ready = { console = "pocket login:" }
[[guest.disk]]
source = "flash:guest/pocket/root.erofs"
read-only = true
"#;

/// Starts a second guest like `pocket` that does without 48 MiB and reports free pages, with its serial line at /run/in and /run/out.
const START: &str = r#"
cp /proc/1/exe /run/daruma-vmm; mkfifo /run/in; exec 9<>/run/in;
sed 's/^{/{"balloon":{"amount_mib":48,"deflate_on_oom":false,"stats_polling_interval_s":1,"free_page_reporting":true},/; s|"uds_path":"[^"]*"|"uds_path":"/run/two"|' /run/daruma/pocket/vm.json > /run/vm.json;
/run/daruma-vmm --id two --no-api --enable-pci --config-file /run/vm.json <&9 >/run/out 2>&1 & vmm=$!;
await() { until grep -q "$1" /run/out; do sleep 1; done; };
say() { echo "$1" >&9; };
rss() { awk '/^VmRSS/ { print $2 }' /proc/$vmm/status; };
await login:; say root; await '# '
"#;

#[test]
fn what_a_guest_frees_goes_back_to_the_host() -> Result<()> {
    const WRITTEN_KIB: u64 = 48 << 10;

    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let rom = folder.path().join("balloon.rom");
    std::fs::write(&rom, image.parts()?.machine(MACHINE).rom()?)?;
    let mut machine = Builder::rom(&rom).boot()?;
    let console = &mut machine.console;
    console.expect("daruma: pocket: ready: ")?;
    console.send("shell\r")?;
    console.expect("# ")?;
    for line in START.trim().lines() {
        ask(console, line.trim_end_matches([';', ' ']))?;
    }
    // What is in the balloon is not the guest's: its own account says when all of it is there.
    ask(
        console,
        "say 'until [ $(grep MemTotal /proc/meminfo | tr -dc 0-9) -lt $(((192-48)*1024)) ]; do sleep 1; done; \
         echo inflated-$((6*7))'; await inflated-42",
    )?;

    let mut resident = |what: &str| -> Result<u64> {
        let text = ask(console, what)?;
        let number = text.lines().find_map(|line| line.trim().parse().ok());
        number.with_context(|| format!("no number in: {text}"))
    };
    let before = resident("rss")?;
    let full = resident(
        "say 'dd if=/dev/zero of=/root/x bs=1M count=48 && echo wrote-$((6*7))'; \
         await wrote-42; rss",
    )?;
    ensure!(
        full >= before + WRITTEN_KIB * 3 / 4,
        "{before} KiB, then {full}"
    );
    // The guest's kernel reports some seconds after it has freed; without that this waits until the test is ended.
    let limit = full - WRITTEN_KIB * 3 / 4;
    let freed = resident(&format!(
        "say 'rm /root/x'; until [ $(rss) -lt {limit} ]; do sleep 1; done; rss"
    ))?;
    println!(
        "VmRSS of the VMM: {before} KiB, {full} KiB with a file of 48 MiB, {freed} KiB without"
    );
    ensure!(freed < limit, "{full} KiB, then {freed}");
    Ok(())
}
