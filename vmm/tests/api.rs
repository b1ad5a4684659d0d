//! The API of a real VMM, with guests of a few instructions on this machine's own `/dev/kvm`.
#![expect(
    clippy::unwrap_used,
    reason = "a test whose world cannot be set up has failed"
)]

mod client;
#[expect(dead_code, reason = "other tests need more of it")]
mod guest;
#[expect(dead_code, reason = "other tests need more of it")]
mod trace;

use std::io::Write;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use client::{Vmm, receive, send};
use guest::Code;
use serde_json::json;
use tempfile::NamedTempFile;

/// Whether there is a KVM. Without one the test fails, unless the user knows.
fn have_kvm() -> bool {
    let there = std::path::Path::new("/dev/kvm").exists();
    let known = std::env::var("DARUMA_NO_KVM").as_deref() == Ok("1");
    assert!(
        there || known,
        "/dev/kvm does not exist; DARUMA_NO_KVM=1 skips the tests that need it"
    );
    there
}

fn disk(sectors: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(sectors * 512).unwrap();
    file
}

fn drive(name: &str, image: &NamedTempFile) -> String {
    format!(
        r#"{{"drive_id": "{name}", "is_root_device": false, "is_read_only": false, "path_on_host": "{}"}}"#,
        image.path().display()
    )
}

/// Ends when something is typed.
fn waiting_guest() -> NamedTempFile {
    Code::new().echo().power_off().image()
}

