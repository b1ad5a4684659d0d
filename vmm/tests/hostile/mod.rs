//! The guest that breaks every rule (`guest-images/hostile`), on this machine's own `/dev/kvm`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::have_kvm;

/// How long a run may take before it is called hung. No test passes or fails by speed.
const HUNG: Duration = Duration::from_secs(900);
/// What a VMM may write to its log because of its guest, in bytes.
const LOG_BYTES: usize = 256 << 10;
/// RAM of the guest: what the program expects.
const MIB: u32 = 64;

/// The program, built once: as `cargo xtask image --test-guests` does it for the nested tests.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile");
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let output = Command::new(env!("CARGO"))
            .current_dir(workspace)
            .args([
                "rustc",
                "--quiet",
                "--profile",
                "rom",
                "--package",
                "hostile",
            ])
            .args(["--features", "program", "--bin", "hostile", "--target-dir"])
            .arg(&target)
            .args(["--", "-C", "target-feature=-sse,-sse2"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        target.join("rom/hostile")
    })
}

/// What one run left behind.
struct Outcome {
    code: Option<i32>,
    said: String,
    log: String,
}

impl Outcome {
    /// The number of attacks, all of which were survived.
    fn survived(&self) -> usize {
        let all = self.said.lines().filter(|line| line.starts_with("attack "));
        let count = all.count();
        let last = self.said.lines().last().unwrap_or_default();
        let failed: Vec<_> = self.said.lines().filter(|l| l.contains("FAILED")).collect();
        assert!(failed.is_empty(), "{failed:#?}\n{}", self.log);
        assert_eq!(
            last,
            format!("hostile: survived {count}, failed 0"),
            "{}",
            self.log
        );
        assert_eq!(self.code, Some(0), "{}", self.log);
        assert!(
            self.log.len() <= LOG_BYTES,
            "a log of {} bytes",
            self.log.len()
        );
        count
    }
}

/// Disks, sockets and memory for one guest.
struct World(TempDir);

impl World {
    fn new() -> Self {
        let world = Self(TempDir::new().unwrap());
        for (name, len) in [("sync", 1 << 20), ("async", 1 << 20), ("pmem", 2 << 20)] {
            let file = File::create(world.path(name)).unwrap();
            file.set_len(len).unwrap();
        }
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]);
        let made = create.arg(world.path("thin")).arg("4M").status().unwrap();
        assert!(made.success());
        // Its sectors start with their numbers.
        let sector = |number: u64| {
            let mut sector = vec![0; 512];
            sector[..8].copy_from_slice(&number.to_le_bytes());
            sector
        };
        let disk: Vec<_> = (0..64).flat_map(sector).collect();
        fs::write(world.path("witness"), disk).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn config(&self, boot_args: &str) -> String {
        let path = |name: &str| self.path(name).display().to_string();
        let drive = |name: &str, more: &str| {
            // Where the VMM is started.
            format!(
                r#"{{"drive_id": "{name}", "is_root_device": false, "path_on_host": "{name}"{more}}}"#
            )
        };
        let drives = [
            drive("sync", r#", "io_engine": "Sync""#),
            drive("async", r#", "io_engine": "Async", "queues": 2"#),
            drive("thin", r#", "format": "qcow2""#),
            drive("witness", r#", "is_read_only": true"#),
        ];
        format!(
            r#"{{"boot-source": {{"kernel_image_path": "{}", "boot_args": "{boot_args}"}},
                "machine-config": {{"vcpu_count": 1, "mem_size_mib": {MIB}}},
                "drives": [{}], "entropy": {{}},
                "vsock": {{"guest_cid": 3, "uds_path": "{}"}},
                "console": {{"ports": [{{"name": "port", "path": "{}"}}]}},
                "balloon": {{"amount_mib": 0, "deflate_on_oom": false, "stats_polling_interval_s": 1, "free_page_reporting": true}},
                "pmem": [{{"id": "pmem", "path_on_host": "{}"}}]}}"#,
            program().display(),
            drives.join(", "),
            path("vsock"),
            path("port"),
            path("pmem"),
        )
    }

    fn run(&self, boot_args: &str, arguments: &[&str]) -> Outcome {
        fs::write(self.path("config"), self.config(boot_args)).unwrap();
        let mut child = crate::trace::vmm()
            .args(["--no-api", "--config-file"])
            .arg(self.path("config"))
            .args(arguments)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(File::create(self.path("out")).unwrap())
            .stderr(File::create(self.path("log")).unwrap())
            .spawn()
            .unwrap();
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > HUNG {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("hung: {:?}", fs::read_to_string(self.path("out")));
            }
            thread::sleep(Duration::from_millis(20));
        };
        let text = |name| String::from_utf8_lossy(&fs::read(self.path(name)).unwrap()).into_owned();
        Outcome {
            code: status.code(),
            said: text("out"),
            log: text("log"),
        }
    }
}

#[test]
fn rules_of_virtio_broken_on_mmio_hurt_only_who_breaks_them() {
    if have_kvm() {
        let count = World::new().run("run=devices", &[]).survived();
        println!("{count} attacks on virtio devices on MMIO");
        assert!(count > 700, "{count}");
    }
}

#[test]
fn rules_of_virtio_broken_on_pci_hurt_only_who_breaks_them() {
    if have_kvm() {
        let count = World::new()
            .run("run=devices,let-go", &["--enable-pci"])
            .survived();
        println!("{count} attacks on virtio devices on PCI");
        assert!(count > 800, "{count}");
    }
}

#[test]
fn every_port_in_every_width_and_every_hole_in_memory_is_harmless() {
    if !have_kvm() {
        return;
    }
    for arguments in [&[][..], &["--enable-pci"]] {
        let outcome = World::new().run("run=ports,machine", arguments);
        let count = outcome.survived();
        assert!(count >= 28, "{count}");
    }
}

#[test]
fn nonsense_in_the_processors_registers_and_page_tables_is_harmless() {
    if have_kvm() {
        let count = World::new().run("run=processor", &[]).survived();
        assert!(count >= 7, "{count}");
    }
}

#[test]
fn a_guest_that_ends_itself_in_any_way_ends_its_vmm_with_a_reason() {
    if !have_kvm() {
        return;
    }
    let (off, failed, reboot, fault, watchdog) = (0, 1, 16, 17, 18);
    let world = World::new();
    for (how, permitted) in [
        ("poweroff", &[off][..]),
        ("keyboard-reset", &[reboot]),
        ("acpi-reset", &[reboot]),
        ("triple-fault", &[fault]),
        ("watchdog", &[watchdog]),
        // A processor faults where an emulator gives up.
        ("code-in-registers", &[failed, fault]),
        ("code-in-a-hole", &[failed, fault]),
        ("code-in-the-local-apic", &[failed, fault]),
        ("code-over-the-end-of-memory", &[failed, fault]),
        ("page-tables-in-registers", &[failed, fault]),
        ("page-tables-in-a-hole", &[failed, fault]),
        ("stack-in-registers", &[failed, fault]),
        // A PC's firmware would start; there is none.
        ("init-to-itself", &[failed, fault, reboot]),
    ] {
        let outcome = world.run(&format!("end={how}"), &[]);
        let code = outcome.code.unwrap_or(-1);
        assert!(permitted.contains(&code), "{how}: {code}: {}", outcome.log);
        assert!(
            !outcome.log.is_empty() && !outcome.log.contains("panicked"),
            "{how}: {}",
            outcome.log
        );
    }
}
