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
#[expect(dead_code, reason = "other tests need more of it")]
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

#[test]
fn all_kinds_of_devices_and_several_vcpus_go_on() {
    if !have_kvm() {
        return;
    }
    for pci in [false, true] {
        let sockets = tempfile::tempdir().unwrap();
        let vsock = |name: &str| sockets.path().join(name);
        let port = json!({ "ports": [{ "name": "p", "path": sockets.path().join("port") }] });
        let (mut world, mut vmm) = start(
            pci,
            &[
                ("PATCH", "/machine-config", r#"{"vcpu_count": 3}"#),
                ("PUT", "/entropy", "{}"),
                (
                    "PUT",
                    "/balloon",
                    r#"{"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 1}"#,
                ),
                (
                    "PUT",
                    "/vsock",
                    &json!({ "guest_cid": 3, "uds_path": vsock("first") }).to_string(),
                ),
                ("PUT", "/console", &port.to_string()),
            ],
        );
        world.step(&mut vmm);
        done(&mut vmm, ("PATCH", "/balloon", r#"{"amount_mib": 2}"#));
        let files = Files::new();
        for generation in 0..3 {
            done(&mut vmm, PAUSE);
            done(&mut vmm, ("PUT", "/snapshot/create", &files.create()));
            kill(vmm);
            vmm = Vmm::start(&[]);
            // The socket of before lies there still, as after any fall.
            let second = vsock(&format!("{generation}"));
            let mut load: serde_json::Value = serde_json::from_str(&files.load(true)).unwrap();
            load["vsock_override"] = json!({ "uds_path": second });
            fs::remove_file(sockets.path().join("port")).unwrap();
            done(&mut vmm, ("PUT", "/snapshot/load", &load.to_string()));
            assert!(second.exists());
            assert_eq!(vmm.get("/balloon")["amount_mib"], 2);
            assert_eq!(vmm.get("/balloon/statistics")["target_mib"], 2);
            assert_eq!(vmm.get("/machine-config")["vcpu_count"], 3);
            world.step(&mut vmm);
            world.step(&mut vmm);
            // Another pair: the memory file of this guest is in use.
            let fault = {
                done(&mut vmm, PAUSE);
                vmm.refused("PUT", "/snapshot/create", &files.create())
            };
            assert!(fault.contains("in use"), "{fault}");
            done(&mut vmm, RESUME);
            world.step(&mut vmm);
            let next = Files::new();
            done(&mut vmm, PAUSE);
            done(&mut vmm, ("PUT", "/snapshot/create", &next.create()));
            fs::rename(next.state(), files.state()).unwrap();
            fs::rename(next.memory(), files.memory()).unwrap();
            kill(vmm);
            vmm = Vmm::start(&[]);
            fs::remove_file(sockets.path().join("port")).unwrap();
            let third = vsock(&format!("{generation}b"));
            load["vsock_override"] = json!({ "uds_path": third });
            done(&mut vmm, ("PUT", "/snapshot/load", &load.to_string()));
            fs::remove_file(files.memory()).unwrap();
            world.step(&mut vmm);
        }
    }
}

#[test]
fn what_comes_at_the_wrong_time_or_is_wrong_in_itself_is_refused_and_harms_nothing() {
    if !have_kvm() {
        return;
    }
    let (mut world, mut vmm) = start(false, &[]);
    world.step(&mut vmm);
    let files = Files::new();
    let fault = vmm.refused("PUT", "/snapshot/create", &files.create());
    assert!(fault.contains("pause it first"), "{fault}");
    assert!(!files.state().exists());
    done(&mut vmm, PAUSE);
    for (body, expected) in [
        (
            json!({ "snapshot_path": "/nowhere/s", "mem_file_path": files.memory() }),
            "/nowhere/s",
        ),
        (
            json!({ "snapshot_path": files.state(), "mem_file_path": "/dev/null" }),
            "not a regular file",
        ),
        (
            json!({ "snapshot_path": files.state(), "mem_file_path": files.state() }),
            "in use",
        ),
        (
            json!({ "snapshot_path": files.state(), "mem_file_path": world.disk.path() }),
            "in use",
        ),
        (
            json!({ "snapshot_path": files.state(), "mem_file_path": files.memory(), "snapshot_type": "Half" }),
            "Half",
        ),
    ] {
        let fault = vmm.refused("PUT", "/snapshot/create", &body.to_string());
        assert!(fault.contains(expected), "{body}: {fault}");
    }
    assert_eq!(fs::metadata(world.disk.path()).unwrap().len(), 1 << 20);
    done(&mut vmm, ("PUT", "/snapshot/create", &files.create()));
    // Not while there is a guest.
    let fault = vmm.refused("PUT", "/snapshot/load", &files.load(true));
    assert!(fault.contains("not supported after starting"), "{fault}");
    done(&mut vmm, RESUME);
    world.step(&mut vmm);
    done(&mut vmm, PAUSE);
    done(&mut vmm, ("PUT", "/snapshot/create", &files.create()));
    kill(vmm);

    // Not with a configuration.
    let mut vmm = Vmm::start(&[]);
    vmm.done("PATCH", "/machine-config", r#"{"vcpu_count": 2}"#);
    let fault = vmm.refused("PUT", "/snapshot/load", &files.load(true));
    assert!(fault.contains("after configuring boot-specific"), "{fault}");
    kill(vmm);

    let mut vmm = Vmm::start(&[]);
    let good = fs::read(files.state()).unwrap();
    let broken = files.folder.path().join("broken");
    let load = |state: &Path, memory: &Path| {
        json!({ "snapshot_path": state, "mem_file_path": memory, "resume_vm": true }).to_string()
    };
    // Every length, and every byte changed, would take minutes: a few hundred of them.
    let mut wrong = 0;
    for at in (0..good.len()).step_by(good.len() / 200).chain(0..57) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&broken, &bytes).unwrap();
        vmm.refused("PUT", "/snapshot/load", &load(&broken, &files.memory()));
        fs::write(&broken, &good[..at]).unwrap();
        vmm.refused("PUT", "/snapshot/load", &load(&broken, &files.memory()));
        wrong += 2;
    }
    println!(
        "{wrong} broken state files of {} bytes are refused",
        good.len()
    );
    let memory = fs::read(files.memory()).unwrap();
    let short = files.folder.path().join("short");
    fs::write(&short, &memory[..memory.len() - 1]).unwrap();
    let fault = vmm.refused("PUT", "/snapshot/load", &load(&files.state(), &short));
    assert!(
        fault.contains("has 2097151 bytes, the guest's memory has 2097152"),
        "{fault}"
    );
    for (body, expected) in [
        (load(Path::new("/nowhere"), &files.memory()), "/nowhere"),
        (load(&files.state(), Path::new("/nowhere")), "/nowhere"),
        (load(&files.state(), files.folder.path()), "has 0 bytes"),
        (load(&files.memory(), &files.memory()), "does not begin"),
        (
            json!({ "snapshot_path": files.state() }).to_string(),
            "missing field",
        ),
        (
            json!({ "snapshot_path": files.state(), "mem_backend": { "backend_type": "Tape", "backend_path": "m" } })
                .to_string(),
            "Tape",
        ),
        (
            json!({
                "snapshot_path": files.state(), "mem_file_path": files.memory(),
                "network_overrides": [{ "iface_id": "eth7", "host_dev_name": "t" }]
            })
            .to_string(),
            "eth7",
        ),
        (
            json!({
                "snapshot_path": files.state(), "mem_file_path": files.memory(),
                "vsock_override": { "uds_path": "v" }
            })
            .to_string(),
            "no vsock",
        ),
    ] {
        let fault = vmm.refused("PUT", "/snapshot/load", &body);
        assert!(fault.contains(expected), "{body}: {fault}");
    }
    // None of it stands in the way of what is right.
    assert_eq!(vmm.state(), "Not started");
    done(&mut vmm, ("PUT", "/snapshot/load", &files.load(true)));
    world.step(&mut vmm);
}

#[test]
fn in_a_jail_snapshots_are_below_its_root() {
    if !have_kvm() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let kernel = Code::new().count_on_disk(false).image();
    fs::copy(kernel.path(), root.path().join("kernel")).unwrap();
    fs::write(root.path().join("disk"), vec![0; 1 << 20]).unwrap();
    let arguments = ["--jail", "--jail-root", root.path().to_str().unwrap()];
    let mut vmm = Vmm::start(&arguments);
    vmm.configure(Path::new("/kernel"));
    let drive = r#"{"drive_id": "d", "is_root_device": false, "path_on_host": "/disk"}"#;
    vmm.done("PUT", "/drives/d", drive);
    vmm.action("InstanceStart");
    vmm.type_in(b"x");
    vmm.expect(&[b'0', 1, 1]);
    done(&mut vmm, PAUSE);
    let create = r#"{"snapshot_path": "/state", "mem_file_path": "/memory"}"#;
    done(&mut vmm, ("PUT", "/snapshot/create", create));
    let outside = r#"{"snapshot_path": "/state", "mem_file_path": "/../../etc/daruma/memory"}"#;
    vmm.refused("PUT", "/snapshot/create", outside);
    done(&mut vmm, ("PUT", "/snapshot/create", create));
    kill(vmm);
    let mut vmm = Vmm::start(&arguments);
    let load = r#"{"snapshot_path": "/state", "mem_file_path": "/memory", "resume_vm": true}"#;
    // The one before may not have let go of its disk yet.
    for _ in 0..200 {
        let (status, answer) = vmm.ask("PUT", "/snapshot/load", load);
        if status == 204 {
            break;
        }
        assert!(answer.to_string().contains("disk"), "{answer}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    vmm.type_in(b"x");
    vmm.expect(&[b'0', 2, 2]);
}

/// Puts what a file of changes has over `base`.
fn merge(base: &Path, changes: &Path) {
    use std::os::unix::fs::FileExt;
    let changed = fs::File::open(changes).unwrap();
    let base = fs::OpenOptions::new().write(true).open(base).unwrap();
    let length = changed.metadata().unwrap().len();
    assert_eq!(length, base.metadata().unwrap().len());
    let fd = std::os::fd::AsFd::as_fd(&changed);
    let mut at = 0;
    while let Ok(data) = nix::unistd::lseek(fd, at, nix::unistd::Whence::SeekData) {
        let hole = nix::unistd::lseek(fd, data, nix::unistd::Whence::SeekHole).unwrap();
        let (start, end) = (u64::try_from(data).unwrap(), u64::try_from(hole).unwrap());
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        changed.read_exact_at(&mut bytes, start).unwrap();
        base.write_all_at(&bytes, start).unwrap();
        at = hole;
    }
}

#[test]
fn changes_over_a_full_snapshot_are_the_guest_as_it_is() {
    use std::os::unix::fs::MetadataExt;
    if !have_kvm() {
        return;
    }
    for pci in [false, true] {
        let track = r#"{"track_dirty_pages": true}"#;
        let (mut world, mut vmm) = start(pci, &[("PATCH", "/machine-config", track)]);
        world.step(&mut vmm);
        let base = Files::new();
        done(&mut vmm, PAUSE);
        done(&mut vmm, ("PUT", "/snapshot/create", &base.create()));
        let diff = |files: &Files| {
            let mut create: serde_json::Value = serde_json::from_str(&files.create()).unwrap();
            create["snapshot_type"] = "Diff".into();
            create.to_string()
        };
        for generation in 0..4 {
            done(&mut vmm, RESUME);
            world.step(&mut vmm);
            done(&mut vmm, PAUSE);
            // One that fails changes nothing.
            let wrong = json!({ "snapshot_path": base.folder.path().join("x"), "mem_file_path": "/dev/null", "snapshot_type": "Diff" });
            vmm.refused("PUT", "/snapshot/create", &wrong.to_string());
            let changes = Files::new();
            done(&mut vmm, ("PUT", "/snapshot/create", &diff(&changes)));
            let bytes = fs::metadata(changes.memory()).unwrap().blocks() * 512;
            println!("generation {generation}, {pci}: {bytes} bytes of changes");
            assert!((1..512 << 10).contains(&bytes), "{bytes} bytes of changes");
            let full = Files::new();
            done(&mut vmm, ("PUT", "/snapshot/create", &full.create()));
            // The memory of a guest that runs from a file stays as it is.
            let merged = Files::new();
            fs::copy(base.memory(), merged.memory()).unwrap();
            merge(&merged.memory(), &changes.memory());
            let (merged_bytes, full_bytes) = (
                fs::read(merged.memory()).unwrap(),
                fs::read(full.memory()).unwrap(),
            );
            assert!(merged_bytes == full_bytes, "generation {generation}");
            kill(vmm);
            fs::copy(changes.state(), merged.state()).unwrap();
            vmm = Vmm::start(&[]);
            let mut load: serde_json::Value = serde_json::from_str(&merged.load(true)).unwrap();
            load["track_dirty_pages"] = true.into();
            done(&mut vmm, ("PUT", "/snapshot/load", &load.to_string()));
            assert_eq!(vmm.get("/machine-config")["track_dirty_pages"], true);
            world.step(&mut vmm);
            done(&mut vmm, PAUSE);
            // Counted from the file it came from.
            let changes = Files::new();
            done(&mut vmm, ("PUT", "/snapshot/create", &diff(&changes)));
            fs::copy(merged.memory(), base.memory()).unwrap();
            merge(&base.memory(), &changes.memory());
        }
        kill(vmm);
        // Who does not note changes does not know them.
        let (_world, mut vmm) = start(pci, &[]);
        done(&mut vmm, PAUSE);
        let fault = vmm.refused("PUT", "/snapshot/create", &diff(&base));
        assert!(fault.contains("track_dirty_pages"), "{fault}");
    }
}

#[test]
fn what_was_plugged_in_is_where_it_was_and_can_be_plugged_out() {
    if !have_kvm() {
        return;
    }
    let (mut world, mut vmm) = start(true, &[]);
    let disks: Vec<_> = (0..3)
        .map(|_| {
            let file = NamedTempFile::new().unwrap();
            file.as_file().set_len(1 << 20).unwrap();
            file
        })
        .collect();
    for (name, disk) in ["a", "b", "c"].iter().zip(&disks) {
        let drive = json!({
            "drive_id": name, "is_root_device": false, "is_read_only": true, "path_on_host": disk.path()
        });
        vmm.done("PUT", &format!("/drives/{name}"), &drive.to_string());
    }
    world.step(&mut vmm);
    // The guest takes its time: it never lets go, and while it is waited for there is no snapshot.
    vmm.done("DELETE", "/drives/b", "");
    done(&mut vmm, PAUSE);
    let files = Files::new();
    let fault = vmm.refused("PUT", "/snapshot/create", &files.create());
    assert!(fault.contains("comes or goes"), "{fault}");
    kill(vmm);

    let (mut world, mut vmm) = start(true, &[]);
    for (name, disk) in ["a", "b"].iter().zip(&disks) {
        let drive = json!({
            "drive_id": name, "is_root_device": false, "is_read_only": true, "path_on_host": disk.path()
        });
        vmm.done("PUT", &format!("/drives/{name}"), &drive.to_string());
    }
    world.step(&mut vmm);
    for _ in 0..3 {
        done(&mut vmm, PAUSE);
        let files = Files::new();
        done(&mut vmm, ("PUT", "/snapshot/create", &files.create()));
        let config = vmm.get("/vm/config");
        assert_eq!(config["drives"].as_array().unwrap().len(), 3);
        kill(vmm);
        vmm = Vmm::start(&[]);
        done(&mut vmm, ("PUT", "/snapshot/load", &files.load(true)));
        assert_eq!(vmm.get("/vm/config"), config);
        world.step(&mut vmm);
    }
    // It is on PCI still, with places for more.
    let drive = json!({
        "drive_id": "c", "is_root_device": false, "is_read_only": true, "path_on_host": disks[2].path()
    });
    vmm.done("PUT", "/drives/c", &drive.to_string());
    vmm.done("DELETE", "/drives/a", "");
    world.step(&mut vmm);
}
