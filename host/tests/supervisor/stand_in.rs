//! A process that keeps the contract of a VMM without any guest. The kernel command line is its script.

#![expect(
    clippy::unwrap_used,
    reason = "a stand-in that cannot go on fails its test by ending"
)]

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write, stdin, stdout};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;
use std::{fs, thread};

pub fn main(arguments: &[OsString]) -> ExitCode {
    let value = |flag: &str| {
        let at = arguments.iter().position(|word| word == flag).unwrap();
        arguments[at + 1].to_str().unwrap().to_owned()
    };
    let config = fs::read_to_string(value("--config-file")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let script = config["boot-source"]["boot_args"].as_str().unwrap();
    assert!(value("--start-time-us").parse::<u64>().unwrap() > 0);
    let control: i32 = value("--control-fd").parse().unwrap();
    let control = control_socket(control);
    // A VMM has read its files when it says that it runs.
    let file = |key: &str| {
        let path = config["boot-source"][key].as_str()?;
        Some(String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned())
    };
    let files = ["kernel_image_path", "initrd_path"].map(file);
    (&control)
        .write_all(b"{\"event\":\"running\",\"us\":1}\n")
        .unwrap();
    let mut host = None;
    for word in script.split_whitespace() {
        if let Some((port, text)) = word.strip_prefix("call-").and_then(|it| it.split_once('=')) {
            let path = format!("{}_{port}", config["vsock"]["uds_path"].as_str().unwrap());
            let host = host.get_or_insert_with(|| UnixStream::connect(path).unwrap());
            writeln!(host, "{}", text.replace('\'', "\"")).unwrap();
            continue;
        }
        if word == "obey" {
            return obey(host.unwrap());
        }
        if word == "files" {
            say(&format!("{files:?}\r\n"));
            continue;
        }
        let (word, value) = word.split_once('=').unwrap_or((word, ""));
        if let Some(code) = step(word, value, &control) {
            return ExitCode::from(code);
        }
    }
    ExitCode::SUCCESS
}

/// An agent in a guest that heeds nobody else.
fn obey(host: UnixStream) -> ExitCode {
    let lines: Vec<_> = BufReader::new(host)
        .lines()
        .map_while(Result::ok)
        .take(2)
        .collect();
    assert_eq!(lines, ["{\"every_ms\":5000}", "{\"do\":\"poweroff\"}"]);
    ExitCode::SUCCESS
}

fn step(word: &str, value: &str, control: &UnixStream) -> Option<u8> {
    match word {
        "print" => say(&format!("{}\r\n", value.replace('_', " "))),
        "console" => {}
        "log" => eprintln!("{}", value.replace('_', " ")),
        "pid" => say(&format!("pid={};\r\n", std::process::id())),
        "descriptors" => {
            let mut open: Vec<i32> = fs::read_dir("/proc/self/fd")
                .unwrap()
                .map(|entry| {
                    entry
                        .unwrap()
                        .file_name()
                        .to_str()
                        .unwrap()
                        .parse()
                        .unwrap()
                })
                .collect();
            open.sort_unstable();
            // One is the folder that is being read, one the clone of the control socket.
            say(&format!("descriptors={};\r\n", open.len() - 2));
        }
        "flood" => (0..value.parse().unwrap()).for_each(|_| say(&"x".repeat(1024))),
        "boot-timer" => {
            let mut control = control;
            control
                .write_all(b"{\"event\":\"boot-timer\",\"us\":2}\n")
                .unwrap();
        }
        "echo" => {
            thread::spawn(|| {
                for byte in stdin().lock().bytes().map_while(Result::ok) {
                    say(&format!("<{byte:02x}>"));
                }
            });
        }
        "spin" => {
            let vcpu = thread::Builder::new().name("vcpu0".to_owned());
            vcpu.spawn(|| {
                loop {
                    std::hint::spin_loop();
                }
            })
            .unwrap();
        }
        "exit" => return Some(value.parse().unwrap()),
        "once" => {
            // The first run goes on to the next word, later ones wait.
            if fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(value)
                .is_err()
            {
                return wait(control, "serve");
            }
        }
        "serve" | "stubborn" | "deaf" => return wait(control, word),
        other => panic!("unknown word {other}"),
    }
    None
}

/// Serves until told otherwise: `serve` heeds the power button, `stubborn` only the stop, `deaf` nothing.
fn wait(control: &UnixStream, mode: &str) -> Option<u8> {
    let mut read = 0;
    for line in BufReader::new(control).lines().map_while(Result::ok) {
        let action: serde_json::Value = serde_json::from_str(&line).unwrap();
        match (action["action"].as_str().unwrap(), mode) {
            ("metrics", "serve" | "stubborn") => {
                let mut control = control;
                read += 4096;
                let counted = serde_json::json!({
                    "event": "metrics",
                    "metrics": { "block": { "read_bytes": read }, "uart": { "write_count": 42 } },
                });
                writeln!(control, "{counted}").unwrap();
            }
            (_, "deaf") | ("power-button", "stubborn") => {}
            _ => return Some(0),
        }
    }
    // A host that died does not end its guests.
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}

fn say(text: &str) {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes()).unwrap();
    out.flush().unwrap();
}

#[expect(unsafe_code, reason = "the socket comes as a number")]
fn control_socket(number: i32) -> UnixStream {
    use std::os::fd::BorrowedFd;
    // SAFETY: the contract says that this descriptor is open, and it stays so while the process lives.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    UnixStream::from(fd.try_clone_to_owned().unwrap())
}
