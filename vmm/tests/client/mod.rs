//! The VMM with its API, and a client that sends what it is told, right or wrong.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use api::testing::Contract;
use serde_json::Value;
use tempfile::TempDir;

/// A test that fails does not hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// One VMM, which ends with its test.
pub struct Vmm {
    pub folder: TempDir,
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    pub stdout: ChildStdout,
    client: UnixStream,
    /// What is published: no answer may be anything else.
    contract: Contract,
}

impl Vmm {
    /// Starts the VMM with `arguments` beside those that say where its API is.
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = crate::trace::vmm();
        command.args(arguments);
        Self::spawn(command)
    }

    /// Starts the VMM by `command`, which lacks where its API is.
    pub fn spawn(mut command: Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = command
            .args(["--id", "test", "--api-sock"])
            .arg(folder.path().join("api"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let client = connect(&mut child, &folder.path().join("api"));
        Self {
            folder,
            child,
            stdin,
            stdout,
            client,
            contract: Contract::new(),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("api")
    }

    /// Another client.
    pub fn connect(&mut self) -> UnixStream {
        let socket = self.socket();
        connect(&mut self.child, &socket)
    }

    /// Sends a request; gives the status and the body.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> (u16, Value) {
        send(&mut self.client, method, path, body);
        let (status, answer) = receive(&mut self.client);
        let checked = self.contract.check_answer(method, path, status, &answer);
        checked.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        (status, answer)
    }

    pub fn get(&mut self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, "");
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    /// Asks for something that is done.
    pub fn done(&mut self, method: &str, path: &str, body: &str) {
        let (status, answer) = self.ask(method, path, body);
        assert_eq!(status, 204, "{method} {path} {body}: {answer}");
    }

    /// Asks for something that is refused; gives the fault message.
    pub fn refused(&mut self, method: &str, path: &str, body: &str) -> String {
        let (status, answer) = self.ask(method, path, body);
        assert_eq!(status, 400, "{method} {path} {body}: {answer}");
        let fault = answer["fault_message"].as_str();
        fault.expect("a fault has a message").to_owned()
    }

    /// Configures a guest of two megabytes with `kernel`.
    pub fn configure(&mut self, kernel: &Path) {
        let source = format!(
            r#"{{"kernel_image_path": "{}", "boot_args": "cmdline"}}"#,
            kernel.display()
        );
        self.done("PUT", "/boot-source", &source);
        let machine = r#"{"vcpu_count": 1, "mem_size_mib": 2}"#;
        self.done("PUT", "/machine-config", machine);
    }

    pub fn action(&mut self, action: &str) {
        let body = format!(r#"{{"action_type": "{action}"}}"#);
        self.done("PUT", "/actions", &body);
    }

    pub fn state(&mut self) -> String {
        self.get("/")["state"].as_str().unwrap().to_owned()
    }

    pub fn type_in(&mut self, text: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(text).unwrap();
    }

    /// The next `len` bytes that the guest prints.
    pub fn printed(&mut self, len: usize) -> Vec<u8> {
        let mut printed = vec![0; len];
        self.stdout.read_exact(&mut printed).unwrap();
        printed
    }

    /// Waits until the guest has printed `text` next.
    pub fn expect(&mut self, text: &[u8]) {
        let printed = self.printed(text.len());
        assert_eq!(
            String::from_utf8_lossy(&printed),
            String::from_utf8_lossy(text)
        );
    }

    /// Waits for the end of the process.
    pub fn end(mut self) -> Option<i32> {
        drop(self.stdin.take());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(child: &mut Child, path: &Path) -> UnixStream {
    loop {
        if let Ok(stream) = UnixStream::connect(path) {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            return stream;
        }
        assert!(child.try_wait().unwrap().is_none(), "the VMM has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn send(client: &mut UnixStream, method: &str, path: &str, body: &str) {
    let length = body.len();
    write!(
        client,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
}

pub fn receive(client: &mut UnixStream) -> (u16, Value) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    client.read_exact(&mut body).unwrap();
    let body = match &body[..] {
        [] => Value::Null,
        body => serde_json::from_slice(body).unwrap(),
    };
    (head["HTTP/1.1 ".len()..][..3].parse().unwrap(), body)
}
