//! The configuration file of Firecracker's format, to the configuration that a guest is built from.
#![no_main]

use std::path::Path;

use vmm::config::firecracker;

const SEED: &str = r#"{
 "boot-source": {"kernel_image_path": "/k", "initrd_path": "/i", "boot_args": "console=ttyS0 reboot=k"},
 "drives": [{"drive_id": "a", "path_on_host": "/a", "is_root_device": true, "is_read_only": false, "cache_type": "Unsafe",
  "io_engine": "Sync", "rate_limiter": {"bandwidth": {"size": 1000, "one_time_burst": 100, "refill_time": 100},
  "ops": {"size": 1, "refill_time": 18446744073709551615}}, "format": "qcow2", "queues": 2, "partuuid": "x"}],
 "machine-config": {"vcpu_count": 2, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false, "huge_pages": "None",
  "cpu_template": "x86-64-v3"},
 "network-interfaces": [{"iface_id": "e", "host_dev_name": "tap0", "guest_mac": "02:00:00:00:00:01",
  "rx_rate_limiter": {"ops": {"size": 4294967296, "refill_time": 1}}}],
 "vsock": {"guest_cid": 3, "uds_path": "/v"}, "balloon": {"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 1},
 "entropy": {"rate_limiter": null}, "pmem": [{"id": "p", "path_on_host": "/p", "root_device": false, "read_only": true}],
 "fs": [{"tag": "t", "socket": "/s"}], "console": {"stdio": true, "ports": [{"name": "n", "path": "/c"}]},
 "logger": null, "metrics": null, "mmds-config": null
}"#;

fuzz::fuzz_target!(init: fuzz::begin(|| vec![SEED.as_bytes().to_vec()]), |data: &[u8]| {
    let Ok(document) = firecracker::parse(data, Path::new("fuzz")) else {
        return;
    };
    for pci in [false, true] {
        // What is complete passes the check of what need not be.
        let guest = firecracker::guest(&document, pci);
        let check = firecracker::check(&document, pci);
        assert!(guest.is_err() || check.is_ok(), "{check:?}");
        if let Err(error) = guest {
            assert!(!error.to_string().is_empty());
        }
    }
});
