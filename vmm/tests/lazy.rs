//! Guests that go on with memory that a program serves page by page: real processes, by the API and by the command line.
#![expect(
    unsafe_code,
    reason = "hands a descriptor to a child process, as the VMM's parent does"
)]
#![expect(
    clippy::unwrap_used,
    reason = "a test whose world cannot be set up has failed"
)]

#[expect(dead_code, reason = "other tests need more of it")]
mod client;
#[expect(dead_code, reason = "other tests need more of it")]
mod guest;
#[expect(dead_code, reason = "other tests need more of it")]
mod store;
#[expect(dead_code, reason = "other tests need more of it")]
mod trace;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use client::Vmm;
use guest::Code;
use serde_json::{Value, json};
use tempfile::TempDir;
use vmm::userfault::handler::{
    Connection, Content, End, HandlerError, Page, Plan, Report, SourceError,
};

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

const MEMORY: u64 = 2 << 20;
const FILL: Plan = Plan {
    prefetch: Vec::new(),
    fill_after: Some(Duration::ZERO),
};
const ON_DEMAND: Plan = Plan {
    prefetch: Vec::new(),
    fill_after: None,
};

/// A guest that counts on its disk, its snapshot, and all that it was made of, in one folder.
struct Saved {
    folder: TempDir,
    /// As the VMM calls the folder.
    seen: PathBuf,
    arguments: Vec<String>,
    count: u8,
}

/// Where a guest's jail, if it has one, is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Jail {
    Off,
    On,
}

