//! What the supervisor and its console promise.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::terminal::{Machine, guest};
use super::watching;

type Scenario = fn() -> Result<()>;

pub const ALL: &[(&str, Scenario)] = &[
    (
        "guests_get_ready_and_shut_down_in_order",
        guests_get_ready_and_shut_down_in_order,
    ),
    (
        "killed_vmm_leaves_the_others_alone_and_comes_back",
        killed_vmm,
    ),
    (
        "bad_guests_fail_and_the_others_run",
        bad_guests_fail_and_the_others_run,
    ),
    (
        "disk_under_two_names_goes_to_the_first_guest",
        disk_under_two_names,
    ),
    (
        "background_output_is_kept_and_keys_are_raw",
        background_output_and_keys,
    ),
    (
        "guest_that_reads_nothing_blocks_nobody",
        guest_that_reads_nothing,
    ),
    (
        "flood_of_output_leaves_the_host_responsive",
        flood_of_output,
    ),
    ("stubborn_guests_are_stopped_then_killed", stubborn_guests),
    ("reboot_is_followed_by_a_start_under_every_policy", reboot),
    ("guest_boots_what_its_own_disk_says", own_disk),
    ("last_words_of_a_vmm_are_the_detail", last_words),
    ("vmm_inherits_four_descriptors", descriptors),
    ("commands_suggest_the_nearest", commands),
    ("metrics_come_by_console_and_by_socket", metrics),
    ("what_is_said_inside_of_a_guest_counts", said_inside),
    ("what_guests_use_is_seen_from_elsewhere", watching::top),
    (
        "all_guests_are_shown_on_the_hosts_console",
        watching::whole_screen,
    ),
    ("console_is_had_from_elsewhere", watching::console),
    ("term_signal_shuts_down_cleanly", term_signal),
];

fn said_inside() -> Result<()> {
    const WELL: &str = "call-1024={'beat':1,'well':true,'load':0.25,'available_kib':2048}";
    const ILL: &str = "call-1024={'beat':2,'well':false,'why':'tired'}";
    let by_port = |name: &str, script: &str, more: &str, port: u32| {
        let rule = format!("{{ vsock = {port} }}");
        guest(name, script, more).replace("{ console = \"ready now\" }", &rule)
    };
    let once = |name: &str| format!("{WELL} once=FOLDER/{name}");
    let toml = by_port("knocks", "call-52=hello serve", "", 52)
        + &by_port("well", &format!("{WELL} obey"), "stop-timeout = 60", 1024)
        + &by_port("ill", &format!("{} {ILL} {ILL} serve", once("ill")), "", 1024)
        + &by_port("once", &format!("{WELL} {ILL} {WELL} {ILL} serve"), "", 1024)
        + &by_port("nonsense", "call-1024=hello call-1025=x serve", "", 1024)
        // The last: its table would take what follows.
        + &by_port("silent", &format!("{} serve", once("silent")), "[guest.health]\nheartbeat = 1", 1024);
    let mut machine = Machine::start(&toml)?;
    machine.expect_all(&[
        "daruma: knocks: ready: ",
        "daruma: well: ready: ",
        "daruma: once: ready: ",
        "daruma: ill: unhealthy: its agent says: tired",
        "daruma: silent: unhealthy: no sign of life for 2 s",
    ])?;
    // They are started again, and are well.
    machine.type_in("show well\rshow once\rshow knocks\rshow nonsense\r")?;
    machine.expect("health     well, load 0.25, 2 MiB available")?;
    machine.expect("health     not well, load 0.00")?;
    machine.expect("health     watched from outside only")?;
    // What it says makes no guest ready.
    machine.expect("state      starting")?;
    // It does not heed the power button.
    machine.type_in("stop well\r")?;
    machine.expect("daruma: well: stopped: powered off")?;
    Ok(())
}

fn metrics() -> Result<()> {
    let toml = guest("a", "print=ready_now serve", "") + &guest("b", "print=ready_now deaf", "");
    let mut machine = Machine::start(&toml)?;
    machine.expect_all(&["daruma: a: ready", "daruma: b: ready"])?;
    machine.type_in("metrics a\r")?;
    machine.expect("a\r\n  block: read_bytes ")?;
    machine.expect("\r\n  uart: write_count 42")?;

    let socket = format!("/run/daruma-{}/control.sock", machine.pid());
    let socket = Path::new(&socket);
    let ask = |guest: Option<&str>| {
        let guest = guest.map(str::to_owned);
        host::remote::ask(
            socket,
            &host::remote::Command::Metrics { guest },
            |_, _, _| (),
        )
    };
    let answer = ask(Some("a"))?;
    ensure!(answer["a"]["uart"]["write_count"] == 42, "{answer}");
    for (guest, reason) in [
        (Some("c"), "no guest 'c'"),
        // Its VMM is deaf: the question ends, and nothing else waits for it.
        (None, "no answer from the VMM of b"),
    ] {
        let refused = ask(guest).err().context("an answer")?;
        ensure!(refused.to_string().contains(reason), "{refused}");
    }
    machine.type_in("kill b\r")?;
    machine.expect("daruma: b: stopped")?;
    Ok(())
}

