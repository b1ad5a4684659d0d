//! `daruma top`: the guests, live.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thiserror::Error;

use super::asking::Manner;
use super::attach::{AttachError, console_on};
use super::terminal::{Terminal, show};
use crate::errors::chain;
use crate::remote::{self, AskError, Command};
use crate::view::{self, ESCAPE_PATIENCE, Keys, Sample, Screen, View, Wish};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Error)]
enum TopError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Console(#[from] AttachError),
    #[error("cannot use the terminal")]
    Terminal(#[from] io::Error),
}

/// Carries out `daruma top`.
pub fn top(once: bool, manner: &Manner) -> ExitCode {
    let live = !once && !manner.json && io::stdin().is_terminal() && io::stdout().is_terminal();
    let done = manner
        .socket()
        .map_err(TopError::from)
        .and_then(|socket| match live {
            true => watch(&socket),
            false => look(&socket, manner.json),
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("daruma: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn sample(socket: &Path) -> Result<Value, AskError> {
    remote::ask(socket, &Command::Sample, |_, _, _| ())
}

/// Says once what the guests are at: what they do in a second takes one.
fn look(socket: &Path, json: bool) -> Result<(), TopError> {
    let mut view = View::default();
    view.update(Sample::read(&sample(socket)?));
    thread::sleep(INTERVAL);
    let mut newest = sample(socket)?;
    view.update(Sample::read(&newest));
    if json {
        add_rates(&mut newest, &view);
        println!("{newest}");
    } else {
        println!("{}", view.text(view::size_of(io::stdout()).0));
    }
    Ok(())
}

/// Adds to a sample what follows from it and the one before.
fn add_rates(sample: &mut Value, view: &View) {
    let guests = sample.get_mut("guests").and_then(Value::as_array_mut);
    for (value, (_, rates)) in guests.into_iter().flatten().zip(view.guests()) {
        let bytes = rates.bytes;
        value["rates"] = json!({
            "vcpu_percent": rates.cpu_percent,
            "disk_read_bytes_s": bytes.map(|bytes| bytes[0]),
            "disk_written_bytes_s": bytes.map(|bytes| bytes[1]),
            "net_received_bytes_s": bytes.map(|bytes| bytes[2]),
            "net_sent_bytes_s": bytes.map(|bytes| bytes[3]),
        });
    }
}

/// Shows what the guests are at until somebody has seen enough.
fn watch(socket: &Path) -> Result<(), TopError> {
    // Before the terminal is touched: whoever cannot be asked is told so in the usual way.
    let mut view = View::default();
    view.update(Sample::read(&sample(socket)?));
    let terminal = Terminal::take()?;
    let done = watch_on(&terminal, socket, view);
    let height = view::size_of(io::stdout()).1;
    // The last picture stays, and what follows comes below it.
    show(format!("\x1b[0m\x1b[{height};1H\r\n\x1b[?25h").as_bytes())?;
    done
}

fn watch_on(terminal: &Terminal, socket: &Path, mut view: View) -> Result<(), TopError> {
    let (mut keys, mut screen) = (Keys::default(), Screen::default());
    let mut due = Instant::now() + INTERVAL;
    loop {
        show(&screen.draw(view::size_of(io::stdout()), |buffer| view.draw(buffer)))?;
        let mut patience = due.saturating_duration_since(Instant::now());
        if keys.is_waiting() {
            patience = patience.min(ESCAPE_PATIENCE);
        }
        let news = terminal.wait(true, None, patience)?;
        let mut pressed = Vec::new();
        match news.keys {
            Some(bytes) if bytes.is_empty() => return Ok(()),
            Some(bytes) => pressed.extend(bytes.into_iter().filter_map(|byte| keys.take(byte))),
            None => pressed.extend(keys.pause()),
        }
        if news.end {
            return Ok(());
        }
        for key in pressed {
            match view.key(key) {
                Some(Wish::Leave) => return Ok(()),
                Some(Wish::Redraw) => screen.forget(),
                Some(Wish::Console(guest)) => {
                    console_on(terminal, socket, &guest)?;
                    screen.forget();
                }
                // Its guests are told what to do by other commands.
                Some(Wish::Command(_) | Wish::Lines(_)) | None => {}
            }
        }
        if due <= Instant::now() {
            view.update(Sample::read(&sample(socket)?));
            due = Instant::now() + INTERVAL;
        }
    }
}
