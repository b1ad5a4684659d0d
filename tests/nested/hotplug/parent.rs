//! The parent of one VMM, inside the nested machine: plugs devices into a running guest and out again, as the guest's
//! console and the VMM's events allow. Needs nothing but the standard library: the test compiles it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

const CYCLES: usize = 20;
const PATIENCE: Duration = Duration::from_secs(600);

/// What is heard, from the guest's console or the VMM's control socket.
struct Ears {
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
                Err(RecvTimeoutError::Timeout) => panic!("nobody says {words:?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("the end came before {words:?}"),
            }
        }
    }
}

fn listen(source: impl Read + Send + 'static, to: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            println!("parent: heard {line}");
            if to.send(line).is_err() {
                return;
            }
        }
    });
}

fn count(pid: u32, what: &str) -> usize {
    let folder = fs::read_dir(format!("/proc/{pid}/{what}"));
    folder.map_or(0, |entries| entries.count())
}

fn attach_drive(n: usize, path: &str) -> String {
    format!(
        r#"{{"action":"attach-drive","drive":{{"drive_id":"d{n}","is_root_device":false,"path_on_host":"{path}"}}}}"#
    )
}

fn main() {
    let (mut control, theirs) = UnixStream::pair().expect("a pair of sockets");
    let mut vmm = Command::new("/bin/sh")
        .args(["-c", "exec daruma-vmm --no-api --enable-pci --control-fd 3 --config-file /disk/vm.json 3<&0 </dev/null"])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the VMM");
    let (sender, heard) = mpsc::channel();
    listen(vmm.stdout.take().expect("its output"), sender.clone());
    listen(control.try_clone().expect("a clone"), sender);
    let mut ears = Ears {
        heard,
        before: Vec::new(),
    };
    let mut say = |line: &str| writeln!(control, "{line}").expect("the VMM listens");
    ears.expect(&["guest: ready"]);

    let image = "/run/plugged.raw";
    let mut counts = Vec::new();
    for n in 1..=CYCLES {
        // Another length each time, so that the guest cannot take the last one for this one.
        let file = File::create(image).expect("an image");
        file.set_len((8 << 20) + n as u64 * 4096).expect("its length");
        say(&attach_drive(n, image));
        say(&format!(
            r#"{{"action":"attach-net","interface":{{"iface_id":"e{n}","host_dev_name":"plug0","guest_mac":"02:00:00:00:00:{n:02x}"}}}}"#
        ));
        ears.expect(&["\"attached\"", &format!("\"d{n}\"")]);
        ears.expect(&["\"attached\"", &format!("\"e{n}\"")]);
        ears.expect(&[&format!("guest: drive {n} ok")]);
        ears.expect(&[&format!("guest: net {n} ok")]);
        say(&format!(r#"{{"action":"detach-drive","drive_id":"d{n}"}}"#));
        say(&format!(r#"{{"action":"detach-net","iface_id":"e{n}"}}"#));
        ears.expect(&["\"detached\"", &format!("\"d{n}\""), "\"requested\":true"]);
        ears.expect(&["\"detached\"", &format!("\"e{n}\""), "\"requested\":true"]);
        ears.expect(&[&format!("guest: gone {n}")]);
        let data = fs::read(image).expect("the image");
        let wrote = format!("cycle {n:08}\n");
        assert!(data.starts_with(wrote.as_bytes()), "cycle {n} is not on the disk");
        counts.push((count(vmm.id(), "fd"), count(vmm.id(), "task")));
    }
    let (first, last) = (counts[0], counts[CYCLES - 1]);
    println!("parent: cycles {CYCLES} descriptors and threads {first:?} {last:?}");
    assert!(last <= first, "something is left behind: {counts:?}");

    // The guest lets go of one by itself.
    say(&attach_drive(99, image));
    ears.expect(&["\"attached\"", "\"d99\""]);
    ears.expect(&["\"detached\"", "\"d99\"", "\"requested\":false"]);
    println!("parent: {}", ears.expect(&["guest: steady"]));
    ears.expect(&["\"exit\"", "poweroff"]);
    let status = vmm.wait().expect("its end");
    println!("parent: the VMM ended with {status}");
}