const QUIET: &str = "restart = \"never\"";

fn guests_get_ready_and_shut_down_in_order() -> Result<()> {
    let by_timer = guest("timer", "boot-timer serve", "")
        .replace("{ console = \"ready now\" }", "{ boot-timer = true }");
    let toml = guest("a", "print=ready_now serve", "") + &guest("b", "print=ready_now serve", "");
    let machine = Machine::start_with(&(toml + &by_timer), &["--onready"])?;
    let folder = format!("/run/daruma-{}", machine.pid());
    let (shown, code) = machine.end()?;
    for name in ["a", "b", "timer"] {
        let states: Vec<_> = shown
            .lines()
            .filter_map(|line| line.strip_prefix(&format!("daruma: {name}: ")))
            .map(|state| state.split_once(':').map_or(state, |(word, _)| word))
            .collect();
        ensure!(
            states == ["starting", "ready", "stopped"],
            "{name}: {states:?} in {shown}"
        );
    }
    let time = shown
        .lines()
        .find_map(|line| line.strip_prefix("daruma: a: ready: "));
    let time = time
        .and_then(|text| text.strip_suffix(" ms"))
        .context("no time")?;
    ensure!(time.parse::<u64>().is_ok(), "{time}");
    ensure!(code == Some(0), "{code:?}");
    ensure!(!Path::new(&folder).exists(), "{folder} was left behind");
    Ok(())
}

