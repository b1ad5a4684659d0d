//! The parent of several VMMs, inside the nested machine: starts a guest, takes its snapshot, and has others go on from that.
//! With an argument it says what this machine's socket address is. Needs nothing but the standard library: the test
//! compiles it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::raw::{c_int, c_ulong};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

const FORKS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(600);
/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID`
const GET_LOCAL_CID: c_ulong = 0x7b9;

unsafe extern "C" {
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
}

/// What is heard of one VMM, from the guest's console or the control socket.
struct Ears {
    name: String,
    heard: Receiver<String>,
    before: Vec<String>,
}

impl Ears {
    /// Waits for a line that has all of `words`.
    fn expect(&mut self, words: &[&str]) -> String {
        let fits = |line: &String| words.iter().all(|word| line.contains(word));
        loop {
            if let Some(at) = self.before.iter().position(fits) {
                return self.before.remove(at);
            }
            match self.heard.recv_timeout(PATIENCE) {
                Ok(line) => {
                    if line.contains("failed") {
                        println!("parent: failed: {line}");
                    }
                    self.before.push(line);
                }
                Err(RecvTimeoutError::Timeout) => panic!("{}: nobody says {words:?}", self.name),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("{}: the end came before {words:?}", self.name)
                }
            }
        }
    }
}

fn listen(name: &str, source: impl Read + Send + 'static, to: Sender<String>) {
    let name = name.to_owned();
    thread::spawn(move || {
        for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            println!("parent: {name}: heard {line}");
            if to.send(line).is_err() {
                return;
            }
        }
    });
}

struct Vmm {
    child: Child,
    ears: Ears,
    _control: UnixStream,
}

fn start(name: &str, arguments: &str) -> Vmm {
    let (control, theirs) = UnixStream::pair().expect("a pair of sockets");
    let command =
        format!("exec daruma-vmm --id {name} --control-fd 3 {arguments} 3<&0 </dev/null");
    let mut child = Command::new("/bin/sh")
        .args(["-c", &command])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the VMM");
    let (sender, heard) = mpsc::channel();
    listen(name, child.stdout.take().expect("its output"), sender.clone());
    listen(name, control.try_clone().expect("a clone"), sender);
    let ears = Ears {
        name: name.into(),
        heard,
        before: Vec::new(),
    };
    Vmm {
        child,
        ears,
        _control: control,
    }
}

fn ask(method: &str, path: &str, body: &str) {
    let mut stream = UnixStream::connect("/run/api").expect("the API");
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .expect("a request");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 204", "{method} {path}");
}

/// Gives the tap `name`, which a VMM has made, the address `10.0.<net>.1`.
fn address(name: &str, net: usize) {
    let address = format!("10.0.{net}.1/24");
    let done = Command::new("ip").args(["addr", "add", &address, "dev", name]).status();
    assert!(done.expect("ip").success(), "{name}");
}

/// KiB that the process in the jail, whose keeper is `keeper`, has for itself.
fn private_kib(keeper: u32) -> u64 {
    let parent = format!("PPid:\t{keeper}");
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let inside = numbers.into_iter().find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == parent)
    });
    let inside = inside.expect("a process in the jail");
    let rollup = fs::read_to_string(format!("/proc/{inside}/smaps_rollup")).expect("its memory");
    let lines = rollup.lines();
    let fields = lines
        .filter(|line| line.starts_with("Private_Clean") || line.starts_with("Private_Dirty"));
    fields
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

fn cid() {
    let vsock = File::open("/dev/vsock").expect("/dev/vsock");
    let mut cid = 0_u32;
    // SAFETY: the call writes one number, for which there is room.
    let done = unsafe { ioctl(vsock.as_raw_fd(), GET_LOCAL_CID, &raw mut cid) };
    assert_eq!(done, 0);
    println!("{cid}");
}

const CONFIG: &str = r#"{"boot-source": {"kernel_image_path": "/disk/bzImage", "initrd_path": "/disk/guest.cpio",
    "boot_args": "console=ttyS0 quiet reboot=t panic=-1"},
  "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
  "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "first", "guest_mac": "02:00:00:00:00:63"}],
  "vsock": {"guest_cid": 99, "uds_path": "/run/first"}}"#;

fn main() {
    if std::env::args().nth(1).is_some() {
        return cid();
    }
    fs::write("/run/vm.json", CONFIG).expect("a configuration");
    let mut first = start(
        "first",
        "--enable-pci --api-sock /run/api --config-file /run/vm.json",
    );
    first.ears.expect(&["\"running\""]);
    address("first", 99);
    let line = first.ears.expect(&["guest: eth0 02:00:00:00:00:63 link 1 cid 99"]);
    let memory = line.split_once("memory ").expect("what is in memory").1.to_owned();
    first.ears.expect(&["02:00:00:00:00:63 reaches 10.0.99.1"]);
    ask("PATCH", "/vm", r#"{"state": "Paused"}"#);
    ask(
        "PUT",
        "/snapshot/create",
        r#"{"snapshot_path": "/run/state", "mem_file_path": "/run/memory"}"#,
    );
    first.child.kill().expect("its end");
    first.child.wait().expect("its end");

    let mut forks = Vec::new();
    for number in 1..=FORKS {
        let name = format!("fork{number}");
        let request = format!(
            r#"{{"snapshot_path": "/run/state", "resume_vm": true,
                "mem_backend": {{"backend_type": "File", "backend_path": "/run/memory"}},
                "network_replacements": [{{"iface_id": "eth0", "host_dev_name": "{name}",
                    "guest_mac": "02:00:00:00:00:{number:02x}"}}],
                "vsock_override": {{"guest_cid": {}, "uds_path": "/run/v{number}"}}}}"#,
            100 + number
        );
        let file = format!("/run/{name}.json");
        fs::write(&file, request).expect("a request");
        forks.push(start(&name, &format!("--jail --no-api --load-file {file}")));
    }
    for (number, fork) in (1..).zip(&mut forks) {
        let ears = &mut fork.ears;
        ears.expect(&["\"restored\""]);
        address(&ears.name, number);
        ears.expect(&["\"detached\"", "\"eth0\"", "\"requested\":true"]);
        ears.expect(&["\"attached\"", "\"eth0\"", "\"slot\":1"]);
        let mac = format!("02:00:00:00:00:{number:02x}");
        let cid = 100 + number;
        // The name of before, and what it had in its memory.
        ears.expect(&[&format!("guest: eth0 {mac} link 1 cid {cid} memory {memory}")]);
        ears.expect(&[&format!("{mac} reaches 10.0.{number}.1")]);
    }
    let mut private: Vec<_> = forks.iter().map(|fork| private_kib(fork.child.id())).collect();
    private.sort_unstable();
    println!("parent: KiB that each fork has for itself after all that: {private:?}");
    for mut fork in forks {
        fork.child.kill().expect("its end");
        fork.child.wait().expect("its end");
    }
    println!("parent: all forks are machines of their own");
}
