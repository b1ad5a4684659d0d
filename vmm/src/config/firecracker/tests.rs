use std::error::Error as _;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::config::{
    BalloonConfig, BootProtocol, BucketConfig, CpuTemplate, DEFAULT_BOOT_ARGS, DiskFormat,
    RateLimiterConfig, TapSource,
};
use devices::virtio::block::engine::Preference;
use proptest::prelude::*;

#[derive(Debug)]
struct Loaded {
    vm: VmConfig,
    document: Document,
}

fn read(text: &str) -> Result<Loaded, ConfigError> {
    let document = parse(text.as_bytes(), Path::new("vm.json"))?;
    let vm = guest(&document, false)?;
    Ok(Loaded { vm, document })
}

fn with(section: &str) -> Result<Loaded, ConfigError> {
    read(&format!(
        r#"{{"boot-source": {{"kernel_image_path": "k"}}, {section}}}"#
    ))
}

#[test]
fn the_smallest_file_gets_firecrackers_defaults() {
    let vm = read(r#"{"boot-source": {"kernel_image_path": "k"}}"#)
        .unwrap()
        .vm;
    assert_eq!((vm.vcpus.get(), vm.memory.mib()), (1, 128));
    assert_eq!(vm.boot.cmdline, DEFAULT_BOOT_ARGS);
    assert_eq!(vm.boot.protocol, BootProtocol::Auto);
    assert!(vm.entropy.is_none() && vm.drives.is_empty());
}

#[test]
fn a_full_file_of_firecracker_is_understood() {
    let loaded = read(
        r#"{
          "boot-source": {"kernel_image_path": "vmlinux.bin", "boot_args": "console=ttyS0", "initrd_path": null},
          "drives": [
            {"drive_id": "data", "partuuid": null, "is_root_device": false, "cache_type": "Writeback",
             "is_read_only": true, "path_on_host": "data.img", "io_engine": "Sync", "rate_limiter": null,
             "socket": null},
            {"drive_id": "rootfs", "is_root_device": true, "path_on_host": "root.ext4"}],
          "machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": false,
                             "huge_pages": "None"},
          "cpu-config": null, "balloon": null, "network-interfaces": [], "vsock": null,
          "logger": {"log_path": "l", "level": "Info", "show_level": true}, "metrics": null,
          "mmds-config": null, "entropy": {}, "pmem": [], "memory-hotplug": null
        }"#,
    )
    .unwrap();
    assert_eq!(
        loaded.vm.drives[0].id.as_str(),
        "rootfs",
        "the root drive is the first"
    );
    assert!(loaded.vm.drives[1].read_only && !loaded.vm.drives[0].read_only);
    assert_eq!(loaded.vm.entropy, Some(RateLimiterConfig::default()));
    assert_eq!(
        loaded.document.logger.unwrap().log_path.unwrap(),
        Path::new("l")
    );
}

