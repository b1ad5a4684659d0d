//! The guest that breaks every rule (`guest-images/hostile`), on this machine's own `/dev/kvm`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tempfile::TempDir;

use crate::process::{have_kvm, is_root};

/// How long a run may take before it is called hung. No test passes or fails by speed.
const HUNG: Duration = Duration::from_secs(900);
/// What a VMM may write to its log because of its guest, in bytes.
const LOG_BYTES: usize = 256 << 10;
/// `cargo xtask test` has it on the search path.
const VIRTIOFSD: &str = "virtiofsd";
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

/// Disks, sockets, memory and, for root, a folder of the host's for one guest.
struct World {
    folder: TempDir,
    /// QEMU's virtiofsd, which serves one guest.
    share: bool,
    /// QEMU's server of a disk.
    server: Child,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A program of the host's that calls the guest's sockets again and again, until the guest is gone: it asks for a port,
/// talks, listens, and hangs up.
fn visit(path: &Path, words: &[u8], gone: &AtomicBool) {
    while !gone.load(Ordering::Relaxed) {
        if let Ok(mut stream) = UnixStream::connect(path) {
            let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
            let _ = stream.write_all(words);
            let _ = stream.read(&mut [0; 256]);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

impl World {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("image"), vec![0x5a; 1 << 20]).unwrap();
        let socket = folder.path().join("remote");
        let mut server = Command::new("qemu-nbd")
            .args(["--persistent", "--shared=8", "--format=raw", "--socket"])
            .args([&socket, &folder.path().join("image")])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while !socket.exists() {
            assert!(server.try_wait().unwrap().is_none(), "qemu-nbd has ended");
            thread::sleep(Duration::from_millis(5));
        }
        let world = Self {
            folder,
            share: is_root() && Path::new(VIRTIOFSD).exists(),
            server,
        };
        for (name, len) in [("sync", 1 << 20), ("async", 1 << 20), ("pmem", 2 << 20)] {
            let mut file = File::create(world.path(name)).unwrap();
            file.write_all(&vec![0x5a; len]).unwrap();
            // Not in the page cache: who reads it has to wait.
            file.sync_all().unwrap();
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
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

    /// Serves a folder to the next guest.
    fn share(&self) -> Child {
        let socket = self.path("fs");
        let _ = fs::remove_file(&socket);
        let mut program = Command::new(VIRTIOFSD)
            .arg(format!("--socket-path={}", socket.display()))
            .args(["-f", "-o"])
            .arg(format!("source={}", self.folder.path().display()))
            .stderr(Stdio::null())
            .spawn()
            .expect("virtiofsd is on the search path of `cargo xtask test`");
        while !socket.exists() {
            assert!(program.try_wait().unwrap().is_none(), "virtiofsd has ended");
            thread::sleep(Duration::from_millis(5));
        }
        program
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
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
            drive("remote", r#", "format": "nbd", "queues": 2"#),
            drive("witness", r#", "is_read_only": true"#),
        ];
        let mut more = String::new();
        if is_root() {
            // At most 15 characters, and another one for each guest.
            static CARDS: AtomicU32 = AtomicU32::new(0);
            let number = CARDS.fetch_add(1, Ordering::Relaxed);
            let tap = format!("h{}x{number}", std::process::id());
            more += &format!(
                r#", "network-interfaces": [{{"iface_id": "n", "host_dev_name": "{tap}"}}]"#
            );
        }
        if self.share {
            more += &format!(
                r#", "fs": [{{"tag": "share", "socket": "{}"}}]"#,
                path("fs")
            );
        }
        format!(
            r#"{{"boot-source": {{"kernel_image_path": "{}", "boot_args": "{boot_args}"}},
                "machine-config": {{"vcpu_count": 1, "mem_size_mib": {MIB}}},
                "drives": [{}], "entropy": {{}},
                "vsock": {{"guest_cid": 3, "uds_path": "{}"}},
                "console": {{"ports": [{{"name": "port", "path": "{}"}}]}},
                "balloon": {{"amount_mib": 0, "deflate_on_oom": false, "stats_polling_interval_s": 1, "free_page_reporting": true}},
                "pmem": [{{"id": "pmem", "path_on_host": "{}"}}]{more}}}"#,
            program().display(),
            drives.join(", "),
            path("vsock"),
            path("port"),
            path("pmem"),
        )
    }

    fn run(&self, boot_args: &str, arguments: &[&str]) -> Outcome {
        fs::write(self.path("config"), self.config(boot_args)).unwrap();
        let mut share = self.share.then(|| self.share());
        let mut child = crate::trace::vmm()
            .args(["--no-api", "--config-file"])
            .arg(self.path("config"))
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(File::create(self.path("out")).unwrap())
            .stderr(File::create(self.path("log")).unwrap())
            .spawn()
            .unwrap();
        let start = Instant::now();
        let gone = AtomicBool::new(false);
        let status = thread::scope(|scope| {
            scope.spawn(|| visit(&self.path("vsock"), b"CONNECT 1024\n", &gone));
            scope.spawn(|| visit(&self.path("port"), b"words for a port", &gone));
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break Some(status);
                }
                if start.elapsed() > HUNG {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    break None;
                }
                thread::sleep(Duration::from_millis(20));
            };
            gone.store(true, Ordering::Relaxed);
            status
        });
        if let Some(share) = &mut share {
            // It has ended already if its one connection has.
            let _ = share.kill();
            share.wait().unwrap();
        }
        let Some(status) = status else {
            panic!("hung: {:?}", fs::read_to_string(self.path("out")));
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
        let count = World::new().run("run=devices,leave", &[]).survived();
        println!("{count} attacks on virtio devices on MMIO");
        assert!(count > 700, "{count}");
    }
}

#[test]
fn rules_of_virtio_broken_on_pci_hurt_only_who_breaks_them() {
    if have_kvm() {
        crate::trace::not_in_this_test();
        let count = World::new()
            .run("run=devices,leave", &["--enable-pci"])
            .survived();
        println!("{count} attacks on virtio devices on PCI");
        assert!(count > 800, "{count}");
    }
}

#[test]
fn devices_that_a_guest_lets_go_in_the_middle_of_its_requests_are_gone() {
    if have_kvm() {
        let outcome = World::new().run("run=let-go", &["--enable-pci"]);
        assert!(
            outcome.said.contains("let-go-with-requests-in-flight"),
            "{}",
            outcome.said
        );
        assert!(!outcome.said.contains("FAILED"), "{}", outcome.said);
        assert_eq!(outcome.code, Some(0), "{}", outcome.log);
    }
}

#[test]
fn every_port_in_every_width_and_every_hole_in_memory_is_harmless() {
    if !have_kvm() {
        return;
    }
    crate::trace::not_in_this_test();
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