/// An ext4 at `image` with these files.
fn ext4(folder: &Path, files: &[(&str, &str)]) -> Result<PathBuf> {
    let (tree, image) = (folder.join("tree"), folder.join("image"));
    for (path, text) in files {
        let path = tree.join(path);
        std::fs::create_dir_all(path.parent().context("no folder")?)?;
        std::fs::write(path, text)?;
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let made = Command::new("mke2fs")
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .args([&tree, &image])
        .arg("2M")
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    Ok(image)
}

fn own_disk() -> Result<()> {
    let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
    let entry = "label a\nlinux /k\ninitrd /i\nappend files print=ready_now serve\n";
    let files = [
        ("k", "the kernel"),
        ("i", "the initrd"),
        ("extlinux/extlinux.conf", entry),
    ];
    let good = ext4(folders[0].path(), &files)?;
    let bad = ext4(folders[1].path(), &[("etc/motd", "hello")])?;
    let own = |name: &str, disk: &Path| {
        let disk = format!("[[guest.disk]]\nsource = \"{}\"", disk.display());
        guest(name, "", &disk).replace("kernel = \"kernel\"", "kernel = \"disk\"")
    };
    let mut machine = Machine::start(&(own("good", &good) + &own("bad", &bad)))?;
    machine.expect_all(&[
        "daruma: good: ready",
        "daruma: bad: failed: cannot boot from",
    ])?;
    machine.expect("The disk has no boot entry")?;
    let copies = format!("/run/daruma-{}/good", machine.pid());
    ensure!(Path::new(&copies).join("vm.json").exists());
    for name in ["disk-kernel", "disk-initrd"] {
        ensure!(
            !Path::new(&copies).join(name).exists(),
            "{name} still takes memory"
        );
    }
    machine.type_in("\x1d1")?;
    machine.expect(r#"[Some("the kernel"), Some("the initrd")]"#)?;
    // Read anew at every start: a kernel upgrade takes effect at the next reboot.
    ext4(folders[0].path(), &[("k", "the next kernel")])?;
    machine.type_in("\x1d0")?;
    machine.type_in("restart good\r")?;
    machine.expect("daruma: good: ready")?;
    machine.type_in("\x1d1")?;
    machine.expect(r#"[Some("the next kernel"), Some("the initrd")]"#)?;
    machine.type_in("\x1d0poweroff\r")?;
    ensure!(machine.end()?.1 == Some(0));
    Ok(())
}

/// Waits for `pid=N;` in the output of a guest that is shown.
fn pid(machine: &mut Machine, name: &str, number: usize) -> Result<String> {
    machine.type_in(&format!("\x1d{number}"))?;
    machine.expect(&format!("--- {name}"))?;
    machine.expect("pid=")?;
    machine.expect(";")
}

fn is_running(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

fn killed_vmm() -> Result<()> {
    let toml =
        guest("a", "pid print=ready_now serve", "") + &guest("b", "pid print=ready_now serve", "");
    let mut machine = Machine::start(&toml)?;
    machine.expect_all(&["daruma: a: ready", "daruma: b: ready"])?;
    let (a, b) = (pid(&mut machine, "a", 1)?, pid(&mut machine, "b", 2)?);
    machine.type_in("\x1d0")?;
    machine.expect("--- host")?;
    ensure!(Command::new("kill").args(["-9", &a]).status()?.success());
    machine.expect("daruma: a: stopped: VMM killed by SIGKILL; starts again at once")?;
    machine.expect("daruma: a: starting: again")?;
    let between = machine.expect("daruma: a: ready")?;
    ensure!(!between.contains("daruma: b"), "{between}");
    ensure!(is_running(&b) && !is_running(&a));
    machine.type_in("poweroff\r")?;
    ensure!(machine.end()?.1 == Some(0));
    ensure!(!is_running(&b));
    Ok(())
}

fn bad_guests_fail_and_the_others_run() -> Result<()> {
    let toml = guest("typo", "serve", "vcpu = 1")
        + &guest("none", "serve", "").replace("\"kernel\"", "\"nokernel\"")
        + &guest("good", "print=ready_now serve", "")
        + &guest("good", "serve", "");
    let mut machine = Machine::start_with(&toml, &["--onready"])?;
    machine.expect("daruma: typo: failed: machine.toml line 8: unknown key 'vcpu'")?;
    machine.expect("did you mean 'vcpus'?")?;
    machine.look_back();
    let missing = format!(
        "cannot open image {}/nokernel",
        machine.folder.path().display()
    );
    machine.expect_all(&[
        &format!("daruma: none: failed: {missing}: No such file"),
        "daruma: good-line-25: failed: machine.toml line 25: guest name 'good' is already taken in line 17",
        "daruma: good: ready: ",
    ])?;
    machine.expect("daruma: good: stopped: ")?;
    ensure!(machine.end()?.1 == Some(0));
    Ok(())
}

fn disk_under_two_names() -> Result<()> {
    let disk = |source: &str| format!("{QUIET}\n[[guest.disk]]\nsource = \"{source}\"");
    let toml = guest("first", "print=ready_now serve", &disk("disk"))
        + &guest("second", "print=ready_now serve", &disk("disk:alias"))
        + &guest("third", "print=ready_now serve", &disk("other"));
    let mut machine = Machine::start(&toml)?;
    machine.expect_all(&["daruma: first: ready", "daruma: third: ready"])?;
    machine.look_back();
    machine.expect("daruma: second: failed: disk ")?;
    machine.expect("alias is already used by guest 'first'")?;
    Ok(())
}

fn background_output_and_keys() -> Result<()> {
    let toml = guest("a", "print=hello_from_a echo print=ready_now serve", "")
        + &guest("b", "print=ready_now serve", "");
    let mut machine = Machine::start(&toml)?;
    machine.expect_all(&["daruma: a: ready", "daruma: b: ready", "1 a, 2 b"])?;
    machine.type_in("\x1d1")?;
    machine.expect("--- a (Ctrl-] 0 for the host) ---\r\nhello from a\r\nready now\r\n")?;
    machine.type_in("x\x03\r\x1d\x1d")?;
    machine.expect("<78><03><0d><1d>")?;
    // Restarted while its own view hides the host's lines.
    machine.type_in("\x1d0restart b\r")?;
    machine.expect("daruma: b: stopped: powered off")?;
    machine.expect("daruma: b: starting")?;
    machine.expect("daruma: b: ready")?;
    machine.type_in("\x1d1")?;
    machine.expect("--- a")?;
    // What was seen before is shown again, as far as it fits a tail.
    machine.expect("<78><03><0d><1d>")?;
    Ok(())
}

fn guest_that_reads_nothing() -> Result<()> {
    let mut machine = Machine::start(&guest("a", "print=ready_now serve", ""))?;
    machine.expect("daruma: a: ready")?;
    machine.type_in("\x1d1")?;
    machine.expect("ready now")?;
    // More than the pipe and the host's buffer hold.
    machine.type_in(&"k".repeat(200 * 1024))?;
    machine.expect("\x07")?;
    machine.type_in("\x1d0list\r")?;
    machine.expect("all guests are ready")?;
    machine.type_in("poweroff\r")?;
    machine.expect("daruma: a: stopped: powered off")?;
    Ok(())
}

fn flood_of_output() -> Result<()> {
    let toml = guest("loud", "flood=20000 print=ready_now serve", "")
        + &guest("calm", "print=ready_now serve", "");
    let mut machine = Machine::start(&toml)?;
    machine.type_in("\x1d1\x1d0list\r")?;
    machine.expect("no guest")?;
    machine.expect_all(&["daruma: calm: ready", "daruma: loud: ready"])?;
    Ok(())
}

fn stubborn_guests() -> Result<()> {
    let toml = guest("stubborn", "print=ready_now stubborn", "stop-timeout = 0")
        + &guest("deaf", "print=ready_now deaf", "stop-timeout = 0")
        + &guest("asleep", "serve", "autostart = false");
    let mut machine = Machine::start(&toml)?;
    machine.expect_all(&["daruma: stubborn: ready", "daruma: deaf: ready"])?;
    machine.type_in("poweroff\r")?;
    machine.expect_all(&[
        "host: stubborn: did not power off in time, its VMM is told to stop",
        "daruma: stubborn: stopped: stopped",
        "host: deaf: its VMM did not stop, it is killed",
        "daruma: deaf: stopped: killed",
    ])?;
    let (shown, code) = machine.end()?;
    ensure!(
        code == Some(0) && !shown.contains("daruma: asleep"),
        "{code:?} {shown}"
    );
    Ok(())
}

fn reboot() -> Result<()> {
    let script = "print=ready_now once=FOLDER/marker exit=16";
    let mut machine = Machine::start(&guest("a", script, QUIET))?;
    machine.expect("daruma: a: ready")?;
    machine.expect("daruma: a: stopped: rebooted; starts again at once")?;
    machine.expect("daruma: a: starting: again")?;
    machine.expect("daruma: a: ready")?;
    Ok(())
}

fn last_words() -> Result<()> {
    let toml = guest("error", "log=first log=no_such_kernel exit=1", QUIET)
        + &guest("refused", "log=unknown_section exit=152", "")
        + &guest("fault", "exit=17", QUIET);
    let (shown, code) = Machine::start(&toml)?.end()?;
    for line in [
        "daruma: error: failed: VMM error: no such kernel\r\n",
        "daruma: refused: failed: the VMM refused its configuration: unknown section\r\n",
        "daruma: fault: failed: triple fault",
    ] {
        ensure!(shown.contains(line), "{line:?} not in:\n{shown}");
    }
    // Nothing runs any more, and not because someone wanted that.
    ensure!(code == Some(1), "{code:?}");
    Ok(())
}

fn descriptors() -> Result<()> {
    let script = "descriptors print=ready_now serve";
    let toml = guest("a", script, "") + &guest("b", script, "") + &guest("c", script, "");
    let mut machine = Machine::start(&toml)?;
    machine.expect_all(&["daruma: a: ready", "daruma: b: ready", "daruma: c: ready"])?;
    for number in 1..=3 {
        machine.type_in(&format!("\x1d{number}"))?;
        machine.expect("descriptors=4;")?;
    }
    Ok(())
}

fn commands() -> Result<()> {
    let mut machine = Machine::start(&guest("pocket", "log=a_line print=ready_now serve", ""))?;
    machine.expect("daruma: pocket: ready")?;
    for (command, answer) in [
        ("lsit", "did you mean 'list'?"),
        ("stop poket", "no guest 'poket'; did you mean 'pocket'?"),
        ("start", "which guest? start GUEST"),
        ("start pocket", "guest 'pocket' runs"),
        ("log pocket", "a line"),
        ("shell", "ordinary Linux"),
        ("help", "poweroff"),
    ] {
        machine.type_in(&format!("{command}\r"))?;
        machine.expect(answer).with_context(|| command)?;
    }
    machine.type_in("stop pocket\r")?;
    machine.expect("daruma: pocket: stopped: powered off")?;
    // The last guest is down: there is nothing left to supervise.
    ensure!(machine.end()?.1 == Some(0));
    Ok(())
}

fn term_signal() -> Result<()> {
    let mut machine = Machine::start(&guest("a", "print=ready_now serve", ""))?;
    machine.expect("daruma: a: ready")?;
    ensure!(
        Command::new("kill")
            .arg(machine.pid().to_string())
            .status()?
            .success()
    );
    machine.expect("daruma: a: stopped: powered off")?;
    ensure!(machine.end()?.1 == Some(0));
    Ok(())
}