#[test]
fn sections_to_come_are_named_when_they_ask_for_something() {
    let text = with(r#""memory-hotplug": {"total_size_mib": 1}"#);
    let text = text.unwrap_err().to_string();
    assert!(
        text.starts_with("memory-hotplug is not supported yet"),
        "{text}"
    );
}

#[test]
fn metadata_are_served_by_interfaces_that_there_are() {
    let net = r#""network-interfaces": [{"iface_id": "eth0", "host_dev_name": "t"}]"#;
    let served = |by: &str| {
        let mmds = format!(r#""mmds-config": {{"network_interfaces": ["{by}"], "version": "V2"}}"#);
        with(&format!("{net}, {mmds}"))
    };
    let config = served("eth0").unwrap().vm.mmds.unwrap();
    assert_eq!(config.interfaces, ["eth0"]);
    let error = served("eth1").unwrap_err().to_string();
    assert!(error.contains("\"eth1\""), "{error}");
}

#[test]
fn how_a_drive_is_worked_on_is_a_preference() {
    let drive = |more: &str| {
        let drive = r#""drives": [{"drive_id": "a", "is_root_device": false, "path_on_host": "x""#;
        with(&format!("{drive}{more}}}]")).map(|mut loaded| loaded.vm.drives.remove(0))
    };
    assert_eq!(drive("").unwrap().engine, Preference::Automatic);
    for (word, engine) in [
        ("Sync", Preference::Synchronous),
        ("Async", Preference::Asynchronous),
    ] {
        let drive = drive(&format!(r#", "io_engine": "{word}", "queues": 3"#)).unwrap();
        assert_eq!(drive.engine, engine);
        assert_eq!(drive.queues.unwrap().get(), 3);
    }
    let error = drive(r#", "io_engine": "async""#).unwrap_err().to_string();
    assert_eq!(
        error,
        "drives.io_engine is \"async\", permitted are \"Sync\" and \"Async\""
    );
    assert!(drive(r#", "queues": 0"#).is_err());
}

#[test]
fn format_of_an_image_is_raw_or_said() {
    let drive = |more: &str| {
        let drive = r#""drives": [{"drive_id": "a", "is_root_device": false, "path_on_host": "x""#;
        with(&format!("{drive}{more}}}]")).map(|mut loaded| loaded.vm.drives.remove(0).format)
    };
    assert_eq!(drive("").unwrap(), DiskFormat::Raw);
    assert_eq!(drive(r#", "format": "raw""#).unwrap(), DiskFormat::Raw);
    assert_eq!(drive(r#", "format": "nbd""#).unwrap(), DiskFormat::Nbd);
    let qcow2 = |backing_files| DiskFormat::Qcow2 { backing_files };
    assert_eq!(drive(r#", "format": "qcow2""#).unwrap(), qcow2(vec![]));
    let both = r#", "format": "qcow2", "backing_files": ["/a", "b"]"#;
    let files = vec![PathBuf::from("/a"), PathBuf::from("b")];
    assert_eq!(drive(both).unwrap(), qcow2(files));
    let error = drive(r#", "format": "vmdk""#).unwrap_err().to_string();
    assert!(
        error.contains("\"vmdk\"") && error.contains("\"qcow2\""),
        "{error}"
    );
    let error = drive(r#", "backing_files": ["/a"]"#)
        .unwrap_err()
        .to_string();
    assert!(error.contains("set format to \"qcow2\""), "{error}");
}

#[test]
fn rate_limits_are_firecrackers() {
    let limiter = r#"{"bandwidth": {"size": 1000, "one_time_burst": 5, "refill_time": 100},
                      "ops": {"size": 1, "refill_time": 10}}"#;
    let expected = RateLimiterConfig {
        bandwidth: Some(BucketConfig {
            size: 1000,
            one_time_burst: 5,
            refill_time_ms: 100,
        }),
        ops: Some(BucketConfig {
            size: 1,
            one_time_burst: 0,
            refill_time_ms: 10,
        }),
    };
    let drive = format!(
        r#""drives": [{{"drive_id": "a", "is_root_device": false, "path_on_host": "x", "rate_limiter": {limiter}}}]"#
    );
    assert_eq!(with(&drive).unwrap().vm.drives[0].rate_limiter, expected);
    let entropy = format!(r#""entropy": {{"rate_limiter": {limiter}}}"#);
    assert_eq!(with(&entropy).unwrap().vm.entropy, Some(expected));
    let bad = r#""entropy": {"rate_limiter": {"ops": {"size": -1, "refill_time": 10}}}"#;
    assert!(matches!(with(bad).unwrap_err(), ConfigError::Json { .. }));
}

#[test]
fn network_interfaces_are_firecrackers_or_have_a_descriptor() {
    let net = with(
        r#""network-interfaces": [
            {"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "AA:FC:00:00:00:01",
             "tx_rate_limiter": {"ops": {"size": 1, "refill_time": 10}}},
            {"iface_id": "eth1", "host_dev_fd": 7, "mtu": 1400}]"#,
    )
    .unwrap()
    .vm
    .net;
    assert_eq!(net[0].tap, TapSource::Name("tap0".into()));
    assert_eq!(net[0].address().to_string(), "aa:fc:00:00:00:01");
    assert_eq!(net[0].tx_rate_limiter.ops.unwrap().size, 1);
    assert_eq!((&net[1].tap, net[1].mtu), (&TapSource::Fd(7), Some(1400)));
    assert_eq!(net[1].address().bytes()[0], 2);
}

#[test]
fn bad_network_interfaces_are_refused_by_name() {
    let eth0 = r#"{"iface_id": "eth0", "host_dev_name": "tap0"}"#;
    for (interfaces, expected) in [
        (
            r#"{"iface_id": "eth0"}"#.to_owned(),
            "\"eth0\" needs either",
        ),
        (
            r#"{"iface_id": "e", "host_dev_name": "t", "host_dev_fd": 4}"#.to_owned(),
            "\"e\" needs either",
        ),
        (
            r#"{"iface_id": "a b", "host_dev_name": "t"}"#.to_owned(),
            "iface_id is \"a b\"",
        ),
        (
            r#"{"iface_id": "e", "host_dev_name": "sixteen-letters0"}"#.to_owned(),
            "\"sixteen-letters0\"",
        ),
        (
            r#"{"iface_id": "e", "host_dev_name": "t", "guest_mac": "1:2"}"#.to_owned(),
            "guest_mac is \"1:2\"",
        ),
        (
            r#"{"iface_id": "e", "host_dev_fd": 1}"#.to_owned(),
            "host_dev_fd is 1",
        ),
        (
            r#"{"iface_id": "e", "host_dev_name": "t", "mtu": 60}"#.to_owned(),
            "mtu is 60",
        ),
        (format!("{eth0}, {eth0}"), "Two network interfaces"),
        (
            format!(r#"{eth0}, {{"iface_id": "eth1", "host_dev_name": "tap0"}}"#),
            "share one tap interface",
        ),
        (
            r#"{"iface_id": "a", "host_dev_name": "t", "guest_mac": "02:00:00:00:00:01"},
               {"iface_id": "b", "host_dev_name": "u", "guest_mac": "02:00:00:00:00:01"}"#
                .to_owned(),
            "share one MAC address",
        ),
    ] {
        let text = with(&format!(r#""network-interfaces": [{interfaces}]"#))
            .unwrap_err()
            .to_string();
        assert!(text.contains(expected), "{interfaces}: {text}");
    }
}

#[test]
fn socket_device_is_firecrackers_and_its_values_are_checked() {
    let vsock = |text: &str| with(&format!(r#""vsock": {text}"#));
    let config = vsock(r#"{"guest_cid": 3, "uds_path": "v.sock", "vsock_id": "v"}"#);
    let config = config.unwrap().vm.vsock.unwrap();
    assert_eq!(
        (config.guest_cid, config.uds_path.to_str()),
        (3, Some("v.sock"))
    );
    let long = format!(r#"{{"guest_cid": 3, "uds_path": "{}"}}"#, "x".repeat(97));
    for (text, expected) in [
        (r#"{"guest_cid": 2, "uds_path": "v"}"#, "guest_cid is 2"),
        (
            r#"{"guest_cid": 4294967295, "uds_path": "v"}"#,
            "guest_cid is",
        ),
        (r#"{"guest_cid": 3, "uds_path": ""}"#, "uds_path is empty"),
        (&long, "97 bytes, permitted are 96"),
    ] {
        let error = vsock(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn pmem_is_firecrackers_and_files_that_are_written_have_one_owner() {
    let pmem = |rest: &str| {
        with(&format!(
            r#""pmem": [{{"id": "a", "path_on_host": "a.img", "root_device": true, "read_only": true}}{rest}]"#
        ))
    };
    let vm = pmem(r#", {"id": "b", "path_on_host": "a.img", "read_only": true}"#)
        .unwrap()
        .vm;
    assert_eq!(vm.virtio_devices(), 2);
    let root = vm.pmem.iter().map(|pmem| (pmem.is_root, pmem.read_only));
    assert!(root.eq([(true, true), (false, true)]));
    for (rest, reason) in [
        (
            r#", {"id": "a", "path_on_host": "b"}"#,
            "another of this id",
        ),
        (
            r#", {"id": "b", "path_on_host": "a.img"}"#,
            "one of them writes",
        ),
        (
            r#", {"id": "b", "path_on_host": "b", "root_device": true}"#,
            "root device already",
        ),
        (r#", {"id": "", "path_on_host": "b"}"#, "1 to 64 letters"),
        (
            r#", {"id": "b", "path_on_host": ""}"#,
            "path_on_host is empty",
        ),
        (
            r#"], "drives": [{"drive_id": "r", "path_on_host": "r", "is_root_device": true}"#,
            "a drive is the root device already",
        ),
    ] {
        let text = pmem(rest).unwrap_err().to_string();
        assert!(text.contains(reason), "{text}");
    }
}

#[test]
fn an_unknown_key_is_an_error_with_its_place() {
    let error = read("{\n \"boot-source\": {\"kernel_image\": \"k\"}}").unwrap_err();
    assert!(error.to_string().contains("vm.json"), "{error}");
    let detail = error.source().unwrap().to_string();
    assert!(
        detail.contains("`kernel_image`") && detail.contains("line 2"),
        "{detail}"
    );
}

#[test]
fn values_out_of_range_are_named_with_the_range() {
    for (config, expected) in [
        (
            r#"{"vcpu_count": 33, "mem_size_mib": 128}"#,
            "machine-config.vcpu_count is 33, permitted are 1 to 32 vCPUs",
        ),
        (
            r#"{"vcpu_count": 0, "mem_size_mib": 128}"#,
            "machine-config.vcpu_count is 0, permitted are 1 to 32 vCPUs",
        ),
        (
            r#"{"vcpu_count": 1, "mem_size_mib": 0}"#,
            "machine-config.mem_size_mib is 0, permitted are 2 to 1048576 MiB",
        ),
    ] {
        let text = with(&format!(r#""machine-config": {config}"#))
            .unwrap_err()
            .to_string();
        assert_eq!(text, expected);
    }
}

#[test]
fn templates_and_threads_are_understood() {
    let machine = |more: &str| {
        with(&format!(
            r#""machine-config": {{"vcpu_count": 3, "mem_size_mib": 64, {more}}}"#
        ))
    };
    let template = |name| machine(&format!(r#""cpu_template": "{name}""#));
    let cpu = template("x86-64-v3").unwrap().vm.cpu;
    assert_eq!((cpu.template, cpu.smt), (CpuTemplate::V3, false));
    assert_eq!(template("None").unwrap().vm.cpu.template, CpuTemplate::Host);
    let text = template("T2").unwrap_err().to_string();
    assert!(text.contains("\"T2\", permitted are \"None\""), "{text}");
    let text = machine(r#""smt": true"#).unwrap_err().to_string();
    assert!(text.contains("3 vCPUs do not"), "{text}");
}

#[test]
fn console_ports_have_names_of_their_own() {
    let port = |name: &str| format!(r#"{{"name": "{name}", "path": "/run/{name}"}}"#);
    let console = |ports: &[String]| {
        with(&format!(
            r#""console": {{"stdio": false, "ports": [{}]}}"#,
            ports.join(",")
        ))
    };
    let vm = console(&[port("org.example.0"), port("b")]).unwrap().vm;
    assert_eq!(vm.console.unwrap().ports[1].name, "b");
    for (ports, why) in [
        (vec![], "console has 0 ports, permitted are 1 to 16"),
        (
            vec![port("a"), port("a")],
            "Two console ports are named \"a\"",
        ),
        (vec![port("a b")], "console.ports.name is \"a b\""),
        (
            (0..17).map(|i| port(&i.to_string())).collect(),
            "has 17 ports",
        ),
    ] {
        let text = console(&ports).unwrap_err().to_string();
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn a_balloon_is_no_larger_than_its_guest() {
    let balloon = |more: &str| {
        with(&format!(
            r#""machine-config": {{"vcpu_count": 1, "mem_size_mib": 64}},
               "balloon": {{"deflate_on_oom": true, {more}}}"#
        ))
    };
    let config = balloon(r#""amount_mib": 64, "stats_polling_interval_s": 3"#);
    let expected = BalloonConfig {
        amount_mib: 64,
        deflate_on_oom: true,
        statistics_interval: Some(Duration::from_secs(3)),
        free_page_reporting: false,
    };
    assert_eq!(config.unwrap().vm.balloon, Some(expected));
    let config = balloon(r#""amount_mib": 0, "free_page_reporting": true"#);
    let config = config.unwrap().vm.balloon.unwrap();
    assert!(config.free_page_reporting && config.statistics_interval.is_none());
    let text = balloon(r#""amount_mib": 65"#).unwrap_err().to_string();
    assert_eq!(
        text,
        "balloon.amount_mib is 65, permitted are 0 to 64 MiB, all of the guest's memory"
    );
    let hinting = balloon(r#""amount_mib": 1, "free_page_hinting": true"#);
    let text = hinting.unwrap_err().to_string();
    assert!(
        text.starts_with("balloon.free_page_hinting is not supported"),
        "{text}"
    );
    assert!(balloon(r#""amount_mib": 1, "free_page_hinting": false"#).is_ok());
    assert!(balloon(r#""amount_mib": -1"#).is_err());
}

#[test]
fn two_drives_of_one_name_are_refused() {
    let drive = r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "x"}"#;
    let other = r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "y"}"#;
    let error = with(&format!(r#""drives": [{drive}, {other}]"#)).unwrap_err();
    assert_eq!(error.to_string(), "Two drives are named \"a\"");
}

#[test]
fn one_image_written_through_two_drives_is_refused() {
    let drive = r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "x"}"#;
    let other =
        r#"{"drive_id": "b", "is_root_device": false, "is_read_only": true, "path_on_host": "x"}"#;
    let error = with(&format!(r#""drives": [{drive}, {other}]"#)).unwrap_err();
    assert!(
        matches!(error, ConfigError::DriveSharedForWriting { .. }),
        "{error}"
    );
}

#[test]
fn file_systems_have_tags_and_sockets_of_their_own() {
    let vm = with(r#""fs": [{"tag": "a", "socket": "/s/a"}, {"tag": "b", "socket": "/s/b"}]"#)
        .unwrap()
        .vm;
    assert_eq!((vm.virtio_devices(), vm.shares_memory()), (2, true));
    assert_eq!(
        (&*vm.fs[1].tag, &*vm.fs[1].socket),
        ("b", Path::new("/s/b"))
    );
    assert!(!with(r#""fs": []"#).unwrap().vm.shares_memory());
    let long = format!(r#"{{"tag": "{}", "socket": "/s"}}"#, "t".repeat(37));
    for (fs, expected) in [
        (&*long, "1 to 36 characters"),
        (r#"{"tag": "", "socket": "/s"}"#, "1 to 36 characters"),
        (r#"{"tag": "a b", "socket": "/s"}"#, "1 to 36 characters"),
        (r#"{"tag": "a", "socket": ""}"#, "1 to 107 bytes"),
        (
            r#"{"tag": "a", "socket": "/s"}, {"tag": "a", "socket": "/t"}"#,
            "another of this tag",
        ),
        (
            r#"{"tag": "a", "socket": "/s"}, {"tag": "b", "socket": "/s"}"#,
            "the same socket",
        ),
    ] {
        let error = with(&format!(r#""fs": [{fs}]"#)).unwrap_err();
        assert!(error.to_string().contains(expected), "{fs}: {error}");
    }
}

#[test]
fn one_file_written_as_pmem_or_drive_and_used_as_both_is_refused() {
    for (drive_reads, pmem_reads) in [(true, true), (true, false), (false, true), (false, false)] {
        let result = with(&format!(
            r#""drives": [{{"drive_id": "a", "is_root_device": false, "is_read_only": {drive_reads}, "path_on_host": "x"}}],
               "pmem": [{{"id": "b", "path_on_host": "x", "root_device": false, "read_only": {pmem_reads}}}]"#
        ));
        if drive_reads && pmem_reads {
            assert!(result.is_ok());
        } else {
            let text = result.unwrap_err().to_string();
            assert!(text.contains("a drive has the same file"), "{text}");
        }
    }
}

#[test]
fn a_control_character_in_the_command_line_is_refused() {
    let text = r#"{"boot-source": {"kernel_image_path": "k", "boot_args": "a\nb"}}"#;
    assert!(matches!(
        read(text).unwrap_err(),
        ConfigError::CmdlineCharacter {
            position: 1,
            byte: b'\n'
        }
    ));
}

#[test]
fn more_devices_than_the_pci_bus_holds_are_refused() {
    let drives: Vec<_> = (0..32)
        .map(|i| {
            format!(r#"{{"drive_id": "d{i}", "is_root_device": false, "path_on_host": "{i}"}}"#)
        })
        .collect();
    let error = with(&format!(r#""drives": [{}]"#, drives.join(","))).unwrap_err();
    assert!(
        matches!(error, ConfigError::TooManyDevices { devices: 32, .. }),
        "{error}"
    );
}

proptest! {
    #[test]
    fn any_bytes_end_in_a_value_or_an_error(text in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(parse::<Document>(&text, Path::new("x")));
    }
}
