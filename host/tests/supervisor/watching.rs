//! What other processes see of a machine, and have of its guests' consoles.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use anyhow::{Result, ensure};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};
use serde_json::Value;

use super::terminal::{Machine, Screen, guest};

const PROGRAM: &str = env!("CARGO_BIN_EXE_daruma");

fn daruma(machine: &Machine, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    let socket = format!("/run/daruma-{}/control.sock", machine.pid());
    command.args(arguments).args(["--socket", &socket]);
    command
}

/// `daruma` on a terminal of its own.
struct Session {
    child: Child,
    keyboard: File,
    screen: Screen,
    terminal: OwnedFd,
    before: Termios,
}

impl Session {
    fn start(machine: &Machine, arguments: &[&str]) -> Result<Self> {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(&size, None)?;
        let before = tcgetattr(&pair.slave)?;
        let end = || Ok::<_, std::io::Error>(Stdio::from(pair.slave.try_clone()?));
        let child = daruma(machine, arguments)
            .stdin(end()?)
            .stdout(end()?)
            .stderr(end()?)
            .spawn()?;
        let keyboard = File::from(pair.master);
        Ok(Self {
            child,
            screen: Screen::new(keyboard.try_clone()?),
            keyboard,
            terminal: pair.slave,
            before,
        })
    }

    fn type_in(&mut self, keys: &[u8]) -> Result<()> {
        Ok(self.keyboard.write_all(keys)?)
    }

    /// Waits for its end, after which the terminal is as it was.
    fn end(mut self) -> Result<Option<i32>> {
        let code = self.child.wait()?.code();
        ensure!(
            tcgetattr(&self.terminal)? == self.before,
            "it is not as it was"
        );
        Ok(code)
    }
}

pub fn console() -> Result<()> {
    let mut machine = Machine::start(&guest(
        "a",
        "print=hello_from_a echo print=ready_now serve",
        "",
    ))?;
    machine.expect("daruma: a: ready")?;
    let mut session = Session::start(&machine, &["guest", "console", "a"])?;
    session.screen.expect("--- a (Ctrl-] 0 to leave) ---")?;
    session.screen.expect("hello from a\r\nready now\r\n")?;
    session.type_in(b"x\x03\r\x1d\x1d")?;
    session.screen.expect("<78><03><0d><1d>")?;
    ensure!(
        tcgetattr(&session.terminal)? != session.before,
        "keys are not raw"
    );
    // It is the console of the host as well.
    machine.type_in("\x1d1y")?;
    machine.expect("<1d><79>")?;
    session.screen.expect("<79>")?;
    session.type_in(b"\x1d?\x1d0")?;
    session.screen.expect("Ctrl-] and then: 0 leaves")?;
    ensure!(session.end()? == Some(0));

    // By its number; ended by a signal, and by the end of the machine.
    let mut session = Session::start(&machine, &["guest", "console", "1"])?;
    session.screen.expect("<79>")?;
    let pid = session.child.id().to_string();
    ensure!(Command::new("kill").arg(&pid).status()?.success());
    ensure!(session.end()? == Some(0));
    let output = daruma(&machine, &["guest", "console", "b"]).output()?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(error.contains("no guest 'b'"), "{error}");
    let mut session = Session::start(&machine, &["guest", "console", "a"])?;
    session.screen.expect("<79>")?;
    machine.type_in("\x1d0poweroff\r")?;
    session.screen.expect("the machine went down")?;
    ensure!(session.end()? == Some(1));
    ensure!(machine.end()?.1 == Some(0));
    Ok(())
}

pub fn top() -> Result<()> {
    let toml = guest("busy", "spin print=ready_now serve", "")
        + &guest("deaf", "print=ready_now deaf", "stop-timeout = 0")
        + &guest("asleep", "serve", "autostart = false");
    let mut machine = Machine::start(&toml)?;
    machine.expect_all(&["daruma: busy: ready", "daruma: deaf: ready"])?;
    let sample = || -> Result<Value> {
        let output = daruma(&machine, &["top", "--json"]).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let mut seen = sample()?;
    // A machine with much to do may not have run it in that second.
    while seen["guests"][0]["rates"]["vcpu_percent"] == 0 {
        seen = sample()?;
    }
    let guests = &seen["guests"];
    let rates = &guests[0]["rates"];
    ensure!(
        guests[0]["name"] == "busy" && guests[0]["state"] == "ready",
        "{seen}"
    );
    ensure!(rates["vcpu_percent"].as_u64() > Some(0), "{seen}");
    ensure!(rates["disk_read_bytes_s"].as_u64() > Some(0), "{seen}");
    ensure!(guests[0]["resident_kib"].as_u64() > Some(0), "{seen}");
    // Its VMM does not say what it has counted, and holds up nobody.
    ensure!(guests[1]["rates"]["disk_read_bytes_s"].is_null(), "{seen}");
    ensure!(guests[1]["resident_kib"].as_u64() > Some(0), "{seen}");
    ensure!(
        guests[2]["state"] == "stopped" && guests[2]["run"].is_null(),
        "{seen}"
    );

    let output = daruma(&machine, &["guest", "top", "--once"]).output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.starts_with("daruma: 2 of 3 guests ready"), "{text}");
    ensure!(
        text.lines().count() == 8 && !text.contains('\x1b'),
        "{text}"
    );

    let mut session = Session::start(&machine, &["top"])?;
    session.screen.expect("daruma: 2 of 3 guests ready")?;
    session.screen.expect(">  1 busy")?;
    session.type_in(b"\x1b[B\r")?;
    session.screen.expect("--- deaf (Ctrl-] 0 to leave) ---")?;
    session.screen.expect("ready now")?;
    session.type_in(b"\x1d0")?;
    session.screen.expect(">  2 deaf")?;
    session.type_in(b"q")?;
    ensure!(session.end()? == Some(0));
    machine.type_in("kill deaf\r")?;
    machine.expect("daruma: deaf: stopped")?;
    Ok(())
}

pub fn whole_screen() -> Result<()> {
    let toml = guest("a", "spin print=ready_now echo serve", "")
        + &guest("b", "print=ready_now serve", "");
    let mut machine = Machine::start(&toml)?;
    machine.expect_all(&["daruma: a: ready", "daruma: b: ready"])?;
    machine.type_in("view\r")?;
    machine.expect("daruma: 2 of 2 guests ready")?;
    machine.expect(">  1 a ")?;
    // What it uses comes with the next pictures.
    machine.expect("%")?;
    machine.type_in("s")?;
    machine.expect("keeps no snapshots: its file has no [store]")?;
    // Ctrl-L: all of it anew, not only what has changed.
    machine.type_in("\x1b[Br\x0c")?;
    machine.expect("restart b? y/n")?;
    machine.type_in("y\x1b[A\r")?;
    machine.expect("--- a (Ctrl-] 0 for the host)")?;
    machine.type_in("x")?;
    machine.expect("<78>")?;
    machine.type_in("\x1dv")?;
    machine.expect(">  1 a ")?;
    machine.type_in("\x1b")?;
    machine.expect("--- host")?;
    // What was said meanwhile.
    machine.expect("daruma: b: stopped: powered off")?;
    machine.expect("daruma: b: ready")?;
    machine.type_in("\x1dv")?;
    machine.expect("daruma: 2 of 2 guests ready")?;
    machine.type_in("qpoweroff\r")?;
    machine.expect("daruma: a: stopped: powered off")?;
    ensure!(machine.end()?.1 == Some(0));
    Ok(())
}
