//! The VMM as its parent sees it, on this machine's own `/dev/kvm`.
//!
//! The guests are a few instructions of 32-bit code in an ELF image with a PVH note: any KVM runs them, also one that
//! only emulates instructions. Without `/dev/kvm` these tests fail, unless `DARUMA_NO_KVM=1` says that this is known.
#![expect(
    clippy::unwrap_used,
    reason = "a test whose world cannot be set up has failed"
)]

#[expect(dead_code, reason = "snapshots' tests need more of it")]
mod guest;
mod hostile;
mod hotplug;
mod process;
mod trace;

use guest::Code;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use process::{Run, config, have_kvm};

/// Runs `code` as the whole guest.
fn run(code: &Code) -> Run {
    process::run(&config(code.image(), "", 2), &[])
}

#[test]
fn a_guest_writes_to_its_serial_port() {
    if !have_kvm() {
        return;
    }
    let run = run(&Code::new().print("daruma").power_off());
    assert_eq!(run.stdout, b"daruma", "{run:?}");
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn string_output_reaches_the_serial_port_byte_by_byte() {
    if !have_kvm() {
        return;
    }
    let run = run(&Code::new().print_string("rep outsb").power_off());
    assert_eq!(run.stdout, b"rep outsb", "{run:?}");
}

#[test]
fn the_last_line_of_metrics_tells_what_the_guest_did() {
    if !have_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics");
    let code = Code::new().print("daruma").power_off();
    let path_text = path.to_str().unwrap();
    let config = config(code.image(), "", 2);
    let run = process::run_with_arguments(&config, &["--metrics-path", path_text]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 1);
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["uart"]["write_count"], 6, "{line}");
    // The letters, and the power register.
    assert_eq!(line["vcpu"]["exit_io_out"], 7, "{line}");
    assert_eq!(line["vcpu"]["failures"], 0, "{line}");
    assert!(line["api_server"]["process_startup_time_us"].as_u64() > Some(0));
}

#[test]
fn a_console_that_nobody_reads_does_not_stop_the_guest() {
    if !have_kvm() {
        return;
    }
    // More than a pipe and the VMM's buffer hold together; the pipe is read when the VMM has ended.
    let run = run(&Code::new().flood(200_000).print("the end").power_off());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout.len() < 200_000);
    assert!(run.stderr.contains("output is lost"), "{}", run.stderr);
}

#[test]
fn power_off_reset_and_triple_fault_are_told_apart() {
    if !have_kvm() {
        return;
    }
    for (code, exit, word) in [
        (Code::new().power_off(), 0, "poweroff"),
        (Code::new().reset_by_keyboard_controller(), 16, "reboot"),
        (Code::new().reset_by_acpi(), 16, "reboot"),
        (Code::new().jump_to_reset_vector(), 16, "reboot"),
        (Code::new().triple_fault(), 17, "triple-fault"),
    ] {
        let run = run(&code);
        assert_eq!(run.code, Some(exit), "{word}: {run:?}");
        let last = run.events.last().unwrap();
        assert_eq!(last["event"], "exit", "{run:?}");
        assert_eq!(last["reason"], word, "{run:?}");
    }
}

