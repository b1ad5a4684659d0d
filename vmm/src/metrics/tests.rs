use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

/// Firecracker's names that evaluators look for, by group.
const FIRECRACKER: [(&str, &[&str]); 12] = [
    (
        "api_server",
        &["process_startup_time_us", "sync_response_fails"],
    ),
    ("balloon", &["inflate_count", "stats_updates_count"]),
    (
        "block",
        &["read_bytes", "remaining_reqs_count", "no_avail_buffer"],
    ),
    ("entropy", &["entropy_bytes", "host_rng_fails"]),
    ("i8042", &["reset_count", "missed_write_count"]),
    ("latencies_us", &["pause_vm", "vmm_load_snapshot"]),
    (
        "logger",
        &["missed_metrics_count", "missed_log_count", "log_fails"],
    ),
    ("mmds", &["rx_accepted", "connections_created"]),
    (
        "net",
        &["tx_spoofed_mac_count", "rx_rate_limiter_throttled"],
    ),
    (
        "put_api_requests",
        &["actions_count", "vsock_fails", "mmds_count"],
    ),
    ("uart", &["missed_read_count", "flush_count"]),
    ("vcpu", &["exit_io_in", "exit_mmio_write", "failures"]),
];

fn number(line: &serde_json::Value, group: &str, name: &str) -> u64 {
    line[group][name]
        .as_u64()
        .unwrap_or_else(|| panic!("{group}.{name} in {line}"))
}

#[test]
fn groups_of_firecracker_are_there_without_any_device() {
    let json = Telemetry::default().snapshot().to_json();
    for (group, names) in FIRECRACKER {
        for name in names {
            let _ = number(&json, group, name);
        }
    }
    assert_eq!(json["block"]["read_agg"]["min_us"], 0);
    assert!(json["utc_timestamp_ms"].as_u64().unwrap() > 1_600_000_000_000);
}

#[test]
fn devices_are_shown_by_themselves_and_together_and_count_on_when_they_are_gone() {
    let telemetry = Telemetry::default();
    let [root, data] = [(); 2].map(|()| Arc::new(BlockMetrics::default()));
    telemetry.add("block", Some("root"), root.clone());
    telemetry.add("block", Some("data"), data.clone());
    root.read_count.add(5);
    data.read_count.add(2);
    let json = telemetry.snapshot().to_json();
    assert_eq!(number(&json, "block_root", "read_count"), 5);
    assert_eq!(number(&json, "block_data", "read_count"), 2);
    assert_eq!(number(&json, "block", "read_count"), 7);

    data.read_count.add(1);
    drop(data);
    for _ in 0..2 {
        let json = telemetry.snapshot().to_json();
        assert_eq!(json.get("block_data"), None);
        assert_eq!(number(&json, "block", "read_count"), 8);
    }
}

#[test]
fn lines_say_what_was_added_since_the_line_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics");
    let telemetry = Telemetry::default();
    telemetry.write_to(&path).unwrap();
    telemetry.api.get.mmds_count.add(3);
    telemetry.latencies.pause_vm.set(40);
    assert!(telemetry.flush());
    telemetry.api.get.mmds_count.count();
    assert!(telemetry.flush());
    assert!(telemetry.flush());
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let counts: Vec<_> = lines
        .iter()
        .map(|line| number(line, "get_api_requests", "mmds_count"))
        .collect();
    assert_eq!(counts, [3, 1, 0]);
    assert!(
        lines
            .iter()
            .all(|line| number(line, "latencies_us", "pause_vm") == 40)
    );
    let total = telemetry.snapshot().get("get_api_requests", "mmds_count");
    assert_eq!(total, Some(Value::Count(4)));
}

#[test]
fn a_fifo_that_nobody_reads_loses_lines_but_no_counts_and_never_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let telemetry = Telemetry::default();
    telemetry.write_to(&path).unwrap();
    let mut written = 0;
    while telemetry.flush() {
        written += 1;
        telemetry.api.get.mmds_count.count();
        assert!(written < 1000, "the pipe is never full");
    }
    assert!(written > 1);
    for _ in 0..10 {
        assert!(!telemetry.flush());
    }
    assert_eq!(telemetry.logger.missed_metrics_count.get(), 11);

    let mut reader = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .unwrap();
    let mut text = Vec::new();
    // What lies in the pipe, the rest of the line that there was no room for and the one after it, and one more.
    for _ in 0..3 {
        let error = reader.read_to_end(&mut text).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        assert!(telemetry.flush(), "there is room again");
    }
    let sum: u64 = String::from_utf8(text)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .map(|line| number(&line, "get_api_requests", "mmds_count"))
        .sum();
    assert_eq!(sum, telemetry.api.get.mmds_count.get());
}

#[test]
fn a_second_output_and_one_that_cannot_be_opened_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let telemetry = Telemetry::default();
    let error = telemetry.write_to(folder.path()).unwrap_err();
    assert!(matches!(error, OutputError::Open { .. }));
    assert!(!telemetry.is_written());
    telemetry.write_to(&folder.path().join("a")).unwrap();
    let error = telemetry.write_to(&folder.path().join("b")).unwrap_err();
    assert!(matches!(error, OutputError::Configured));
    assert!(!folder.path().join("b").exists());
}

#[test]
fn a_full_disk_is_counted_and_stops_nothing() {
    let telemetry = Telemetry::default();
    // Linux has a device that is always full.
    telemetry.write_to(Path::new("/dev/full")).unwrap();
    assert!(!telemetry.flush());
    assert!(!telemetry.flush());
    assert_eq!(telemetry.logger.metrics_fails.get(), 2);
    let mut zeroes = [0; 4];
    File::open("/dev/full")
        .unwrap()
        .read_exact(&mut zeroes)
        .unwrap();
}
