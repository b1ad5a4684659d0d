//! Snapshots of a guest that goes on, with real processes: a guest sweeps through its memory, or counts on its disk, and the
//! store takes one snapshot after the other.
#![expect(
    clippy::unwrap_used,
    reason = "a test whose world cannot be set up has failed"
)]

#[expect(dead_code, reason = "other tests need more of it")]
mod client;
#[expect(dead_code, reason = "other tests need more of it")]
mod guest;
#[expect(dead_code, reason = "other tests need more of it")]
mod process;
mod store;
#[expect(dead_code, reason = "other tests need more of it")]
mod trace;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::Vmm;
use guest::Code;
use process::have_kvm;
use serde_json::json;
use store::{Store, Taken};
use tempfile::{NamedTempFile, TempDir};
use vmm::live::protocol::{Failure, Message, Order, Report, Take};
use vmm::userfault::handler::{Connection, Content, End as ServedEnd, Page, Plan, SourceError};

/// Where the guest's sweeps begin.
const FIRST: usize = 4 << 20;
const PAUSE: (&str, &str, &str) = ("PATCH", "/vm", r#"{"state": "Paused"}"#);
const RESUME: (&str, &str, &str) = ("PATCH", "/vm", r#"{"state": "Resumed"}"#);

fn done(vmm: &mut Vmm, (method, path, body): (&str, &str, &str)) {
    vmm.done(method, path, body);
}

/// What a guest is made of, and what is left of it.
struct World {
    folder: TempDir,
    shape: Shape,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log());
        }
    }
}

/// How a guest is to be.
#[derive(Clone, Copy)]
struct Shape {
    pages: usize,
    mib: u32,
    vcpus: u8,
    pci: bool,
    jail: bool,
    shared: bool,
}

