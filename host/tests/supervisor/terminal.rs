//! A supervised machine on pipes, driven as a user would.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// Only to end a test that hangs: nothing is measured by it.
const HANG: Duration = Duration::from_secs(120);

pub struct Machine {
    pub folder: TempDir,
    child: Child,
    keyboard: Option<ChildStdin>,
    screen: Screen,
}

/// What a program shows.
pub struct Screen {
    pieces: Receiver<Vec<u8>>,
    /// All that was shown.
    shown: String,
    /// Up to where a test has looked.
    looked: usize,
}

impl Screen {
    /// Of what can be read from `output`.
    pub fn new(mut output: impl Read + Send + 'static) -> Self {
        let (sender, pieces) = channel();
        thread::spawn(move || {
            let mut bytes = vec![0; 65536];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                if sender.send(bytes[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            pieces,
            shown: String::new(),
            looked: 0,
        }
    }

    /// Waits for a text after what was looked at before, and returns what lies in between.
    pub fn expect(&mut self, text: &str) -> Result<String> {
        // Something may be shown again and again.
        let end = Instant::now() + HANG;
        loop {
            ensure!(Instant::now() < end, "no {text:?} in:\n{}", self.shown);
            if let Some(at) = self.shown[self.looked..].find(text) {
                let between = self.shown[self.looked..self.looked + at].to_owned();
                self.looked += at + text.len();
                return Ok(between);
            }
            self.more()
                .with_context(|| format!("waiting for {text:?} in:\n{}", self.shown))?;
        }
    }

    fn more(&mut self) -> Result<()> {
        match self.pieces.recv_timeout(HANG) {
            Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
            Err(RecvTimeoutError::Timeout) => bail!("nothing more was shown"),
            Err(RecvTimeoutError::Disconnected) => bail!("the machine ended"),
        }
        Ok(())
    }
}

/// One `[[guest]]` section. `KERNEL` and the folder are filled in by [`Machine::start`].
pub fn guest(name: &str, script: &str, more: &str) -> String {
    format!(
        "[[guest]]\nname = \"{name}\"\nnetwork = \"none\"\nmemory = 64\nkernel = \"kernel\"\ncmdline = \"{script}\"\n\
         ready = {{ console = \"ready now\" }}\n{more}\n"
    )
}

impl Machine {
    pub fn start(toml: &str) -> Result<Self> {
        Self::start_with(toml, &[])
    }

    pub fn start_with(toml: &str, arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("kernel"), "")?;
        for disk in ["disk", "other"] {
            fs::write(folder.path().join(disk), disk)?;
        }
        fs::hard_link(folder.path().join("disk"), folder.path().join("alias"))?;
        let file = folder.path().join("machine.toml");
        fs::write(
            &file,
            toml.replace("FOLDER", &folder.path().display().to_string()),
        )?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg(super::SUPERVISE)
            .arg(&file)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let screen = Screen::new(child.stdout.take().context("no output")?);
        let keyboard = child.stdin.take();
        Ok(Self {
            folder,
            child,
            keyboard,
            screen,
        })
    }

    /// Waits for a text after what was looked at before, and returns what lies in between.
    pub fn expect(&mut self, text: &str) -> Result<String> {
        self.screen.expect(text)
    }

    /// Waits for several texts, in any order.
    pub fn expect_all(&mut self, texts: &[&str]) -> Result<()> {
        let start = self.screen.looked;
        for text in texts {
            self.screen.looked = start;
            self.expect(text)?;
        }
        Ok(())
    }

    /// Looks at everything again, from the start.
    pub fn look_back(&mut self) {
        self.screen.looked = 0;
    }

    pub fn type_in(&mut self, keys: &str) -> Result<()> {
        let keyboard = self.keyboard.as_mut().context("no keyboard")?;
        Ok(keyboard.write_all(keys.as_bytes())?)
    }

    /// Waits for the end; returns all that was shown and the exit code.
    pub fn end(mut self) -> Result<(String, Option<i32>)> {
        while self.screen.more().is_ok() {}
        let code = self.child.wait()?.code();
        Ok((std::mem::take(&mut self.screen.shown), code))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A test that failed leaves it running: end it in order, so that its VMMs end too.
        if let Ok(None) = self.child.try_wait() {
            let _ = Command::new("kill")
                .arg(self.child.id().to_string())
                .status();
            let _ = self.child.wait();
        }
    }
}