#[test]
fn a_guest_is_configured_started_and_asked_to_shut_down() {
    if !have_kvm() {
        return;
    }
    let kernel = Code::new()
        .wait_for_power_button()
        .print("off")
        .power_off()
        .image();
    let mut vmm = Vmm::start(&[]);
    assert_eq!(
        vmm.get("/"),
        json!({
            "app_name": "Daruma", "id": "test", "state": "Not started", "vmm_version": env!("CARGO_PKG_VERSION")
        })
    );
    assert_eq!(vmm.get("/machine-config")["mem_size_mib"], 128);
    vmm.configure(kernel.path());
    vmm.done("PATCH", "/machine-config", r#"{"vcpu_count": 2}"#);
    vmm.action("InstanceStart");
    assert_eq!(vmm.state(), "Running");
    let config = vmm.get("/vm/config");
    assert_eq!(config["machine-config"]["vcpu_count"], 2);
    assert_eq!(config["machine-config"]["mem_size_mib"], 2);
    assert_eq!(config["boot-source"]["boot_args"], "cmdline");
    vmm.action("SendCtrlAltDel");
    vmm.expect(b"off");
    let socket = vmm.socket();
    assert_eq!(vmm.end(), Some(0));
    assert!(!socket.exists(), "the socket goes with its VMM");
}

#[test]
fn a_paused_guest_does_nothing_and_goes_on_where_it_was() {
    if !have_kvm() {
        return;
    }
    let kernel = Code::new().echo().echo().power_off().image();
    let mut vmm = Vmm::start(&[]);
    vmm.configure(kernel.path());
    vmm.done("PATCH", "/machine-config", r#"{"vcpu_count": 3}"#);
    vmm.action("InstanceStart");
    vmm.type_in(b"a");
    vmm.expect(b"a");
    for _ in 0..20 {
        vmm.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
        assert_eq!(vmm.state(), "Paused");
        vmm.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
        vmm.done("PATCH", "/vm", r#"{"state": "Resumed"}"#);
        assert_eq!(vmm.state(), "Running");
    }
    vmm.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
    let latencies = &vmm.get("/metrics")["latencies_us"];
    for what in ["pause_vm", "vmm_pause_vm", "resume_vm", "vmm_resume_vm"] {
        assert_ne!(latencies[what].as_u64(), Some(0), "{latencies}");
    }
    vmm.type_in(b"b");
    thread::sleep(Duration::from_millis(300));
    assert_eq!(
        vmm.state(),
        "Paused",
        "a guest that ran would be off by now"
    );
    vmm.done("PATCH", "/vm", r#"{"state": "Resumed"}"#);
    vmm.expect(b"b");
    assert_eq!(vmm.end(), Some(0));
}

#[test]
fn a_paused_guest_uses_no_processor_and_its_watchdog_waits() {
    if !have_kvm() {
        return;
    }
    // A period of one second, and a loop.
    let kernel = Code::new().print("!").watchdog().spin().image();
    let mut vmm = Vmm::start(&[]);
    vmm.configure(kernel.path());
    vmm.action("InstanceStart");
    vmm.expect(b"!");
    vmm.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
    let stat = format!("/proc/{}/stat", vmm.child.id());
    // Clock ticks of the whole process, in user mode.
    let used = || -> u64 {
        let text = std::fs::read_to_string(&stat).unwrap();
        let fields = text.rsplit(')').next().unwrap();
        let mut fields = fields.split_whitespace();
        let (user, system) = (fields.nth(11).unwrap(), fields.next().unwrap());
        user.parse::<u64>().unwrap() + system.parse::<u64>().unwrap()
    };
    let before = used();
    thread::sleep(Duration::from_millis(1500));
    let after = used();
    assert!(after - before < 50, "{} ticks of 150", after - before);
    assert_eq!(vmm.state(), "Paused");
    vmm.done("PATCH", "/vm", r#"{"state": "Resumed"}"#);
    assert_eq!(vmm.end(), Some(18), "now the watchdog barks");
}

#[test]
fn a_paused_guest_can_be_ended() {
    if !have_kvm() {
        return;
    }
    let kernel = waiting_guest();
    let mut vmm = Vmm::start(&[]);
    vmm.configure(kernel.path());
    vmm.action("InstanceStart");
    vmm.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
    vmm.type_in(b"x");
    vmm.done("PATCH", "/vm", r#"{"state": "Resumed"}"#);
    assert_eq!(vmm.end(), Some(0));
}

#[test]
fn a_drive_is_exchanged_and_limited_while_the_guest_has_it() {
    const LOOKS: usize = 20;
    if !have_kvm() {
        return;
    }
    let (first, second) = (disk(16), disk(64));
    // The disk's capacity in sectors, at first and each time that something is typed.
    let look = |code: Code| code.print_memory(0xd000_1100, 4).echo();
    let kernel = (0..=LOOKS).fold(Code::new(), |code, _| look(code));
    let kernel = kernel.power_off().image();
    let mut vmm = Vmm::start(&[]);
    vmm.configure(kernel.path());
    vmm.done("PUT", "/drives/d", &drive("d", &first));
    vmm.action("InstanceStart");
    vmm.expect(&16_u32.to_le_bytes());
    let path = second.path().display();
    let missing = r#"{"drive_id": "d", "path_on_host": "/nowhere"}"#;
    let fault = vmm.refused("PATCH", "/drives/d", missing);
    assert!(
        fault.contains("/nowhere") && fault.contains("No such file"),
        "{fault}"
    );
    let limiter = r#"{"ops": {"size": 1000, "refill_time": 100}}"#;
    let update =
        format!(r#"{{"drive_id": "d", "path_on_host": "{path}", "rate_limiter": {limiter}}}"#);
    vmm.done("PATCH", "/drives/d", &update);
    let drive = &vmm.get("/vm/config")["drives"][0];
    assert_eq!(drive["path_on_host"], path.to_string());
    assert_eq!(drive["rate_limiter"]["ops"]["size"], 1000);
    // The same file again: its length is looked at again, though it is locked.
    second.as_file().set_len(32 * 512).unwrap();
    vmm.done("PATCH", "/drives/d", &update);
    // The answer comes a moment before the device's own thread has done it.
    let sizes: Vec<_> = (0..LOOKS)
        .map(|_| {
            thread::sleep(Duration::from_millis(10));
            vmm.type_in(b"x");
            vmm.expect(b"x");
            u32::from_le_bytes(vmm.printed(4).try_into().unwrap())
        })
        .collect();
    assert_eq!(sizes.last(), Some(&32), "{sizes:?}");
    // The first one is free for others.
    first.as_file().try_lock().unwrap();
    vmm.type_in(b"y");
    vmm.expect(b"y");
    assert_eq!(vmm.end(), Some(0));
}

#[test]
fn a_balloon_is_told_apart_from_none_and_has_a_size_and_an_interval() {
    if !have_kvm() {
        return;
    }
    let kernel = waiting_guest();
    let mut vmm = Vmm::start(&[]);
    vmm.configure(kernel.path());
    assert!(
        vmm.refused("GET", "/balloon", "")
            .contains("No balloon device found")
    );
    let balloon = r#"{"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 5}"#;
    vmm.done("PUT", "/balloon", balloon);
    vmm.done("PATCH", "/balloon", r#"{"amount_mib": 0}"#);
    assert_eq!(vmm.get("/balloon")["amount_mib"], 0);
    vmm.action("InstanceStart");
    vmm.done("PATCH", "/balloon", r#"{"amount_mib": 2}"#);
    let fault = vmm.refused("PATCH", "/balloon", r#"{"amount_mib": 3}"#);
    assert!(fault.contains("3 MiB"), "{fault}");
    assert_eq!(vmm.get("/balloon")["amount_mib"], 2);
    let statistics = vmm.get("/balloon/statistics");
    assert_eq!(statistics["target_mib"], 2);
    assert_eq!(statistics["actual_pages"], 0);
    let interval = |seconds| format!(r#"{{"stats_polling_interval_s": {seconds}}}"#);
    vmm.done("PATCH", "/balloon/statistics", &interval(1));
    let fault = vmm.refused("PATCH", "/balloon/statistics", &interval(0));
    assert!(fault.contains("Cannot enable/disable"), "{fault}");
}

#[test]
fn calls_at_the_wrong_time_are_refused_in_firecrackers_words() {
    if !have_kvm() {
        return;
    }
    let kernel = waiting_guest();
    let image = disk(1);
    let mut vmm = Vmm::start(&[]);
    let before = "The requested operation is not supported before starting the microVM.";
    for (method, path, body) in [
        ("PATCH", "/vm", r#"{"state": "Paused"}"#),
        ("PATCH", "/vm", r#"{"state": "Resumed"}"#),
        ("PATCH", "/drives/d", r#"{"drive_id": "d"}"#),
        ("PATCH", "/network-interfaces/e", r#"{"iface_id": "e"}"#),
        ("GET", "/balloon/statistics", ""),
        ("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#),
        ("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#),
        (
            "PUT",
            "/snapshot/create",
            r#"{"mem_file_path": "m", "snapshot_path": "s"}"#,
        ),
        ("DELETE", "/drives/d", ""),
    ] {
        assert_eq!(vmm.refused(method, path, body), before, "{method} {path}");
    }
    let fault = vmm.refused("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    assert_eq!(
        fault,
        "Start microvm error: Cannot start microvm without kernel configuration."
    );
    vmm.configure(kernel.path());
    vmm.action("InstanceStart");
    let after = "The requested operation is not supported after starting the microVM.";
    let source = format!(r#"{{"kernel_image_path": "{}"}}"#, kernel.path().display());
    for (method, path, body) in [
        ("PUT", "/boot-source", source.as_str()),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 64}"#,
        ),
        ("PATCH", "/machine-config", r#"{"vcpu_count": 1}"#),
        ("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#),
        ("PUT", "/vsock", r#"{"guest_cid": 3, "uds_path": "v"}"#),
        ("PUT", "/logger", r#"{"level": "Info"}"#),
        ("PUT", "/metrics", r#"{"metrics_path": "m"}"#),
        (
            "PUT",
            "/balloon",
            r#"{"amount_mib": 1, "deflate_on_oom": true}"#,
        ),
        ("PUT", "/entropy", "{}"),
        ("PUT", "/serial", "{}"),
        ("PUT", "/pmem/p", r#"{"id": "p", "path_on_host": "p"}"#),
        ("PUT", "/snapshot/load", r#"{"snapshot_path": "s"}"#),
        ("PUT", "/drives/d", &drive("d", &image)),
        ("DELETE", "/drives/d", ""),
    ] {
        let fault = vmm.refused(method, path, body);
        assert!(fault.starts_with(after), "{method} {path}: {fault}");
    }
    assert_eq!(vmm.state(), "Running");
    vmm.type_in(b"x");
    vmm.expect(b"x");
    assert_eq!(vmm.end(), Some(0));
}

#[test]
fn the_serial_port_prints_to_a_file() {
    if !have_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("serial");
    std::fs::write(&file, "before ").unwrap();
    let kernel = Code::new().print("printed").power_off().image();
    let mut vmm = Vmm::start(&[]);
    vmm.configure(kernel.path());
    let serial = json!({ "serial_out_path": file });
    vmm.done("PUT", "/serial", &serial.to_string());
    vmm.action("InstanceStart");
    assert_eq!(vmm.end(), Some(0));
    assert_eq!(std::fs::read(&file).unwrap(), b"before printed");
}

#[test]
fn bad_values_change_nothing_and_name_the_field() {
    let missing = r#"{"kernel_image_path": "/nowhere/kernel"}"#;
    let mut vmm = Vmm::start(&[]);
    let config = vmm.get("/vm/config");
    let drive = |more: &str| format!(r#"{{"drive_id": "d", "is_root_device": false{more}}}"#);
    for (method, path, body, expected) in [
        ("PUT", "/boot-source", missing, "/nowhere/kernel"),
        (
            "PUT",
            "/boot-source",
            r#"{"kernel_image_path": "/dev/null", "boot_protocol": "x"}"#,
            "boot_protocol",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 0, "mem_size_mib": 64}"#,
            "vcpu_count is 0",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 33, "mem_size_mib": 64}"#,
            "1 to 32",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": -1}"#,
            "mem_size_mib is -1",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 3, "mem_size_mib": 64, "smt": true}"#,
            "smt",
        ),
        (
            "PATCH",
            "/machine-config",
            r#"{"mem_size_mib": 1}"#,
            "mem_size_mib is 1",
        ),
        (
            "PATCH",
            "/machine-config",
            r#"{"huge_pages": "2M"}"#,
            "huge_pages",
        ),
        ("PUT", "/drives/d", &drive(""), "path_on_host is empty"),
        (
            "PUT",
            "/drives/d",
            &drive(r#", "path_on_host": "/nowhere""#),
            "/nowhere",
        ),
        (
            "PUT",
            "/drives/d",
            &drive(r#", "path_on_host": "/dev/null", "io_engine": "x""#),
            "io_engine",
        ),
        (
            "PUT",
            "/drives/d",
            &drive(r#", "path_on_host": "/dev/null", "queues": 17"#),
            "queues is 17",
        ),
        (
            "PUT",
            "/network-interfaces/e",
            r#"{"iface_id": "e"}"#,
            "host_dev_name",
        ),
        (
            "PUT",
            "/network-interfaces/e",
            r#"{"iface_id": "e", "host_dev_name": "t", "guest_mac": "x"}"#,
            "guest_mac",
        ),
        (
            "PUT",
            "/vsock",
            r#"{"guest_cid": 2, "uds_path": "v"}"#,
            "guest_cid is 2",
        ),
        (
            "PUT",
            "/balloon",
            r#"{"amount_mib": 1000, "deflate_on_oom": true}"#,
            "amount_mib is 1000",
        ),
        (
            "PUT",
            "/pmem/p",
            r#"{"id": "p", "path_on_host": "/nowhere"}"#,
            "/nowhere",
        ),
        ("PUT", "/logger", r#"{"level": "loud"}"#, "loud"),
        ("PUT", "/cpu-config", "{}", "cpu_template"),
        (
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path": "s"}"#,
            "missing field: either",
        ),
        ("PUT", "/hotplug/memory", "{}", "memory hot-plug"),
        ("PATCH", "/vm", r#"{"state": "Dancing"}"#, "Dancing"),
        (
            "PUT",
            "/entropy",
            r#"{"rate_limiter": {"ops": {"size": -1, "refill_time": 1}}}"#,
            "u64",
        ),
        (
            "PUT",
            "/vsock",
            r#"{"guest_cid": 3, "uds_path": "v", "colour": 1}"#,
            "colour",
        ),
        ("PUT", "/vsock", "not JSON", "expected ident"),
        (
            "GET",
            "/nowhere",
            "",
            "Invalid request method and/or path: GET nowhere.",
        ),
    ] {
        let fault = vmm.refused(method, path, body);
        assert!(fault.contains(expected), "{method} {path} {body}: {fault}");
    }
    assert_eq!(vmm.get("/vm/config"), config);
}

#[test]
fn devices_of_one_name_replace_each_other_and_two_roots_do_not_go_together() {
    let (a, b) = (disk(1), disk(1));
    let mut vmm = Vmm::start(&[]);
    vmm.done("PUT", "/drives/a", &drive("a", &a));
    vmm.done("PUT", "/drives/a", &drive("a", &b));
    let drives = vmm.get("/vm/config")["drives"].clone();
    assert_eq!(drives.as_array().unwrap().len(), 1);
    assert_eq!(drives[0]["path_on_host"], b.path().display().to_string());
    let root = |name, image| {
        drive(name, image).replace("\"is_root_device\": false", "\"is_root_device\": true")
    };
    vmm.done("PUT", "/drives/a", &root("a", &a));
    let fault = vmm.refused("PUT", "/drives/b", &root("b", &b));
    assert!(fault.contains("both root devices"), "{fault}");
}

#[test]
fn two_clients_see_the_same_guest() {
    let mut vmm = Vmm::start(&[]);
    let mut other = vmm.connect();
    send(
        &mut other,
        "PUT",
        "/machine-config",
        r#"{"vcpu_count": 4, "mem_size_mib": 9}"#,
    );
    assert_eq!(receive(&mut other).0, 204);
    assert_eq!(vmm.get("/machine-config")["vcpu_count"], 4);
    drop(other);
    assert_eq!(vmm.get("/machine-config")["mem_size_mib"], 9);
}

#[test]
fn clients_that_stall_or_flood_do_not_touch_a_guest_that_runs() {
    if !have_kvm() {
        return;
    }
    let kernel = waiting_guest();
    let mut vmm = Vmm::start(&["--http-api-max-payload-size", "1000"]);
    vmm.configure(kernel.path());
    vmm.action("InstanceStart");
    let mut stalls = vmm.connect();
    write!(stalls, "PUT /mmds HTTP/1.1\r\nContent-Length: 5\r\n\r\n{{").unwrap();
    let mut floods = vmm.connect();
    let length = 1 << 30;
    write!(
        floods,
        "PUT /mmds HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"
    )
    .unwrap();
    let (status, body) = receive(&mut floods);
    assert_eq!(status, 400);
    let fault = body["fault_message"].as_str().unwrap();
    assert!(
        fault.contains("1073741824 is larger than the limit of 1000"),
        "{fault}"
    );
    let mut gibberish = vmm.connect();
    gibberish.write_all(&[0xff; 100]).unwrap();
    assert_eq!(receive(&mut gibberish).0, 400);
    let mut gone = vmm.connect();
    send(&mut gone, "GET", "/vm/config", "");
    drop(gone);
    assert_eq!(vmm.state(), "Running");
    vmm.type_in(b"x");
    vmm.expect(b"x");
    assert_eq!(vmm.end(), Some(0));
}

#[test]
fn a_socket_that_exists_is_refused_and_left_alone() {
    let vmm = Vmm::start(&[]);
    let another = |path: &std::path::Path| {
        let output = trace::vmm()
            .arg("--api-sock")
            .arg(path)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, said) = another(&vmm.socket());
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("Failed to open the API socket at: "),
        "{said}"
    );
    assert!(said.contains("Check that it is not already used"), "{said}");
    // A file that is left over is no different.
    let folder = tempfile::tempdir().unwrap();
    let stale = folder.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert_eq!(another(&stale).0, Some(1));
    assert!(stale.exists());
}

#[test]
fn a_configuration_file_starts_at_once_and_the_api_is_served() {
    if !have_kvm() {
        return;
    }
    let kernel = waiting_guest();
    let file = NamedTempFile::new().unwrap();
    let text = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{}"}}, "machine-config": {{"vcpu_count": 1, "mem_size_mib": 2}}}}"#,
        kernel.path().display()
    );
    std::fs::write(file.path(), text).unwrap();
    let mut vmm = Vmm::start(&["--config-file", file.path().to_str().unwrap()]);
    assert_eq!(vmm.state(), "Running");
    vmm.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
    vmm.done("PATCH", "/vm", r#"{"state": "Resumed"}"#);
    vmm.type_in(b"x");
    vmm.expect(b"x");
    assert_eq!(vmm.end(), Some(0));
}

#[test]
fn a_configuration_file_that_cannot_be_run_leaves_no_socket_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, file) = (folder.path().join("api"), folder.path().join("config"));
    std::fs::write(
        &file,
        r#"{"boot-source": {"kernel_image_path": "/nowhere"}}"#,
    )
    .unwrap();
    let output = trace::vmm()
        .arg("--api-sock")
        .arg(&socket)
        .arg("--config-file")
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(152), "{output:?}");
    assert!(!socket.exists());
}

#[test]
fn a_start_that_fails_can_be_mended() {
    if !have_kvm() {
        return;
    }
    let no_kernel = NamedTempFile::new().unwrap();
    std::fs::write(no_kernel.path(), "no kernel at all").unwrap();
    let kernel = waiting_guest();
    let mut vmm = Vmm::start(&[]);
    vmm.configure(no_kernel.path());
    let fault = vmm.refused("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    assert!(
        fault.starts_with("Start microvm error: Cannot boot the guest: "),
        "{fault}"
    );
    assert_eq!(vmm.state(), "Not started");
    vmm.configure(kernel.path());
    vmm.action("InstanceStart");
    vmm.type_in(b"x");
    vmm.expect(b"x");
    assert_eq!(vmm.end(), Some(0));
}
