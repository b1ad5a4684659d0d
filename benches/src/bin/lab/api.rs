//! Ours by its API: a client as small as it can be, so that what is measured is the VMM.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::system::monotonic_us;
use crate::vmm::{Guest, config};

/// Between two looks whether there is a socket: a fiftieth of what is promised.
const LOOK: Duration = Duration::from_micros(100);

fn socket(number: usize) -> String {
    format!("/run/api{number}")
}

/// The command for a VMM without a configuration.
pub fn command(number: usize) -> Result<Command> {
    let socket = socket(number);
    // A VMM that was killed has left it.
    if fs::exists(&socket)? {
        fs::remove_file(&socket)?;
    }
    let mut command = Command::new("/bin/daruma-vmm");
    command
        .args(["--id", &format!("lab{number}"), "--boot-timer"])
        .args(["--api-sock", &socket]);
    Ok(command)
}

/// Another client.
pub fn connect(number: usize) -> Result<UnixStream> {
    Ok(UnixStream::connect(socket(number))?)
}

/// Configures and starts `guest`; returns when the first answer came.
pub fn start(child: &mut Child, guest: &Guest, number: usize) -> Result<u64> {
    let mut client = loop {
        if let Ok(client) = UnixStream::connect(socket(number)) {
            break client;
        }
        if let Some(status) = child.try_wait()? {
            bail!("The VMM ended at once: {status}");
        }
        thread::sleep(LOOK);
    };
    ask(&mut client, "GET", "/", &Value::Null)?;
    let answered = monotonic_us();
    let config = config(guest, number);
    for section in ["boot-source", "machine-config"] {
        ask(&mut client, "PUT", &format!("/{section}"), &config[section])?;
    }
    let action = json!({ "action_type": "InstanceStart" });
    ask(&mut client, "PUT", "/actions", &action)?;
    Ok(answered)
}

/// Sends a request, which is to succeed.
pub fn ask(client: &mut UnixStream, method: &str, path: &str, body: &Value) -> Result<()> {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let length = body.len();
    let request = format!("{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}");
    client.write_all(request.as_bytes())?;
    // Every answer is one piece, and shorter than this.
    let mut answer = [0; 4096];
    let length = client.read(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer[..length]);
    if !answer.starts_with("HTTP/1.1 2") {
        bail!("{method} {path} is answered by {answer:?}");
    }
    Ok(())
}
