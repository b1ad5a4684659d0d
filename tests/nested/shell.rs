//! What a person types at the machine's console.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::Console;

/// The console's prefix key, Ctrl-].
const CHORD: char = '\u{1d}';
/// How often a guest is looked at, a second apart, before it is given up.
const LOOKS: u32 = 120;

/// Brings a guest to the screen by its number; 0 is the host.
pub fn view(console: &mut Console, guest: u32) -> Result<()> {
    console.send(&format!("{CHORD}{guest}"))
}

/// Brings the host's shell to the screen, and begins it if there is none.
pub fn host_shell(console: &mut Console) -> Result<()> {
    console.send(&format!("{CHORD}s"))?;
    console.expect("--- shell (")?;
    console.expect("# ").map(drop)
}

/// Brings the host to the screen, whose old lines are shown again and passed over.
pub fn host_from_now_on(console: &mut Console) -> Result<()> {
    static MARKS: AtomicU32 = AtomicU32::new(0);
    let mark = MARKS.fetch_add(1, Ordering::Relaxed);
    view(console, 0)?;
    console.send(&format!("mark{mark}\r"))?;
    console.expect(&format!("unknown command 'mark{mark}'"))?;
    Ok(())
}

/// Logs in to the guest on screen, and waits for its shell.
pub fn log_in(console: &mut Console, password: Option<&str>) -> Result<()> {
    console.send("\r")?;
    console.expect("login:")?;
    console.send("root\r")?;
    if let Some(password) = password {
        console.expect("assword:")?;
        console.send(&format!("{password}\r"))?;
    }
    console.expect("# ")?;
    Ok(())
}

/// Runs `commands` in the shell on screen, and returns what they print.
pub fn ask(console: &mut Console, commands: &str) -> Result<String> {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let line = commands.replace('\n', " ");
    // A view that is opened again shows what was said before: each answer has its number.
    let number = ASKED.fetch_add(1, Ordering::Relaxed);
    // The words that are waited for are not those that are typed.
    console.send(&format!(
        "echo be''gin{number}; {line}; echo e''nd{number}\r"
    ))?;
    console.expect(&format!("begin{number}\r\n"))?;
    console.expect(&format!("end{number}\r\n"))
}

/// Runs `commands` in the shell on screen, and returns the first line that they print.
pub fn ask_line(console: &mut Console, commands: &str) -> Result<String> {
    let text = ask(console, commands)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// What the host's program says in the host's shell.
pub fn daruma(console: &mut Console, words: &str) -> Result<Value> {
    let text = ask(console, &format!("daruma {words} --json 2>/dev/null"))?;
    let ends = text.find('{').zip(text.rfind('}'));
    let (from, to) = ends.with_context(|| format!("no JSON of {words:?}: {text:?}"))?;
    serde_json::from_str(&text[from..=to]).with_context(|| format!("{words:?} says {text:?}"))
}

/// Waits, at the host's screen, until the agent of a guest says that all is well.
pub fn until_well(console: &mut Console, guest: &str) -> Result<()> {
    for _ in 0..LOOKS {
        console.send(&format!("show {guest}\r"))?;
        console.expect(" health ")?;
        if console.expect("\r\n")?.contains(" well, load ") {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(1));
    }
    bail!("the agent of {guest} does not say that all is well")
}
