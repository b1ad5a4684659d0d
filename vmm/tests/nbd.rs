//! Guests whose disk a server has, with real processes and the filters of system calls: QEMU's server, a guest that counts on
//! its disk, snapshots of it in between, and a server that is killed.
#![expect(
    clippy::unwrap_used,
    reason = "a test whose world cannot be set up has failed"
)]

#[expect(dead_code, reason = "other tests need more of it")]
mod client;
#[expect(dead_code, reason = "other tests need more of it")]
mod guest;
#[expect(dead_code, reason = "other tests need more of it")]
mod trace;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use client::Vmm;
use guest::Code;
use serde_json::json;
use tempfile::TempDir;

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

/// `qemu-nbd` with an image of 1 MiB, until it is dropped.
struct Server {
    folder: TempDir,
    child: Child,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("image"), vec![0; 1 << 20]).unwrap();
        let child = spawn(folder.path());
        let server = Self { folder, child };
        server.wait();
        server
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn wait(&self) {
        for _ in 0..1000 {
            if UnixStream::connect(self.socket()).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("qemu-nbd does not listen");
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn start_again(&mut self) {
        fs::remove_file(self.socket()).unwrap();
        self.child = spawn(self.folder.path());
        self.wait();
    }

    /// The disk's first byte.
    fn first(&self) -> u8 {
        fs::read(self.folder.path().join("image")).unwrap()[0]
    }
}

fn spawn(folder: &Path) -> Child {
    Command::new("qemu-nbd")
        .args(["--persistent", "--shared=8", "--format=raw", "--socket"])
        .arg(folder.join("socket"))
        .arg(folder.join("image"))
        .spawn()
        .unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn drive(socket: &Path) -> String {
    json!({
        "drive_id": "d", "is_root_device": false, "path_on_host": socket, "format": "nbd"
    })
    .to_string()
}

/// Has the guest count to `count`.
fn step(vmm: &mut Vmm, server: &Server, count: u8) {
    vmm.type_in(b"x");
    vmm.expect(&[b'0', count, count]);
    assert_eq!(server.first(), count, "on the disk");
}

fn kill(mut vmm: Vmm) {
    vmm.child.kill().unwrap();
    vmm.child.wait().unwrap();
}

#[test]
fn a_guest_goes_on_from_snapshots_with_its_disk_at_a_server() {
    if !have_kvm() {
        return;
    }
    for pci in [false, true] {
        let server = Server::start();
        let kernel = Code::new().count_on_disk(pci).image();
        let arguments: &[&str] = if pci { &["--enable-pci"] } else { &[] };
        let mut vmm = Vmm::start(arguments);
        vmm.configure(kernel.path());
        vmm.done("PUT", "/drives/d", &drive(&server.socket()));
        vmm.action("InstanceStart");
        let mut count = 0;
        for _ in 0..3 {
            for _ in 0..20 {
                count += 1;
                step(&mut vmm, &server, count);
            }
            let files = tempfile::tempdir().unwrap();
            let (state, memory) = (files.path().join("state"), files.path().join("memory"));
            vmm.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
            let create = json!({ "snapshot_path": state, "mem_file_path": memory });
            vmm.done("PUT", "/snapshot/create", &create.to_string());
            let config = vmm.get("/vm/config");
            assert_eq!(config["drives"][0]["format"], "nbd", "{config}");
            kill(vmm);
            vmm = Vmm::start(&[]);
            let backend = json!({ "backend_type": "File", "backend_path": memory });
            let load = json!({ "snapshot_path": state, "mem_backend": backend, "resume_vm": true });
            vmm.done("PUT", "/snapshot/load", &load.to_string());
        }
    }
}

#[test]
fn in_a_jail_the_server_is_reached_below_its_root() {
    if !have_kvm() {
        return;
    }
    let server = Server::start();
    let root = server.folder.path();
    let kernel = Code::new().count_on_disk(false).image();
    fs::copy(kernel.path(), root.join("kernel")).unwrap();
    let mut vmm = Vmm::start(&["--jail", "--jail-root", root.to_str().unwrap()]);
    vmm.configure(Path::new("/kernel"));
    vmm.done("PUT", "/drives/d", &drive(Path::new("/socket")));
    vmm.action("InstanceStart");
    for count in 1..20 {
        step(&mut vmm, &server, count);
    }
}

#[test]
fn a_server_is_called_before_the_jail_closes() {
    if !have_kvm() {
        return;
    }
    let server = Server::start();
    let kernel = Code::new().count_on_disk(false).image();
    let config = server.folder.path().join("config");
    let drive: serde_json::Value = serde_json::from_str(&drive(&server.socket())).unwrap();
    let text = json!({
        "boot-source": { "kernel_image_path": kernel.path() },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 2 },
        "drives": [drive]
    });
    fs::write(&config, text.to_string()).unwrap();
    // Below its root, which is empty, there is no socket.
    let mut vmm = Vmm::start(&["--jail", "--config-file", config.to_str().unwrap()]);
    for count in 1..20 {
        step(&mut vmm, &server, count);
    }
}

#[test]
fn a_killed_server_is_an_error_to_the_guest_until_the_drive_is_given_another() {
    if !have_kvm() {
        return;
    }
    let mut server = Server::start();
    let kernel = Code::new().count_on_disk(true).image();
    let mut vmm = Vmm::start(&["--enable-pci"]);
    vmm.configure(kernel.path());
    vmm.done("PUT", "/drives/d", &drive(&server.socket()));
    vmm.action("InstanceStart");
    step(&mut vmm, &server, 1);
    server.kill();
    for count in 2..5 {
        vmm.type_in(b"x");
        vmm.expect(&[b'1', count, count]);
    }
    let path = json!({ "drive_id": "d", "path_on_host": server.socket() }).to_string();
    vmm.refused("PATCH", "/drives/d", &path);
    server.start_again();
    vmm.done("PATCH", "/drives/d", &path);
    // The device takes it over when it gets to it.
    let mut count = 4;
    loop {
        count += 1;
        vmm.type_in(b"x");
        let mut printed = [0; 3];
        std::io::Read::read_exact(&mut vmm.stdout, &mut printed).unwrap();
        assert_eq!(printed[1..], [count, count]);
        if printed[0] == b'0' {
            break;
        }
        assert!(count < 200, "the server's return is not seen");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(server.first(), count);
    step(&mut vmm, &server, count + 1);
}

#[test]
fn a_server_that_is_not_there_or_has_no_disk_is_said_and_the_vmm_goes_on() {
    if !have_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = Code::new().count_on_disk(false).image();
    let mut vmm = Vmm::start(&[]);
    vmm.configure(kernel.path());
    let start = r#"{"action_type": "InstanceStart"}"#;
    let socket = folder.path().join("socket");
    vmm.done("PUT", "/drives/d", &drive(&socket));
    let fault = vmm.refused("PUT", "/actions", start);
    assert!(fault.contains("start it before the guest"), "{fault}");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let thread = thread::spawn(move || drop(listener.accept().unwrap()));
    let fault = vmm.refused("PUT", "/actions", start);
    assert!(fault.contains("NBD server"), "{fault}");
    thread.join().unwrap();
    let server = Server::start();
    vmm.done("PUT", "/drives/d", &drive(&server.socket()));
    vmm.action("InstanceStart");
    step(&mut vmm, &server, 1);
}