#[test]
fn events_come_in_order_and_count_from_the_parents_start() {
    if !have_kvm() {
        return;
    }
    // Both forms of the boot timer; a second knock is not heard.
    for code in [
        Code::new().boot_timer_port().boot_timer_memory(),
        Code::new().boot_timer_memory().boot_timer_port(),
    ] {
        let run = run(&code.power_off());
        let names: Vec<_> = run
            .events
            .iter()
            .map(|event| event["event"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["running", "boot-timer", "exit"], "{run:?}");
        let times: Vec<_> = run.events[..2]
            .iter()
            .map(|event| event["us"].as_u64().unwrap())
            .collect();
        assert!(times.is_sorted(), "{run:?}");
    }
}

#[test]
fn a_panic_is_told_and_the_guest_goes_on() {
    if !have_kvm() {
        return;
    }
    let run = run(&Code::new().panic().panic().print("on").power_off());
    assert_eq!(run.stdout, b"on", "{run:?}");
    let panics = run.events.iter().filter(|e| e["event"] == "panicked");
    assert_eq!(panics.count(), 1, "{run:?}");
}

#[test]
fn a_guest_that_leaves_its_watchdog_alone_is_ended() {
    if !have_kvm() {
        return;
    }
    for hang in [Code::spin, Code::halt] {
        let run = run(&hang(Code::new().watchdog()));
        assert_eq!(run.code, Some(18), "{run:?}");
        assert_eq!(run.events.last().unwrap()["reason"], "watchdog", "{run:?}");
    }
}

#[test]
fn input_reaches_the_guest_and_its_end_does_not_end_the_guest() {
    if !have_kvm() {
        return;
    }
    // The guest waits for two bytes and gives them back; standard input ends behind them.
    let code = Code::new().echo().echo().print("!").power_off();
    let run = process::run_with_input(&config(code.image(), "", 2), b"ab");
    assert_eq!(run.stdout, b"ab!", "{run:?}");
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn stop_ends_a_guest_that_does_nothing() {
    if !have_kvm() {
        return;
    }
    for code in [Code::new().halt(), Code::new().spin()] {
        let run = process::run(&config(code.image(), "", 2), &[r#"{"action":"stop"}"#]);
        assert_eq!(run.code, Some(0), "{run:?}");
        assert_eq!(run.events.last().unwrap()["reason"], "stopped", "{run:?}");
    }
}

#[test]
fn the_power_button_sets_the_event_register() {
    if !have_kvm() {
        return;
    }
    let code = Code::new()
        .wait_for_power_button()
        .print("pressed")
        .power_off();
    let run = process::run(
        &config(code.image(), "", 2),
        &[r#"{"action":"power-button"}"#],
    );
    assert_eq!(run.stdout, b"pressed", "{run:?}");
}

#[test]
fn the_guest_finds_memory_command_line_and_tables_at_its_entry() {
    if !have_kvm() {
        return;
    }
    let code = Code::new().print_start_info().power_off();
    let run = process::run(&config(code.image(), "", 2), &[]);
    // Magic number of the start info, first byte of the command line, "RSD" of the RSDP.
    assert_eq!(run.stdout, b"\x78\xc5\x6e\x33cRSD", "{run:?}");
}

#[test]
fn a_multiboot_kernel_finds_what_it_was_promised() {
    if !have_kvm() {
        return;
    }
    let code = Code::new().print_multiboot_info().power_off();
    let run = process::run(&config(code.multiboot_image(), "", 2), &[]);
    // The magic number, the flags, "c" of the command line, "D" of the loader.
    assert_eq!(run.stdout, b"\x02\xb0\xad\x2b\x45\x02\0\0cD", "{run:?}");
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn every_vcpu_can_be_created() {
    if !have_kvm() {
        return;
    }
    for count in ["2", "32"] {
        let code = Code::new().print("up").power_off();
        let mut config = config(code.image(), "", 2);
        config.text = config
            .text
            .replace("\"vcpu_count\": 1", &format!("\"vcpu_count\": {count}"));
        let run = process::run(&config, &[]);
        assert_eq!(
            (run.code, &run.stdout[..]),
            (Some(0), &b"up"[..]),
            "{count} vCPUs: {run:?}"
        );
    }
}

#[test]
fn virtio_devices_answer_at_their_places() {
    if !have_kvm() {
        return;
    }
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let drives = format!(
        r#", "entropy": {{}}, "drives": [{{"drive_id": "d", "is_root_device": false, "path_on_host": "{}"}}]"#,
        disk.path().display()
    );
    let code = Code::new()
        .print_memory(0xd000_1000, 12)
        .print_memory(0xd000_2008, 4)
        .power_off();
    let run = process::run(&config(code.image(), &drives, 2), &[]);
    // "virt", version 2, device 2 (block); device 4 (entropy).
    assert_eq!(run.stdout, b"virt\x02\0\0\0\x02\0\0\0\x04\0\0\0", "{run:?}");
}

#[test]
fn kvms_own_counters_are_told_to_who_asks() {
    if !have_kvm() {
        return;
    }
    let guest = Code::new().spin();
    let exits = |event: &serde_json::Value| event["vcpus"][0]["exits"].as_u64().unwrap();
    let ask = r#"{"action":"stats"}"#;
    let run = process::talk(
        &config(guest.image(), "", 2),
        &["--jail"],
        |event, parent| match event["event"].as_str() {
            Some("running") => parent.say(ask),
            // The vCPU may not have run yet.
            Some("stats") if exits(event) == 0 => parent.say(ask),
            Some("stats") => parent.say(r#"{"action":"stop"}"#),
            _ => {}
        },
    );
    let mut stats = run.events.iter().filter(|event| event["event"] == "stats");
    assert!(
        stats.next_back().is_some_and(|event| exits(event) > 0),
        "{run:?}"
    );
}

#[test]
fn a_vmm_that_is_killed_in_its_jail_is_told_of_and_leaves_no_socket() {
    if !have_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vsock");
    let vsock = format!(
        r#", "vsock": {{"guest_cid": 3, "uds_path": "{}"}}"#,
        socket.display()
    );
    let guest = Code::new().spin();
    let run = process::talk(
        &config(guest.image(), &vsock, 2),
        &["--jail"],
        |event, parent| {
            if event["event"] == "running" {
                assert!(socket.exists());
                kill(Pid::from_raw(parent.jailed()), Signal::SIGKILL).unwrap();
            }
        },
    );
    let exit = run.events.last().unwrap();
    assert_eq!(exit["event"], "exit", "{run:?}");
    assert_eq!(exit["message"], "The VMM was killed by SIGKILL", "{run:?}");
    // The keeper dies of the same.
    assert_eq!(run.code, None, "{run:?}");
    assert!(!socket.exists(), "{run:?}");
}

#[test]
fn a_guest_runs_in_memory_that_virtiofsd_shares() {
    if !have_kvm() || !process::is_root() {
        return println!("skipped: virtiofsd needs root");
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let mut program = std::process::Command::new("virtiofsd")
        .arg(format!("--socket-path={}", socket.display()))
        .args(["-f", "-o"])
        .arg(format!("source={}", folder.path().display()))
        .spawn()
        .expect("virtiofsd is on the search path of `cargo xtask test`");
    while !socket.exists() {
        assert!(program.try_wait().unwrap().is_none(), "virtiofsd has ended");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let fs = format!(
        r#", "fs": [{{"tag": "share", "socket": "{}"}}]"#,
        socket.display()
    );
    let guest = Code::new().print("shared").power_off();
    let run = process::run(&config(guest.image(), &fs, 2), &[]);
    // Its one connection has ended.
    program.wait().unwrap();
    assert_eq!(run.stdout, b"shared", "{run:?}");
    assert_eq!(run.code, Some(0), "{run:?}");
}