impl Saved {
    /// A guest that has counted to two, its snapshot taken, its VMM ended.
    fn new(pci: bool, jail: Jail, more: &[(&str, Value)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = Code::new().count_on_disk(pci).image();
        fs::copy(kernel.path(), folder.path().join("kernel")).unwrap();
        fs::write(folder.path().join("disk"), vec![0; 1 << 20]).unwrap();
        fs::write(folder.path().join("pmem"), vec![0; 2 << 20]).unwrap();
        let path = folder.path().to_str().unwrap().to_owned();
        let (seen, arguments) = match jail {
            Jail::Off => (folder.path().into(), Vec::new()),
            Jail::On => (
                "/".into(),
                vec!["--jail".into(), "--jail-root".into(), path],
            ),
        };
        let mut saved = Self {
            folder,
            seen,
            arguments,
            count: 0,
        };
        let mut vmm = saved.vmm(if pci { &["--enable-pci"] } else { &[] });
        vmm.configure(&saved.seen("kernel"));
        let drive = json!({
            "drive_id": "d", "is_root_device": false, "is_read_only": false, "path_on_host": saved.seen("disk")
        });
        vmm.done("PUT", "/drives/d", &drive.to_string());
        for (path, body) in more {
            vmm.done("PUT", path, &body.to_string());
        }
        vmm.action("InstanceStart");
        for _ in 0..2 {
            saved.step(&mut vmm, "disk");
        }
        saved.save(&mut vmm, "state", "memory");
        kill(vmm);
        saved
    }

    fn vmm(&self, more: &[&str]) -> Vmm {
        let own = self.arguments.iter().map(String::as_str);
        let arguments: Vec<_> = own.chain(more.iter().copied()).collect();
        Vmm::start(&arguments)
    }

    /// A file as the VMM calls it.
    fn seen(&self, name: &str) -> PathBuf {
        self.seen.join(name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Has the guest count on.
    fn step(&mut self, vmm: &mut Vmm, disk: &str) {
        self.count += 1;
        vmm.type_in(b"x");
        vmm.expect(&[b'0', self.count, self.count]);
        assert_eq!(fs::read(self.path(disk)).unwrap()[0], self.count);
    }

    fn save(&self, vmm: &mut Vmm, state: &str, memory: &str) {
        vmm.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
        let create =
            json!({ "snapshot_path": self.seen(state), "mem_file_path": self.seen(memory) });
        vmm.done("PUT", "/snapshot/create", &create.to_string());
    }

    /// The body of a request that loads it from a program at `socket`.
    fn request(&self, socket: &str) -> Value {
        let backend = json!({ "backend_type": "Uffd", "backend_path": self.seen(socket) });
        json!({ "snapshot_path": self.seen("state"), "mem_backend": backend, "resume_vm": true })
    }

    /// A program that serves the memory at `socket`, to one VMM.
    fn serve(&self, socket: &str, plan: Plan) -> Handler {
        let memory = File::open(self.path("memory")).unwrap();
        self.serve_from(socket, plan, move |offset, page: &mut Page| {
            memory.read_exact_at(page, offset)?;
            Ok(match page.iter().all(|byte| *byte == 0) {
                true => Content::Zero,
                false => Content::Data,
            })
        })
    }

    fn serve_from(
        &self,
        socket: &str,
        plan: Plan,
        mut source: impl FnMut(u64, &mut Page) -> Result<Content, SourceError> + Send + 'static,
    ) -> Handler {
        let listener = UnixListener::bind(self.path(socket)).unwrap();
        let (sender, stream) = mpsc::channel();
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            // Nobody may want it.
            let _ = sender.send(stream.try_clone().unwrap());
            Connection::accept(stream, MEMORY)?.serve(&plan, &mut source)
        });
        Handler { thread, stream }
    }
}

struct Handler {
    thread: JoinHandle<Result<Report, HandlerError>>,
    /// Of its connection, once there is one: for who speaks in its place.
    stream: Receiver<UnixStream>,
}

impl Handler {
    fn end(self) -> Result<Report, HandlerError> {
        self.thread.join().unwrap()
    }
}

/// Kills it, as a host that falls does, with what is in its jail.
fn kill(mut vmm: Vmm) {
    vmm.child.kill().unwrap();
    vmm.child.wait().unwrap();
}

/// Loads it as soon as the VMM before has let go of the disk: one in a jail ends a little later than its keeper.
fn load(vmm: &mut Vmm, request: &Value) {
    for _ in 0..500 {
        let (status, answer) = vmm.ask("PUT", "/snapshot/load", &request.to_string());
        if status == 204 {
            return;
        }
        assert!(answer.to_string().contains("disk"), "{answer}");
        thread::sleep(Duration::from_millis(10));
    }
    panic!("the disk is never free");
}

#[test]
fn a_guest_goes_on_with_every_byte_of_its_memory_and_can_be_saved_again() {
    if !have_kvm() {
        return;
    }
    for (pci, jail) in [
        (false, Jail::Off),
        (true, Jail::Off),
        (false, Jail::On),
        (true, Jail::On),
    ] {
        let mut saved = Saved::new(pci, jail, &[]);
        // One that failed before it asked for memory does not keep the next from its own.
        let mut vmm = saved.vmm(&[]);
        let fault = vmm.refused(
            "PUT",
            "/snapshot/load",
            &saved.request("nobody").to_string(),
        );
        assert!(fault.contains("nobody"), "{fault}");
        let handler = saved.serve("socket", ON_DEMAND);
        let mut request = saved.request("socket");
        request["resume_vm"] = false.into();
        // The connection of an attempt that fails for its disk is over with it.
        thread::sleep(Duration::from_millis(100));
        load(&mut vmm, &request);
        // All of it, by way of faults in the kernel too.
        saved.save(&mut vmm, "state2", "memory2");
        let (before, after) = (
            fs::read(saved.path("memory")).unwrap(),
            fs::read(saved.path("memory2")).unwrap(),
        );
        let different: Vec<_> = (0..before.len())
            .filter(|&at| before[at] != after[at])
            .collect();
        // The guest's new generation ID.
        let (first, last) = (different.first().unwrap(), different.last().unwrap());
        assert!(last - first < 16, "{different:?}");
        vmm.done("PATCH", "/vm", r#"{"state": "Resumed"}"#);
        for _ in 0..3 {
            saved.step(&mut vmm, "disk");
        }
        kill(vmm);
        let report = handler.end().unwrap();
        assert_eq!(report.end, End::Gone);
        assert_eq!(report.faults.len() as u64, MEMORY / 4096);
        println!("{pci} {jail:?}: first pages {:x?}", &report.faults[..8]);

        // And what was saved of it goes on from a file.
        saved.count = 2;
        let mut vmm = saved.vmm(&[]);
        load(
            &mut vmm,
            &json!({
                "snapshot_path": saved.seen("state2"), "mem_file_path": saved.seen("memory2"), "resume_vm": true
            }),
        );
        saved.step(&mut vmm, "disk");
    }
}

#[test]
fn a_guest_whose_memory_is_served_is_saved_while_it_runs() {
    if !have_kvm() {
        return;
    }
    for (pci, jail) in [(false, Jail::Off), (true, Jail::On)] {
        let mut saved = Saved::new(pci, jail, &[]);
        let handler = saved.serve("socket", ON_DEMAND);
        let arguments: Vec<_> = saved.arguments.iter().map(String::as_str).collect();
        let (mut vmm, mut store) = store::start(&arguments);
        let mut request = saved.request("socket");
        request["track_dirty_pages"] = true.into();
        thread::sleep(Duration::from_millis(100));
        load(&mut vmm, &request);
        // Counted from what it came from, most of which is not there yet.
        store.image = fs::read(saved.path("memory")).unwrap();
        for _ in 0..3 {
            saved.step(&mut vmm, "disk");
            assert!(!store.took(false).memory.full);
        }
        let changes = store.took(false);
        let full = store.took(true);
        assert!(changes.image == full.image);
        saved.step(&mut vmm, "disk");
        assert!(store.took(false).end.pages > 0);
        kill(vmm);
        let report = handler.end().unwrap();
        assert_eq!(report.faults.len() as u64, MEMORY / 4096);
        // The one before the last step.
        full.write(&saved.path("state2"), &saved.path("memory2"));
        saved.count -= 1;
        let mut vmm = saved.vmm(&[]);
        load(
            &mut vmm,
            &json!({
                "snapshot_path": saved.seen("state2"), "mem_file_path": saved.seen("memory2"), "resume_vm": true
            }),
        );
        saved.step(&mut vmm, "disk");
    }
}

#[test]
fn when_all_is_served_the_guest_needs_the_program_no_more() {
    if !have_kvm() {
        return;
    }
    for jail in [Jail::Off, Jail::On] {
        let mut saved = Saved::new(false, jail, &[]);
        let handler = saved.serve("socket", FILL);
        let mut vmm = saved.vmm(&[]);
        thread::sleep(Duration::from_millis(100));
        load(&mut vmm, &saved.request("socket"));
        let report = handler.end().unwrap();
        assert_eq!(report.end, End::AllServed);
        for _ in 0..3 {
            saved.step(&mut vmm, "disk");
        }
        saved.save(&mut vmm, "state", "memory");
        vmm.done("PATCH", "/vm", r#"{"state": "Resumed"}"#);
        saved.step(&mut vmm, "disk");
        saved.count -= 1;
        kill(vmm);
        // Again, from what was saved of it.
        let handler = saved.serve("again", FILL);
        let mut vmm = saved.vmm(&[]);
        thread::sleep(Duration::from_millis(100));
        load(&mut vmm, &saved.request("again"));
        saved.step(&mut vmm, "disk");
        assert_eq!(handler.end().unwrap().end, End::AllServed);
        saved.step(&mut vmm, "disk");
    }
}

#[test]
fn a_vmm_whose_memory_is_served_no_more_ends_and_says_so() {
    if !have_kvm() {
        return;
    }
    let mut saved = Saved::new(false, Jail::Off, &[]);
    let log = saved.path("log");
    let arguments = ["--log-path", log.to_str().unwrap()];
    let says = |expected: &str| {
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains(expected), "{text}");
        fs::write(&log, "").unwrap();
    };
    // While the guest waits for its memory.
    let memory = File::open(saved.path("memory")).unwrap();
    let handler = saved.serve_from("broken", ON_DEMAND, move |offset, page: &mut Page| {
        // Where the disk's request is.
        if (0x18_2000..0x18_4000).contains(&offset) {
            return Err("its hash is another one".into());
        }
        memory.read_exact_at(page, offset)?;
        Ok(Content::Data)
    });
    let mut vmm = saved.vmm(&arguments);
    load(&mut vmm, &saved.request("broken"));
    vmm.type_in(b"x");
    let error = handler.end().unwrap_err();
    assert!(matches!(error, HandlerError::Source { .. }), "{error}");
    assert_eq!(vmm.end(), Some(1));
    says("has ended before all of it was there");

    // While it needs nothing.
    let handler = saved.serve("silly", ON_DEMAND);
    let mut vmm = saved.vmm(&arguments);
    let mut request = saved.request("silly");
    request["resume_vm"] = false.into();
    load(&mut vmm, &request);
    assert_eq!(vmm.state(), "Paused");
    handler.stream.recv().unwrap().write_all(b"?").unwrap();
    assert_eq!(vmm.end(), Some(1));
    says("says something unexpected");
    assert_eq!(handler.end().unwrap().end, End::Gone);

    // Nothing of it has harmed the snapshot.
    let _handler = saved.serve("socket", FILL);
    let mut vmm = saved.vmm(&arguments);
    load(&mut vmm, &saved.request("socket"));
    saved.step(&mut vmm, "disk");
}

#[test]
fn other_files_take_the_place_of_disks_and_of_persistent_memory() {
    if !have_kvm() {
        return;
    }
    for jail in [Jail::Off, Jail::On] {
        let mut saved = Saved::new(false, jail, &[]);
        fs::copy(saved.path("disk"), saved.path("copy")).unwrap();
        let mut vmm = saved.vmm(&[]);
        let mut request = saved.request("socket");
        request["drive_overrides"] =
            json!([{ "drive_id": "e", "path_on_host": saved.seen("copy") }]);
        let fault = vmm.refused("PUT", "/snapshot/load", &request.to_string());
        assert!(fault.contains("no drive \"e\""), "{fault}");
        request["drive_overrides"][0]["drive_id"] = "d".into();
        let handler = saved.serve("socket", FILL);
        load(&mut vmm, &request);
        let drive = &vmm.get("/vm/config")["drives"][0];
        assert_eq!(drive["path_on_host"], saved.seen("copy").to_str().unwrap());
        saved.step(&mut vmm, "copy");
        assert_eq!(fs::read(saved.path("disk")).unwrap()[0], 2);
        assert_eq!(handler.end().unwrap().end, End::AllServed);
    }
}

/// A VMM as the host starts it: without an API, in a jail that nothing can be reached from.
struct Jailed {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    control: UnixStream,
    events: BufReader<UnixStream>,
}

impl Jailed {
    fn start(request: &Path, more: &[&str]) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = trace::vmm();
        command
            .args(["--no-api", "--jail", "--control-fd", "3", "--load-file"])
            .arg(request)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let fd = theirs.as_raw_fd();
        let place = move || match fd {
            // SAFETY: changes a flag of an open descriptor.
            3 => drop(unsafe { libc::fcntl(3, libc::F_SETFD, 0) }),
            // SAFETY: in the child, nothing else uses the number yet that is written over.
            fd => drop(unsafe { libc::dup2(fd, 3) }),
        };
        // SAFETY: the closure makes one system call, which is safe after fork.
        unsafe {
            command.pre_exec(move || {
                place();
                Ok(())
            })
        };
        let mut child = command.spawn().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        Self {
            stdin: child.stdin.take().unwrap(),
            stdout: child.stdout.take().unwrap(),
            child,
            events: BufReader::new(ours.try_clone().unwrap()),
            control: ours,
        }
    }

    fn event(&mut self) -> Value {
        let mut line = String::new();
        self.events.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn step(&mut self, count: u8) {
        self.stdin.write_all(b"x").unwrap();
        let mut said = [0; 3];
        self.stdout.read_exact(&mut said).unwrap();
        assert_eq!(said, [b'0', count, count]);
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_jailed_vmm_without_an_api_goes_on_from_what_its_command_line_says() {
    if !have_kvm() {
        return;
    }
    for (pci, uffd) in [(false, true), (true, true), (false, false), (true, false)] {
        let saved = Saved::new(pci, Jail::Off, &[]);
        fs::copy(saved.path("disk"), saved.path("copy")).unwrap();
        let mut request = saved.request("socket");
        let handler = if uffd {
            Some(saved.serve("socket", ON_DEMAND))
        } else {
            request["mem_backend"] =
                json!({ "backend_type": "File", "backend_path": saved.path("memory") });
            None
        };
        request["drive_overrides"] =
            json!([{ "drive_id": "d", "path_on_host": saved.path("copy") }]);
        let file = saved.path("request");
        fs::write(&file, request.to_string()).unwrap();
        let mut vmm = Jailed::start(&file, &[]);
        assert_eq!(vmm.event()["event"], "restored");
        assert_eq!(vmm.event()["event"], "running");
        for count in 3..6 {
            vmm.step(count);
            assert_eq!(fs::read(saved.path("copy")).unwrap()[0], count);
        }
        writeln!(vmm.control, r#"{{"action":"stats"}}"#).unwrap();
        assert_eq!(vmm.event()["event"], "stats");
        writeln!(vmm.control, r#"{{"action":"stop"}}"#).unwrap();
        let exit = vmm.event();
        assert_eq!([&exit["event"], &exit["reason"]], ["exit", "stopped"]);
        assert_eq!(vmm.child.wait().unwrap().code(), Some(0));
        if let Some(handler) = handler {
            let report = handler.end().unwrap();
            assert_eq!(report.end, End::Gone);
            // Far from all of it.
            assert!((1..64).contains(&report.faults.len()), "{report:?}");
        }
    }
}

#[test]
fn a_jailed_vmm_whose_memory_is_served_no_more_tells_its_parent() {
    if !have_kvm() {
        return;
    }
    for waits in [false, true] {
        let saved = Saved::new(false, Jail::Off, &[]);
        let memory = File::open(saved.path("memory")).unwrap();
        let handler = saved.serve_from("socket", ON_DEMAND, move |offset, page: &mut Page| {
            // Where the disk's request is, which the guest touches next.
            if waits && offset == 0x18_3000 {
                return Err("it is gone".into());
            }
            memory.read_exact_at(page, offset)?;
            Ok(Content::Data)
        });
        let file = saved.path("request");
        fs::write(&file, saved.request("socket").to_string()).unwrap();
        let mut vmm = Jailed::start(&file, &[]);
        assert_eq!(vmm.event()["event"], "restored");
        assert_eq!(vmm.event()["event"], "running");
        if waits {
            vmm.stdin.write_all(b"x").unwrap();
            handler.end().unwrap_err();
        } else {
            vmm.step(3);
            let stream = handler.stream.recv().unwrap();
            stream.shutdown(Shutdown::Both).unwrap();
        }
        let exit = vmm.event();
        assert_eq!([&exit["event"], &exit["reason"]], ["exit", "error"]);
        let message = exit["message"].as_str().unwrap();
        assert!(message.contains("restore the guest again"), "{message}");
        assert_eq!(vmm.child.wait().unwrap().code(), Some(1));
    }
}

#[test]
fn what_nobody_could_let_go_on_or_nobody_serves_is_refused_at_once() {
    if !have_kvm() {
        return;
    }
    let saved = Saved::new(false, Jail::Off, &[]);
    let file = saved.path("request");
    let mut request = saved.request("nobody");
    for (resume, expected) in [(false, "without an API"), (true, "nobody")] {
        request["resume_vm"] = resume.into();
        fs::write(&file, request.to_string()).unwrap();
        let mut vmm = Jailed::start(&file, &[]);
        let exit = vmm.event();
        assert_eq!([&exit["event"], &exit["reason"]], ["exit", "error"]);
        let message = exit["message"].as_str().unwrap();
        assert!(message.contains(expected), "{message}");
        assert_eq!(vmm.child.wait().unwrap().code(), Some(152));
    }
}
