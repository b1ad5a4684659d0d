//! Snapshots by the API, with real processes: a guest counts in its memory, in a register and on its disk, its VMM ends, and
//! another one goes on.
#![expect(
    clippy::unwrap_used,
    reason = "a test whose world cannot be set up has failed"
)]

#[expect(dead_code, reason = "other tests need more of it")]
mod client;
#[expect(dead_code, reason = "other tests need more of it")]
mod guest;
mod trace;

use std::fs;
use std::path::{Path, PathBuf};

use client::Vmm;
use guest::Code;
use serde_json::json;
use tempfile::{NamedTempFile, TempDir};

/// Whether there is a KVM. Without one the test fails, unless the user knows.
fn have_kvm() -> bool {
    let there = Path::new("/dev/kvm").exists();
    let known = std::env::var("DARUMA_NO_KVM").as_deref() == Ok("1");
    assert!(
        there || known,
        "/dev/kvm does not exist; DARUMA_NO_KVM=1 skips the tests that need it"
    );
    there
}

const PAUSE: (&str, &str, &str) = ("PATCH", "/vm", r#"{"state": "Paused"}"#);
const RESUME: (&str, &str, &str) = ("PATCH", "/vm", r#"{"state": "Resumed"}"#);

fn done(vmm: &mut Vmm, (method, path, body): (&str, &str, &str)) {
    vmm.done(method, path, body);
}

/// A snapshot's two files.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn memory(&self) -> PathBuf {
        self.folder.path().join("memory")
    }

    fn create(&self) -> String {
        json!({ "snapshot_path": self.state(), "mem_file_path": self.memory() }).to_string()
    }

    fn load(&self, resume: bool) -> String {
        let backend = json!({ "backend_type": "File", "backend_path": self.memory() });
        json!({ "snapshot_path": self.state(), "mem_backend": backend, "resume_vm": resume })
            .to_string()
    }
}

/// A guest that counts on its disk.
struct World {
    disk: NamedTempFile,
    _kernel: NamedTempFile,
    count: u8,
}

fn start(pci: bool, more: &[(&str, &str, &str)]) -> (World, Vmm) {
    let kernel = Code::new().count_on_disk(pci).image();
    let disk = NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let arguments: &[&str] = if pci { &["--enable-pci"] } else { &[] };
    let mut vmm = Vmm::start(arguments);
    vmm.configure(kernel.path());
    let drive = json!({
        "drive_id": "d", "is_root_device": false, "is_read_only": false, "path_on_host": disk.path()
    });
    vmm.done("PUT", "/drives/d", &drive.to_string());
    for (method, path, body) in more {
        vmm.done(method, path, body);
    }
    vmm.action("InstanceStart");
    let world = World {
        disk,
        _kernel: kernel,
        count: 0,
    };
    (world, vmm)
}

impl World {
    /// Has the guest count on.
    fn step(&mut self, vmm: &mut Vmm) {
        self.count += 1;
        vmm.type_in(b"x");
        vmm.expect(&[b'0', self.count, self.count]);
        let first = fs::read(self.disk.path()).unwrap()[0];
        assert_eq!(first, self.count, "on the disk");
    }
}

/// Kills it, as a host that falls does.
fn kill(mut vmm: Vmm) {
    vmm.child.kill().unwrap();
    vmm.child.wait().unwrap();
}

#[test]
fn a_guest_goes_on_in_another_process_with_its_memory_its_registers_and_its_disk() {
    if !have_kvm() {
        return;
    }
    for pci in [false, true] {
        let (mut world, mut vmm) = start(pci, &[]);
        for _ in 0..3 {
            world.step(&mut vmm);
        }
        for generation in 0..5 {
            let files = Files::new();
            done(&mut vmm, PAUSE);
            done(&mut vmm, ("PUT", "/snapshot/create", &files.create()));
            assert_eq!(vmm.state(), "Paused");
            let config = vmm.get("/vm/config");
            // The one that was paused goes on as well, but for those whose place another takes.
            if generation % 2 == 0 {
                done(&mut vmm, RESUME);
                world.step(&mut vmm);
                done(&mut vmm, PAUSE);
                done(&mut vmm, ("PUT", "/snapshot/create", &files.create()));
            }
            kill(vmm);
            // What the transport was is the snapshot's to say.
            vmm = Vmm::start(&[]);
            let resume = generation % 2 == 1;
            done(&mut vmm, ("PUT", "/snapshot/load", &files.load(resume)));
            assert_eq!(vmm.get("/vm/config"), config);
            if !resume {
                assert_eq!(vmm.state(), "Paused");
                done(&mut vmm, RESUME);
            }
            assert_eq!(vmm.state(), "Running");
            for _ in 0..3 {
                world.step(&mut vmm);
            }
        }
    }
}
