//! The store's service, as the supervisor has it.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A test that fails does not hang.
const PATIENCE: Duration = Duration::from_secs(60);
const GUEST: &str = "counter";

/// The process, its store and the guest's image.
pub struct Service {
    pub folder: TempDir,
    child: Child,
    stream: RefCell<BufReader<UnixStream>>,
    next: RefCell<u64>,
}

impl Service {
    pub fn start() -> Self {
        // What is durable is tested elsewhere; here it would only take time.
        let memory = Path::new("/dev/shm");
        let folder = match memory.exists() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let folder = folder.unwrap();
        fs::write(folder.path().join("image"), vec![0; 1 << 20]).unwrap();
        let channels = UnixListener::bind(folder.path().join("channels")).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_daruma"))
            .arg0("daruma-store")
            .arg(folder.path().join("store"))
            .arg("cycles")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(channels)))
            .spawn()
            .unwrap();
        let service = Self {
            folder,
            child,
            stream: RefCell::new(BufReader::new(ours)),
            next: RefCell::new(0),
        };
        service.hear(0).unwrap();
        service
    }

    /// The answer to request `id`.
    fn hear(&self, id: u64) -> Result<Value, String> {
        loop {
            let mut line = String::new();
            self.stream.borrow_mut().read_line(&mut line).unwrap();
            let mut reply: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(reply["id"], id);
            if let Some(reason) = reply["error"].as_str() {
                return Err(reason.to_owned());
            }
            if reply.get("ok").is_some() {
                return Ok(reply["ok"].take());
            }
        }
    }

    fn ask(&self, what: Value) -> Value {
        self.try_(what).unwrap()
    }

    fn try_(&self, mut what: Value) -> Result<Value, String> {
        let id = {
            let mut next = self.next.borrow_mut();
            *next += 1;
            *next
        };
        what["id"] = id.into();
        writeln!(self.stream.borrow_mut().get_mut(), "{what}").unwrap();
        self.hear(id)
    }

    /// Gets the guest's disk ready, and what it goes on from.
    pub fn open(&self, from: Option<u64>) -> Value {
        let begin = from.map_or_else(
            || json!("left"),
            |id| json!({ "from": { "snapshot": id, "fork_of": null } }),
        );
        let opened = self.ask(json!({
            "do": "open", "guest": GUEST, "begin": begin, "folder": self.path(GUEST),
            "disks": [{ "drive_id": "d", "image": self.path("image") }],
        }));
        // No snapshot is damaged.
        assert_eq!(opened["remarks"], json!([]));
        opened
    }

    pub fn close(&self) {
        self.ask(json!({ "do": "close", "guest": GUEST }));
    }

    /// Takes a snapshot.
    pub fn take(&self) -> u64 {
        let taken =
            self.ask(json!({ "do": "take", "guest": GUEST, "labels": {}, "thinning": null }));
        taken["id"].as_u64().unwrap()
    }

    fn stored(&self, command: &Value) -> Value {
        self.ask(json!({ "do": "stored", "command": command }))
    }

    /// Deletes a snapshot, and what only it has.
    pub fn delete(&self, id: u64) {
        let command = json!({ "store": "delete", "snapshot": id });
        // Who served the memory of a guest that has ended may have something to note still.
        let start = Instant::now();
        loop {
            match self.try_(json!({ "do": "stored", "command": command })) {
                Err(reason) if reason.contains("a reader") && start.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(1));
                }
                done => break drop(done.unwrap()),
            }
        }
        self.stored(&json!({ "store": "collect", "all": false }));
    }

    /// Nothing is damaged, and nothing counted wrongly.
    pub fn verify(&self) {
        let verified = self.stored(&json!({ "store": "verify" }));
        assert_eq!(verified["problems"], json!([]));
    }

    /// A live channel for the guest's next VMM.
    pub fn channel(&self) -> UnixStream {
        let mut stream = UnixStream::connect(self.path("channels")).unwrap();
        writeln!(stream, "{GUEST}").unwrap();
        stream
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(20).collect();
            println!("The VMMs said, the last one first:\n{}", last.join("\n"));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