const SMALL: Shape = Shape {
    pages: 600,
    mib: 16,
    vcpus: 1,
    pci: false,
    jail: false,
    shared: false,
};
const LARGE: Shape = Shape {
    pages: 2200,
    mib: 20,
    ..SMALL
};

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// As the VMM sees it.
    fn place(&self, name: &str) -> PathBuf {
        match self.shape.jail {
            true => Path::new("/").join(name),
            false => self.path(name),
        }
    }

    fn arguments(&self) -> Vec<String> {
        let root = self.folder.path().to_str().unwrap();
        let jail = ["--jail", "--jail-root", root].map(String::from);
        let jail = jail.into_iter().filter(|_| self.shape.jail);
        jail.collect()
    }

    /// Waits until the log says `text`.
    fn told(&self, text: &str) {
        for _ in 0..600 {
            if self.log().contains(text) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("\"{text}\" is not in the log");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// Whether all that was sent is from one instant: the guest was at one place of one sweep.
    fn sweep_of(&self, taken: &Taken) -> u32 {
        let words = taken.words(FIRST, self.shape.pages);
        let (first, last) = (words[0], words[words.len() - 1]);
        let torn = format!("{:?}", taken.end);
        assert!(words.is_sorted_by(|a, b| a >= b), "{torn}: {words:?}");
        assert!(first - last <= 1, "{torn}: {first} {last}");
        first
    }

    /// Loads `taken` into another process, where it goes on.
    fn load(&self, taken: &Taken) -> Vmm {
        taken.write(&self.path("state"), &self.path("memory"));
        let arguments = self.arguments();
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let mut vmm = Vmm::start(&arguments);
        let load = json!({
            "snapshot_path": self.place("state"), "mem_file_path": self.place("memory"),
            "resume_vm": true, "vsock_override": { "uds_path": self.place("other") }
        });
        // The socket of the one before.
        let _ = fs::remove_file(self.path("other"));
        vmm.done("PUT", "/snapshot/load", &load.to_string());
        vmm
    }
}

/// Starts a guest that sweeps, with some devices.
fn start(shape: Shape) -> (World, Vmm, Store) {
    let world = World {
        folder: tempfile::tempdir().unwrap(),
        shape,
    };
    let kernel = Code::new().sweep(
        u32::try_from(FIRST).unwrap(),
        u32::try_from(shape.pages).unwrap(),
    );
    fs::copy(kernel.image().path(), world.path("kernel")).unwrap();
    fs::write(world.path("disk"), vec![0; 1 << 20]).unwrap();
    let log = world.path("log");
    let mut arguments = vec!["--log-path", log.to_str().unwrap()];
    let jail = world.arguments();
    arguments.extend(jail.iter().map(String::as_str));
    if shape.pci {
        arguments.push("--enable-pci");
    }
    let (mut vmm, store) = store::start(&arguments);
    let source = json!({ "kernel_image_path": world.place("kernel"), "boot_args": "cmdline" });
    vmm.done("PUT", "/boot-source", &source.to_string());
    let machine = json!({ "vcpu_count": shape.vcpus, "mem_size_mib": shape.mib });
    vmm.done("PUT", "/machine-config", &machine.to_string());
    let drive = json!({
        "drive_id": "d", "is_root_device": false, "is_read_only": true, "path_on_host": world.place("disk")
    });
    vmm.done("PUT", "/drives/d", &drive.to_string());
    vmm.done("PUT", "/entropy", "{}");
    vmm.done(
        "PUT",
        "/balloon",
        r#"{"amount_mib": 1, "deflate_on_oom": true}"#,
    );
    let vsock = json!({ "guest_cid": 3, "uds_path": world.place("vsock") });
    vmm.done("PUT", "/vsock", &vsock.to_string());
    if shape.shared {
        vmm.done("PATCH", "/machine-config", r#"{"track_dirty_pages": true}"#);
    }
    vmm.action("InstanceStart");
    (world, vmm, store)
}

/// The sweep that the guest is in.
fn sweep(vmm: &mut Vmm) -> u32 {
    vmm.type_in(b"x");
    let mut word = [0; 4];
    vmm.stdout.read_exact(&mut word).unwrap();
    u32::from_le_bytes(word)
}

/// Waits until the guest has swept on.
fn sweep_on(vmm: &mut Vmm) -> u32 {
    let before = sweep(vmm);
    loop {
        let now = sweep(vmm);
        if now > before {
            return now;
        }
    }
}

#[test]
fn every_snapshot_is_of_one_instant_and_goes_on() {
    if !have_kvm() {
        return;
    }
    for (pci, jail, vcpus) in [
        (false, false, 1),
        (true, true, 2),
        (false, true, 4),
        (true, false, 3),
    ] {
        let shape = Shape {
            pci,
            jail,
            vcpus,
            ..SMALL
        };
        let (world, mut vmm, mut store) = start(shape);
        let mut before = sweep_on(&mut vmm);
        for round in 0..12 {
            // The second one in the dozen that is asked to be full is, and the first one is anyway.
            let taken = store.took(round == 6);
            assert_eq!(taken.memory.full, round % 6 == 0, "{round}");
            assert_eq!(taken.memory.len, 16 << 20);
            let at = world.sweep_of(&taken);
            assert!(at >= before, "{at} {before}");
            before = sweep_on(&mut vmm);
            if round % 4 == 3 {
                let mut other = world.load(&taken);
                assert!(sweep_on(&mut other) >= at);
                let mut clock = other.get("/machine-config");
                assert_eq!(clock["vcpu_count"].take(), vcpus);
            }
        }
        let log = world.log();
        assert_eq!(
            log.matches("the guest stood still for").count(),
            12,
            "{log}"
        );
    }
}

#[test]
fn what_a_guest_changes_too_fast_is_protected_until_it_is_sent() {
    if !have_kvm() {
        return;
    }
    for (shared, pci, jail) in [(false, true, true), (true, false, false)] {
        let (world, mut vmm, mut store) = start(Shape {
            pci,
            jail,
            shared,
            vcpus: 2,
            ..LARGE
        });
        sweep_on(&mut vmm);
        let mut before = 0;
        for round in 0..6 {
            // A store that is slower than the guest.
            store.pause = Duration::from_millis(if round % 2 == 0 { 5 } else { 0 });
            let taken = store.take(false).unwrap();
            let at = world.sweep_of(&taken);
            assert!(at >= before, "{at} {before}");
            println!("{round}: {:?}, sweep {at}", taken.end);
            before = at;
            if round == 2 {
                // The next one has its changes as well.
                store.lose(&taken);
                continue;
            }
            store.keep(&taken);
            if round > 2 {
                assert!(sweep_on(&mut world.load(&taken)) >= at);
            }
        }
        assert!(sweep_on(&mut vmm) >= before);
        let log = world.log();
        let protected = log.lines().filter(|line| {
            line.contains("blocks of 2 MiB protected") && !line.contains(" 0 blocks")
        });
        assert!(protected.count() > 0, "{log}");
    }
}

#[test]
fn whoever_takes_a_snapshot_has_the_log_of_changes() {
    if !have_kvm() {
        return;
    }
    let (world, mut vmm, mut store) = start(SMALL);
    let api = |vmm: &mut Vmm, kind: &str| {
        done(vmm, PAUSE);
        let create = json!({
            "snapshot_path": world.path("s"), "mem_file_path": world.path("m"), "snapshot_type": kind
        });
        vmm.done("PUT", "/snapshot/create", &create.to_string());
        done(vmm, RESUME);
        let file = fs::metadata(world.path("m")).unwrap();
        std::os::unix::fs::MetadataExt::blocks(&file) * 512
    };
    sweep_on(&mut vmm);
    // Changes are noted from whoever's first one on.
    let swept = (world.shape.pages * 4096) as u64;
    assert!(api(&mut vmm, "Diff") > swept);
    sweep_on(&mut vmm);
    let changes = api(&mut vmm, "Diff");
    assert!((swept..2 * swept).contains(&changes), "{changes}");
    assert!(store.took(false).memory.full);
    sweep_on(&mut vmm);
    assert!(!store.took(false).memory.full);
    // The other one's.
    assert!(api(&mut vmm, "Diff") > swept);
    sweep_on(&mut vmm);
    let first = store.took(false);
    assert!(first.memory.full);
    world.sweep_of(&first);
    sweep_on(&mut vmm);
    // In between: what is kept afterwards is no base any more.
    let taken = store.take(false).unwrap();
    assert!(!taken.memory.full);
    api(&mut vmm, "Full");
    store.keep(&taken);
    sweep_on(&mut vmm);
    let changes = api(&mut vmm, "Diff");
    assert!((swept..2 * swept).contains(&changes), "{changes}");
    let next = store.took(false);
    assert!(next.memory.full);
    world.sweep_of(&next);
}

#[test]
fn a_guest_from_a_snapshot_is_counted_from_there_and_needs_no_protection() {
    if !have_kvm() {
        return;
    }
    let (world, mut vmm, mut store) = start(LARGE);
    sweep_on(&mut vmm);
    let mut taken = store.took(false);
    for round in 0..2 {
        let (mut other, mut its_store) = store::start(&[]);
        let (state, memory) = (format!("state{round}"), format!("memory{round}"));
        taken.write(&world.path(&state), &world.path(&memory));
        let load = json!({
            "snapshot_path": world.path(&state), "mem_file_path": world.path(&memory),
            "resume_vm": true, "track_dirty_pages": true,
            "vsock_override": { "uds_path": world.path(&format!("other{round}")) }
        });
        other.done("PUT", "/snapshot/load", &load.to_string());
        its_store.image.clone_from(&taken.image);
        // Its memory is a file's, which the kernel does not protect.
        its_store.pause = Duration::from_millis(2);
        let before = sweep_on(&mut other);
        let next = its_store.took(false);
        assert!(!next.memory.full);
        assert!(world.sweep_of(&next) >= before);
        sweep_on(&mut other);
        taken = its_store.took(false);
        assert!(world.sweep_of(&taken) >= before);
    }
}

#[test]
fn a_paused_guest_stays_paused_and_its_snapshot_is_the_same_twice() {
    if !have_kvm() {
        return;
    }
    let (world, mut vmm, mut store) = start(Shape {
        jail: true,
        pci: true,
        ..SMALL
    });
    sweep_on(&mut vmm);
    done(&mut vmm, PAUSE);
    let first = store.took(true);
    let second = store.took(false);
    assert_eq!(vmm.state(), "Paused");
    assert!(first.image == second.image);
    assert_eq!(second.end.pages, 0);
    world.sweep_of(&second);
    done(&mut vmm, RESUME);
    sweep_on(&mut vmm);
}

#[test]
fn what_is_lost_or_forgotten_is_in_the_next_one() {
    if !have_kvm() {
        return;
    }
    let (world, mut vmm, mut store) = start(SMALL);
    // Lost, the first one is no base.
    let taken = store.take(false).unwrap();
    store.lose(&taken);
    assert!(store.took(false).memory.full);
    for round in 0..6 {
        sweep_on(&mut vmm);
        let taken = store.take(false).unwrap();
        match round % 3 {
            0 => store.lose(&taken),
            // Neither kept nor lost.
            1 => {}
            _ => store.keep(&taken),
        }
        // The guest stands still: whatever changed did so before.
        done(&mut vmm, PAUSE);
        let next = store.took(false);
        assert!(!next.memory.full);
        let at = world.sweep_of(&next);
        let full = store.took(true);
        assert!(next.image == full.image, "{round}");
        done(&mut vmm, RESUME);
        if round == 5 {
            assert!(sweep_on(&mut world.load(&next)) >= at);
        }
    }
}

#[test]
fn a_store_that_freezes_too_late_gets_no_snapshot_and_then_the_next_one() {
    if !have_kvm() {
        return;
    }
    let (world, mut vmm, mut store) = start(SMALL);
    sweep_on(&mut vmm);
    store.took(false);
    let number = store.ask(false);
    loop {
        match store.hear() {
            Report::Failed(failure) => {
                assert_eq!(failure.number, number);
                assert!(failure.reason.contains("frozen"), "{}", failure.reason);
                break;
            }
            Report::Freeze | Report::Memory(_) | Report::Pages(_) => {}
            other => panic!("{other:?}"),
        }
    }
    sweep_on(&mut vmm);
    store.say(&Order::Frozen);
    let taken = store.took(false);
    assert!(!taken.memory.full);
    world.sweep_of(&taken);
    // Late again, and this time the answer comes when the next one is under way.
    store.ask(false);
    while !matches!(store.hear(), Report::Failed(_)) {}
    store.say(&Order::Frozen);
    let taken = store.took(false);
    world.sweep_of(&taken);
    sweep_on(&mut vmm);
}

#[test]
fn a_store_that_dies_or_talks_nonsense_leaves_the_guest_alone() {
    if !have_kvm() {
        return;
    }
    let take = |number| Order::Take(Take { number, full: true }).encode();
    let nonsense: [(&str, Vec<u8>); 5] = [
        ("kind 0", vec![0; 8]),
        (
            "of 4294967295 bytes",
            [&[1, 0, 0, 0][..], &[255; 4]].concat(),
        ),
        ("FROZEN when", Order::Frozen.encode()),
        ("kind 17", Report::Freeze.encode()),
        ("TAKE when", [take(1), take(2)].concat()),
    ];
    for (expected, bytes) in nonsense {
        let (world, mut vmm, mut store) = start(SMALL);
        sweep_on(&mut vmm);
        // It may be gone before all is said.
        let _ = store.socket.write_all(&bytes);
        let mut rest = Vec::new();
        let _ = store.socket.read_to_end(&mut rest);
        sweep_on(&mut vmm);
        world.told("The store gets no more snapshots");
        world.told(expected);
    }
    // In the middle of pages, and of those that are protected.
    for (shape, frames) in [(SMALL, 1), (LARGE, 6), (LARGE, 14)] {
        let (world, mut vmm, mut store) = start(shape);
        sweep_on(&mut vmm);
        store.ask(true);
        let mut count = 0;
        while count < frames {
            match store.hear() {
                Report::Pages(_) => {
                    count += 1;
                    std::thread::sleep(Duration::from_millis(3));
                }
                Report::Freeze => store.say(&Order::Frozen),
                Report::Memory(_) | Report::State(_) => {}
                Report::End(_) => break,
                other => panic!("{other:?}"),
            }
        }
        drop(store);
        sweep_on(&mut vmm);
        done(&mut vmm, PAUSE);
        let create = json!({ "snapshot_path": world.path("s"), "mem_file_path": world.path("m") });
        vmm.done("PUT", "/snapshot/create", &create.to_string());
        done(&mut vmm, RESUME);
        sweep_on(&mut vmm);
        world.told("The store has closed the live channel");
    }
}

#[test]
fn a_store_that_gives_up_in_the_middle_gets_the_next_one() {
    if !have_kvm() {
        return;
    }
    let (world, mut vmm, mut store) = start(LARGE);
    sweep_on(&mut vmm);
    let number = store.ask(true);
    for _ in 0..5 {
        assert!(matches!(store.hear(), Report::Memory(_) | Report::Pages(_)));
    }
    let reason = "for a test".into();
    store.say(&Order::Lost(Failure { number, reason }));
    // What was on its way until the next one begins is of no interest.
    let number = store.ask(true);
    let memory = loop {
        match store.hear() {
            Report::Memory(memory) if memory.number == number => break memory,
            // The VMM was quicker with the one that was given up than the news.
            Report::Freeze => store.say(&Order::Frozen),
            _ => {}
        }
    };
    assert!(memory.full);
    while !matches!(store.hear(), Report::Freeze) {}
    store.say(&Order::Frozen);
    while !matches!(store.hear(), Report::End(_)) {}
    let taken = store.took(true);
    world.sweep_of(&taken);
    sweep_on(&mut vmm);
}

#[test]
fn a_store_that_reads_nothing_is_given_up_and_the_guest_goes_on() {
    if !have_kvm() {
        return;
    }
    let (world, mut vmm, mut store) = start(LARGE);
    sweep_on(&mut vmm);
    store.ask(true);
    let mut rest = Vec::new();
    // As if all was well.
    for _ in 0..10 {
        sweep(&mut vmm);
    }
    world.told("has not taken");
    store.socket.read_to_end(&mut rest).unwrap();
    sweep_on(&mut vmm);
}

#[test]
fn a_disk_that_is_written_to_is_frozen_with_what_the_guest_has_seen() {
    if !have_kvm() {
        return;
    }
    for pci in [false, true] {
        let kernel = Code::new().count_on_disk(pci).image();
        let disk = NamedTempFile::new().unwrap();
        disk.as_file().set_len(1 << 20).unwrap();
        let arguments: &[&str] = if pci { &["--enable-pci"] } else { &[] };
        let (mut vmm, mut store) = store::start(arguments);
        vmm.configure(kernel.path());
        let drive = json!({
            "drive_id": "d", "is_root_device": false, "path_on_host": disk.path()
        });
        vmm.done("PUT", "/drives/d", &drive.to_string());
        vmm.action("InstanceStart");
        let mut count = 0;
        let mut step = |vmm: &mut Vmm| {
            count += 1;
            vmm.type_in(b"x");
            vmm.expect(&[b'0', count, count]);
            count
        };
        for _ in 0..20 {
            step(&mut vmm);
            store.took(false);
        }
        // The last one again, in another process.
        let at = step(&mut vmm);
        let taken = store.took(false);
        assert!(!taken.memory.full);
        vmm.child.kill().unwrap();
        vmm.child.wait().unwrap();
        assert_eq!(fs::read(disk.path()).unwrap()[0], at);
        let folder = tempfile::tempdir().unwrap();
        let (state, memory) = (folder.path().join("s"), folder.path().join("m"));
        taken.write(&state, &memory);
        let mut vmm = Vmm::start(&[]);
        let load = json!({ "snapshot_path": state, "mem_file_path": memory, "resume_vm": true });
        vmm.done("PUT", "/snapshot/load", &load.to_string());
        step(&mut vmm);
        assert_eq!(fs::read(disk.path()).unwrap()[0], at + 1);
    }
}

#[test]
fn a_guest_whose_memory_is_still_served_is_saved_or_the_store_hears_why_and_afterwards_it_is() {
    if !have_kvm() {
        return;
    }
    let (world, mut vmm, mut store) = start(Shape { pci: true, ..LARGE });
    let before = sweep_on(&mut vmm);
    let taken = store.took(true);
    assert!(world.sweep_of(&taken) >= before);
    vmm.child.kill().unwrap();
    vmm.child.wait().unwrap();
    taken.write(&world.path("state"), &world.path("memory"));

    let listener = UnixListener::bind(world.path("pager")).unwrap();
    let memory = taken.image;
    let pager = std::thread::spawn(move || {
        let stream = listener.accept().unwrap().0;
        let mut source = |offset: u64, page: &mut Page| -> Result<Content, SourceError> {
            let offset = usize::try_from(offset)?;
            page.copy_from_slice(&memory[offset..][..4096]);
            Ok(Content::Data)
        };
        let plan = Plan {
            prefetch: Vec::new(),
            fill_after: Some(Duration::from_millis(500)),
        };
        let connection = Connection::accept(stream, memory.len() as u64).unwrap();
        connection.serve(&plan, &mut source).unwrap()
    });
    let log = world.path("log");
    let (mut vmm, mut store) = store::start(&["--log-path", log.to_str().unwrap()]);
    let backend = json!({ "backend_type": "Uffd", "backend_path": world.place("pager") });
    let load = json!({
        "snapshot_path": world.place("state"), "mem_backend": backend,
        "resume_vm": true, "vsock_override": { "uds_path": world.place("other") }
    });
    vmm.done("PUT", "/snapshot/load", &load.to_string());
    let mut at = sweep_on(&mut vmm);
    match store.take(true) {
        Ok(taken) => {
            let found = world.sweep_of(&taken);
            assert!(found >= at, "{found} {at}");
            println!("at sweep {found}: {:?}", taken.end);
            store.keep(&taken);
        }
        Err(failure) => assert!(
            failure.reason.contains("Cannot control"),
            "{}",
            failure.reason
        ),
    }
    assert_eq!(pager.join().unwrap().end, ServedEnd::AllServed);
    for _ in 0..2 {
        at = sweep_on(&mut vmm).max(at);
        let taken = store.took(false);
        let found = world.sweep_of(&taken);
        assert!(found >= at, "{found} {at}");
    }
}
