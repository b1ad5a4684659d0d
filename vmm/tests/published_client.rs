//! The API driven by a published client of Firecracker's: the crate `firecracker-rs-sdk` from crates.io, unchanged. It
//! starts the VMM by Firecracker's flags and speaks HTTP/1.0 over one connection that stays.
#![expect(
    clippy::unwrap_used,
    reason = "a test whose world cannot be set up has failed"
)]

#[expect(dead_code, reason = "other tests need more of it")]
mod guest;

use std::path::Path;
use std::thread;
use std::time::Duration;

use firecracker_rs_sdk::firecracker::FirecrackerOption;
use firecracker_rs_sdk::instance::Instance;
use firecracker_rs_sdk::models::{
    Balloon, BalloonUpdate, BootSource, Drive, InstanceState, LogLevel, Logger,
    MachineConfiguration, PartialDrive,
};
use guest::Code;

const VMM: &str = env!("CARGO_BIN_EXE_daruma-vmm");

fn drive(path: &Path) -> Drive {
    Drive {
        drive_id: "data".into(),
        partuuid: None,
        is_root_device: false,
        cache_type: None,
        is_read_only: false,
        path_on_host: path.into(),
        rate_limiter: None,
        io_engine: None,
        socket: None,
    }
}

fn image(folder: &Path, name: &str, sectors: u64) -> std::path::PathBuf {
    let path = folder.join(name);
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(sectors * 512).unwrap();
    path
}

/// Waits until the file has `text`.
fn wait_for(path: &Path, text: &[u8]) {
    for _ in 0..6000 {
        if std::fs::read(path).is_ok_and(|found| found == text) {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{:?} does not become {text:?}", std::fs::read(path));
}

fn state(instance: &mut Instance) -> InstanceState {
    instance.describe_instance().unwrap().state
}

#[test]
fn a_published_client_boots_a_guest_pauses_it_changes_a_drive_and_stops_it() {
    if !Path::new("/dev/kvm").exists() && std::env::var("DARUMA_NO_KVM").as_deref() == Ok("1") {
        println!("skipped: there is no /dev/kvm");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (first, second) = (
        image(folder.path(), "first", 16),
        image(folder.path(), "second", 64),
    );
    // The capacity of its disk when it boots, and when it is asked to stop.
    let kernel = Code::new()
        .print_memory(0xd000_1100, 4)
        .wait_for_power_button()
        .print_memory(0xd000_1100, 4)
        .power_off()
        .image();
    std::fs::write(at("stdin"), "").unwrap();
    let mut instance = FirecrackerOption::new(VMM)
        .api_sock(at("api"))
        .id("guest-1")
        .stdin(at("stdin"))
        .stdout(at("stdout"))
        .stderr(at("stderr"))
        .build()
        .unwrap();
    instance.start_vmm().unwrap();
    assert!(instance.get_firecracker_version().is_ok());

    let logger = Logger {
        level: Some(LogLevel::Debug),
        log_path: at("log"),
        show_level: Some(true),
        show_log_origin: None,
        module: None,
    };
    instance.put_logger(&logger).unwrap();
    let machine = MachineConfiguration {
        cpu_template: None,
        smt: None,
        mem_size_mib: 2,
        track_dirty_pages: None,
        vcpu_count: 1,
        huge_pages: None,
    };
    instance.put_machine_configuration(&machine).unwrap();
    let read = instance.get_machine_configuration().unwrap();
    assert_eq!((read.vcpu_count, read.mem_size_mib), (1, 2));
    let source = BootSource {
        boot_args: Some("cmdline".into()),
        initrd_path: None,
        kernel_image_path: kernel.path().into(),
    };
    instance.put_guest_boot_source(&source).unwrap();
    instance.put_guest_drive_by_id(&drive(&first)).unwrap();
    let balloon = Balloon {
        amount_mib: 0,
        deflate_on_oom: true,
        stats_polling_interval_s: Some(1),
    };
    instance.put_balloon(&balloon).unwrap();
    assert_eq!(state(&mut instance), InstanceState::NotStarted);

    instance.start().unwrap();
    assert_eq!(state(&mut instance), InstanceState::Running);
    wait_for(&at("stdout"), &16_u32.to_le_bytes());

    instance.pause().unwrap();
    assert_eq!(state(&mut instance), InstanceState::Paused);
    let update = |path: &Path| PartialDrive {
        drive_id: "data".into(),
        path_on_host: Some(path.into()),
        rate_limiter: None,
    };
    instance.patch_guest_drive_by_id(&update(&second)).unwrap();
    assert!(
        instance
            .patch_guest_drive_by_id(&update(&at("missing")))
            .is_err()
    );
    instance
        .patch_balloon(&BalloonUpdate { amount_mib: 1 })
        .unwrap();
    assert_eq!(instance.describe_balloon_stats().unwrap().target_mib, 1);
    instance.resume().unwrap();
    assert_eq!(state(&mut instance), InstanceState::Running);
    assert!(instance.get_export_vm_config().is_ok());

    instance.stop().unwrap();
    let capacities = [16_u32.to_le_bytes(), 64_u32.to_le_bytes()].concat();
    wait_for(&at("stdout"), &capacities);
    let log = std::fs::read_to_string(at("log")).unwrap();
    assert!(log.contains("The guest is paused"), "{log}");
}
