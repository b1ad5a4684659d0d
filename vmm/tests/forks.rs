//! Forks: several guests that go on from one snapshot, each with a network interface, a socket address and a generation ID
//! of its own, on memory that they share as long as none of them changes it. Real processes, on this machine's KVM.
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
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use client::Vmm;
use guest::Code;
use serde_json::{Value, json};
use tempfile::TempDir;

const PAUSE: (&str, &str, &str) = ("PATCH", "/vm", r#"{"state": "Paused"}"#);
/// A test that fails does not hang.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a guest says of itself at a time.
const REPORT: usize = 36;

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

/// Whether this user may make taps.
fn is_root() -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        println!("skipped: this user may not make tap interfaces");
    }
    root
}

/// A tap that is there until its test has ended.
struct Tap(String);

impl Tap {
    fn new(name: &str) -> Self {
        let name = format!("{name}{}", std::process::id());
        let made = Command::new("ip")
            .args(["tuntap", "add", "dev", &name, "mode", "tap", "vnet_hdr"])
            .status();
        assert!(made.unwrap().success(), "ip tuntap add dev {name}");
        Self(name)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).status();
    }
}

/// What a guest knows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Report {
    generation: Vec<u8>,
    mac: String,
    link_up: bool,
    cid: u64,
    /// How often it was told that it is to read its socket address again.
    resets: u16,
}

fn report(vmm: &mut Vmm) -> Report {
    vmm.type_in(b"x");
    let bytes = vmm.printed(REPORT);
    let mac: Vec<_> = bytes[16..22]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Report {
        generation: bytes[..16].to_vec(),
        mac: mac.join(":"),
        link_up: bytes[22] == 1,
        cid: u64::from_le_bytes(bytes[24..32].try_into().unwrap()),
        resets: u16::from_le_bytes(bytes[34..36].try_into().unwrap()),
    }
}

/// What the guest says when `wanted` is true of it.
fn wait(vmm: &mut Vmm, wanted: impl Fn(&Report) -> bool) -> Report {
    let until = Instant::now() + PATIENCE;
    loop {
        let report = report(vmm);
        if wanted(&report) {
            return report;
        }
        assert!(Instant::now() < until, "{report:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

const FIRST_MAC: &str = "02:00:00:00:00:01";

/// A snapshot of a guest with a network interface and a socket device.
struct Original {
    folder: TempDir,
    tap: Tap,
    /// As it was when the snapshot was taken.
    report: Report,
}

impl Original {
    fn new(name: &str, pci: bool) -> Self {
        let (code, arguments) = if pci {
            (Code::new().know_thyself(), &["--enable-pci"][..])
        } else {
            (Code::new().spin(), &[][..])
        };
        Self::of(name, &code, arguments, 2)
    }

    /// Of a guest with these megabytes of memory.
    fn of(name: &str, code: &Code, arguments: &[&str], mib: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tap = Tap::new(name);
        let pci = !arguments.is_empty();
        let kernel = code.image();
        let mut vmm = Vmm::start(arguments);
        vmm.configure(kernel.path());
        let machine = json!({ "vcpu_count": 1, "mem_size_mib": mib });
        vmm.done("PUT", "/machine-config", &machine.to_string());
        let net = json!({ "iface_id": "eth0", "host_dev_name": tap.0, "guest_mac": FIRST_MAC });
        vmm.done("PUT", "/network-interfaces/eth0", &net.to_string());
        let vsock = json!({ "guest_cid": 7, "uds_path": folder.path().join("v.sock") });
        vmm.done("PUT", "/vsock", &vsock.to_string());
        vmm.action("InstanceStart");
        let report = if pci {
            report(&mut vmm)
        } else {
            Report {
                generation: Vec::new(),
                mac: FIRST_MAC.into(),
                link_up: true,
                cid: 7,
                resets: 0,
            }
        };
        let original = Self {
            folder,
            tap,
            report,
        };
        let (method, path, body) = PAUSE;
        vmm.done(method, path, body);
        let files = json!({ "snapshot_path": original.path("state"), "mem_file_path": original.path("memory") });
        vmm.done("PUT", "/snapshot/create", &files.to_string());
        vmm.child.kill().unwrap();
        vmm.child.wait().unwrap();
        original
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The request that makes fork number `number`, at `tap`.
    fn request(&self, number: u32, tap: &Tap) -> Value {
        json!({
            "snapshot_path": self.path("state"),
            "mem_backend": { "backend_type": "File", "backend_path": self.path("memory") },
            "resume_vm": true,
            "network_replacements": [{
                "iface_id": "eth0", "host_dev_name": tap.0, "guest_mac": mac(number)
            }],
            "vsock_override": { "guest_cid": 100 + number, "uds_path": self.path(&format!("v{number}")) }
        })
    }

    /// Starts a VMM that goes on at once as `request` says.
    fn start(&self, request: &Value, arguments: &[&str]) -> Vmm {
        let file = self.path("request");
        fs::write(&file, request.to_string()).unwrap();
        let load = ["--load-file", file.to_str().unwrap()];
        Vmm::start(&[&load, arguments].concat())
    }
}

fn mac(number: u32) -> String {
    format!("02:00:00:00:01:{number:02x}")
}

fn interface(vmm: &mut Vmm) -> Value {
    vmm.get("/vm/config")["network-interfaces"][0].clone()
}

#[test]
fn forks_have_cards_addresses_and_identities_of_their_own() {
    if !have_kvm() || !is_root() {
        return;
    }
    let original = Original::new("fa", true);
    assert_eq!(original.report.mac, FIRST_MAC);
    assert!(original.report.link_up);
    assert_eq!((original.report.cid, original.report.resets), (7, 0));
    // At the same time, in a jail each: a tap that is not open when it closes never is.
    let taps: Vec<_> = (0..3)
        .map(|number| Tap::new(&format!("fb{number}")))
        .collect();
    let mut forks: Vec<_> = (0..)
        .zip(&taps)
        .map(|(number, tap)| {
            let request = original.request(number, tap);
            let vmm = match number {
                // By the API.
                0 => {
                    let mut vmm = Vmm::start(&[]);
                    vmm.done("PUT", "/snapshot/load", &request.to_string());
                    vmm
                }
                _ => original.start(&request, &["--jail"]),
            };
            (number, tap, vmm)
        })
        .collect();
    let mut generations = vec![original.report.generation.clone()];
    for (number, tap, vmm) in &mut forks {
        // It obeys at the end of its first report.
        let first = report(vmm);
        assert_eq!(first.mac, FIRST_MAC, "the card that the driver knows");
        assert!(!first.link_up, "which is connected to nothing");
        assert_eq!(first.cid, u64::from(100 + *number));
        let now = wait(vmm, |now| now.mac == mac(*number) && now.resets > 0);
        assert!(now.link_up);
        assert_eq!(
            (now.cid, now.resets),
            (first.cid, 1),
            "told once to read its address"
        );
        assert_eq!(now.generation, first.generation);
        generations.push(now.generation);
        let until = Instant::now() + PATIENCE;
        while interface(vmm)["guest_mac"] != mac(*number) {
            assert!(Instant::now() < until, "{}", interface(vmm));
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(interface(vmm)["host_dev_name"], tap.0);
        assert_eq!(vmm.get("/vm/config")["vsock"]["guest_cid"], 100 + *number);
    }
    generations.sort();
    generations.dedup();
    assert_eq!(generations.len(), 1 + forks.len(), "{generations:?}");
    // A card like any other: it can be taken away, and the fork be saved with it.
    let (number, _, vmm) = &mut forks[0];
    let (method, path, body) = PAUSE;
    vmm.done(method, path, body);
    let files = json!({ "snapshot_path": original.path("state1"), "mem_file_path": original.path("memory1") });
    vmm.done("PUT", "/snapshot/create", &files.to_string());
    vmm.done("PATCH", "/vm", r#"{"state": "Resumed"}"#);
    vmm.done("DELETE", "/network-interfaces/eth0", "");
    wait(vmm, |now| now.mac == "ff:ff:ff:ff:ff:ff");
    let number = *number;
    drop(forks);
    let again = json!({
        "snapshot_path": original.path("state1"), "mem_file_path": original.path("memory1"), "resume_vm": true,
        "vsock_override": { "uds_path": original.path("again") }
    });
    let mut vmm = original.start(&again, &[]);
    let now = report(&mut vmm);
    assert_eq!((now.mac, now.link_up), (mac(number), true));
    assert_eq!(now.cid, u64::from(100 + number));
}

#[test]
fn a_guest_is_what_it_was_until_it_lets_go_of_its_card() {
    if !have_kvm() || !is_root() {
        return;
    }
    let original = Original::new("fc", true);
    let tap = Tap::new("fd");
    let mut request = original.request(1, &tap);
    request["resume_vm"] = false.into();
    let mut vmm = Vmm::start(&[]);
    vmm.done("PUT", "/snapshot/load", &request.to_string());
    // It is asked when it goes on, and there are no snapshots of one that is on the way.
    let (method, path, body) = ("PATCH", "/vm", r#"{"state": "Resumed"}"#);
    vmm.done(method, path, body);
    assert_eq!(interface(&mut vmm)["guest_mac"], FIRST_MAC);
    let (method, path, body) = PAUSE;
    vmm.done(method, path, body);
    let files = json!({ "snapshot_path": original.path("s"), "mem_file_path": original.path("m") });
    let fault = vmm.refused("PUT", "/snapshot/create", &files.to_string());
    assert!(fault.contains("comes or goes"), "{fault}");
    vmm.done("PATCH", "/vm", r#"{"state": "Resumed"}"#);
    let fault = vmm.refused("DELETE", "/network-interfaces/eth0", "");
    assert!(fault.contains("already"), "{fault}");
    assert_eq!(report(&mut vmm).mac, FIRST_MAC);
    wait(&mut vmm, |now| now.mac == mac(1) && now.link_up);
}

#[test]
fn what_cannot_be_replaced_is_refused_with_what_could_be_done() {
    if !have_kvm() || !is_root() {
        return;
    }
    let original = Original::new("fe", true);
    let tap = Tap::new("ff");
    let mut vmm = Vmm::start(&[]);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut request = original.request(1, &tap);
        change(&mut request);
        request.to_string()
    };
    let net = |id: &str, tap: &str| json!({ "iface_id": id, "host_dev_name": tap });
    for (body, expected) in [
        (
            with(&|r| r["network_overrides"] = json!([net("eth0", "t")])),
            "named twice",
        ),
        (
            with(&|r| r["network_replacements"] = json!([net("eth0", "t"), net("eth0", "u")])),
            "named twice",
        ),
        (
            with(&|r| r["network_replacements"] = json!([net("eth9", "t")])),
            "eth9",
        ),
        (
            with(&|r| r["network_replacements"] = json!([{ "iface_id": "eth0" }])),
            "host_dev_name",
        ),
        (
            with(&|r| r["network_replacements"][0]["guest_mac"] = "ff:ff:ff:ff:ff:ff".into()),
            "ff:ff:ff:ff:ff:ff",
        ),
        (
            with(&|r| r["network_replacements"] = json!([net("eth0", "lo")])),
            "not a tap",
        ),
        (
            with(&|r| r["vsock_override"] = json!({ "guest_cid": 2 })),
            "vsock.guest_cid",
        ),
        (with(&|r| r["vsock_override"] = json!({})), "guest_cid"),
    ] {
        let fault = vmm.refused("PUT", "/snapshot/load", &body);
        assert!(fault.contains(expected), "{body}: {fault}");
    }
    // None of it stands in the way of what is right.
    vmm.done("PUT", "/snapshot/load", &with(&|_| ()));
    wait(&mut vmm, |now| now.mac == mac(1));
    drop(vmm);
    let original = Original::new("fg", false);
    let mut vmm = Vmm::start(&[]);
    let body = original.request(1, &tap).to_string();
    let fault = vmm.refused("PUT", "/snapshot/load", &body);
    for part in ["eth0", "MMIO", "network_overrides", "--enable-pci"] {
        assert!(fault.contains(part), "{fault}");
    }
    // The socket's address needs no PCI.
    let mut request = original.request(2, &tap);
    let request = request.as_object_mut().unwrap();
    request.remove("network_replacements");
    request["vsock_override"]
        .as_object_mut()
        .unwrap()
        .remove("uds_path");
    fs::remove_file(original.path("v.sock")).unwrap();
    let body = serde_json::to_string(request).unwrap();
    vmm.done("PUT", "/snapshot/load", &body);
    let config = vmm.get("/vm/config");
    assert_eq!(config["vsock"]["guest_cid"], 102);
    assert_eq!(
        config["vsock"]["uds_path"],
        original.path("v.sock").to_str().unwrap()
    );
    assert_eq!(
        config["network-interfaces"][0]["host_dev_name"],
        original.tap.0
    );
}

/// KiB that a process has for itself alone: in all, and of the file that its guest's memory came from.
fn private_kib(pid: u32, memory: &Path) -> (u64, u64) {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let sum = |text: &str| -> u64 {
        let lines = text.lines();
        let lines = lines
            .filter(|line| line.starts_with("Private_Clean") || line.starts_with("Private_Dirty"));
        let value = |line: &str| {
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        lines.map(value).sum()
    };
    let maps = read("smaps");
    let file = format!("{}\n", memory.display());
    let own = maps.split_once(&file).map_or("", |(_, rest)| rest);
    let own = own.split_once("VmFlags").map_or("", |(own, _)| own);
    (sum(&read("smaps_rollup")), sum(own))
}

/// The process in the jail, or else the VMM's own.
fn innermost(vmm: &Vmm) -> u32 {
    let outside = vmm.child.id();
    let children = format!("/proc/{outside}/task/{outside}/children");
    let children = fs::read_to_string(children).unwrap();
    let mut children = children.split_whitespace();
    children.next().map_or(outside, |pid| pid.parse().unwrap())
}

#[test]
fn forks_share_the_memory_that_they_do_not_change() {
    if !have_kvm() || !is_root() {
        return;
    }
    trace::not_in_this_test();
    const FORKS: u32 = 8;
    const MOST_KIB: u64 = 1536;
    // All of it but the first two megabytes: not one page of zeroes.
    let code = Code::new().fill(2 << 20, (254 << 20) / 4096);
    let original = Original::of("fh", &code.know_thyself(), &["--enable-pci"], 256);
    let memory = original.path("memory");
    let blocks = fs::metadata(&memory).unwrap().blocks();
    assert!(blocks * 512 >= 254 << 20, "{blocks}");
    for jail in [&[][..], &["--jail"]] {
        let taps: Vec<_> = (0..FORKS)
            .map(|number| Tap::new(&format!("fi{number}")))
            .collect();
        let mut forks: Vec<_> = (0..)
            .zip(&taps)
            .map(|(number, tap)| original.start(&original.request(number, tap), jail))
            .collect();
        let first_output: Vec<_> = forks.iter_mut().map(|vmm| report(vmm).generation).collect();
        let (mut worst, mut outside) = ((0, 0), 0);
        for vmm in &forks {
            let inside = innermost(vmm);
            worst = private_kib(inside, &memory).max(worst);
            if inside != vmm.child.id() {
                outside = private_kib(vmm.child.id(), &memory).0.max(outside);
            }
        }
        println!(
            "counted: {} KiB of a fork's VMM are its own, {} KiB of them guest memory; of a jail's keeper {outside} KiB, {jail:?}",
            worst.0, worst.1
        );
        assert!(worst.0 <= MOST_KIB, "{worst:?} KiB");
        // The pages that the guest or the host has written: stack, generation ID, rings.
        assert!((4..=64).contains(&worst.1), "{worst:?} KiB");
        // They are different guests in the same memory.
        for (number, vmm) in (0..).zip(&mut forks) {
            let now = wait(vmm, |now| now.mac == mac(number));
            let index = usize::try_from(number).unwrap();
            assert_eq!(now.generation, first_output[index]);
        }
    }
}
