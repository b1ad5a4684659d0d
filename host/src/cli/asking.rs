//! `daruma guest`, `log`, `snapshot` and `store`: asked of the supervisor over its socket.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{attach, top};
use crate::errors::chain;
use crate::remote::{self, Act, AskError, Command};
use crate::snapshots::StoreCommand;
use crate::snapshots::text::{amount, as_text};

/// `daruma snapshot ...`
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Take a snapshot of a guest while it runs: memory, disks and devices, of one instant
    Take {
        /// The guest, by its name or number
        guest: String,
        /// Words about it, for the list
        #[arg(long)]
        note: Option<String>,
    },
    /// List snapshots
    List {
        /// Of this guest only
        guest: Option<String>,
    },
    /// Have a guest go on from a snapshot; what it has done since is gone
    Restore {
        /// The guest, by its name or number
        guest: String,
        /// The snapshot [default: the guest's newest]
        snapshot: Option<u64>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Delete a snapshot; its bytes are freed by `daruma store gc`
    Delete {
        /// The snapshot
        snapshot: u64,
        /// Do not ask, not even before the last snapshot of a guest
        #[arg(long)]
        yes: bool,
    },
    /// Show where two snapshots differ
    Diff {
        /// The older one
        old: u64,
        /// The newer one
        new: u64,
    },
    /// Read all snapshots and check every hash
    Verify,
    /// Write a snapshot to a file
    Export {
        /// The snapshot
        snapshot: u64,
        /// A file that does not exist
        file: PathBuf,
    },
    /// Take a snapshot in from such a file
    Import {
        /// The file
        file: PathBuf,
    },
}

/// `daruma guest ...`
#[derive(Debug, Subcommand)]
pub enum Guest {
    /// List guests: states, falls, and the age of what each would go back to
    List,
    /// Show one guest: its health, its falls, its rules
    Show {
        /// The guest, by its name or number
        guest: String,
    },
    /// Start a guest that does not run
    Start {
        /// The guest, by its name or number
        guest: String,
    },
    /// Press a guest's power button; it is ended when its time is up
    Stop {
        /// The guest, by its name or number
        guest: String,
    },
    /// End a guest's VMM at once
    Kill {
        /// The guest, by its name or number
        guest: String,
    },
    /// Make this terminal the guest's console; Ctrl-] 0 leaves it
    Console {
        /// The guest, by its name or number
        guest: String,
    },
    /// Watch the guests, as `daruma top` does
    Top {
        /// Say it once, as text
        #[arg(long)]
        once: bool,
    },
    /// Stop a guest, then start it
    Restart {
        /// The guest, by its name or number
        guest: String,
    },
    /// Have a guest begin anew from its images; what its disks were is kept for a while as a snapshot
    FactoryReset {
        /// The guest, by its name or number
        guest: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Start guests that go on from where another one is, beside it: each with its own disks, network cards and name
    Fork {
        /// The guest, by its name or number
        guest: String,
        /// How many
        #[arg(long, default_value_t = 1)]
        count: u32,
        /// From this snapshot [default: one that is taken now, or the newest of a guest that does not run]
        #[arg(long)]
        snapshot: Option<u64>,
    },
}

/// `daruma store ...`
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Store {
    /// Say what there is, and how much
    Status,
    /// Free what no snapshot needs
    Gc {
        /// Every bit of it, whatever that costs
        #[arg(long)]
        all: bool,
    },
    /// Read everything and check every hash
    Verify,
}

/// How answers are shown, and whom to ask.
#[derive(Debug, clap::Args)]
pub struct Manner {
    /// Answer as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// The supervisor's socket [default: that of the one machine that runs here]
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
}

impl Manner {
    /// Whom to ask.
    pub fn socket(&self) -> Result<PathBuf, AskError> {
        self.socket.clone().map_or_else(remote::find, Ok)
    }
}

/// Carries out `daruma snapshot`.
pub fn snapshot(what: Snapshot, manner: &Manner) -> ExitCode {
    run(manner, |socket| {
        Ok(Some(match what {
            Snapshot::Take { guest, note } => Command::Snapshot { guest, note },
            Snapshot::List { guest } => stored(StoreCommand::List { guest }),
            Snapshot::Restore {
                guest,
                snapshot,
                yes,
            } => {
                let question = format!("{guest} loses what it has done since. Restore it?");
                if !yes && !confirmed(&question) {
                    return Ok(None);
                }
                Command::Restore { guest, snapshot }
            }
            Snapshot::Delete { snapshot, yes } => {
                if !yes && !may_delete(socket, snapshot)? {
                    return Ok(None);
                }
                stored(StoreCommand::Delete { snapshot })
            }
            Snapshot::Diff { old, new } => stored(StoreCommand::Diff { old, new }),
            Snapshot::Verify => stored(StoreCommand::Verify),
            Snapshot::Export { snapshot, file } => stored(StoreCommand::Export {
                snapshot,
                path: absolute(file),
            }),
            Snapshot::Import { file } => stored(StoreCommand::Import {
                path: absolute(file),
            }),
        }))
    })
}

/// Carries out `daruma guest`.
pub fn guest(what: Guest, manner: &Manner) -> ExitCode {
    let what = match what {
        Guest::Console { guest } => return attach::console(&guest, manner),
        Guest::Top { once } => return top::top(once, manner),
        what => what,
    };
    run(manner, |_| {
        let act = |guest, act| Command::Act { guest, act };
        Ok(Some(match what {
            // Not asked, but talked to.
            Guest::Console { .. } | Guest::Top { .. } => return Ok(None),
            Guest::List => Command::Guests { guest: None },
            Guest::Show { guest } => Command::Guests { guest: Some(guest) },
            Guest::Start { guest } => act(guest, Act::Start),
            Guest::Stop { guest } => act(guest, Act::Stop),
            Guest::Kill { guest } => act(guest, Act::Kill),
            Guest::Restart { guest } => act(guest, Act::Restart),
            Guest::FactoryReset { guest, yes } => {
                let question = format!("{guest} loses all that it has written. Begin anew?");
                if !yes && !confirmed(&question) {
                    return Ok(None);
                }
                act(guest, Act::FactoryReset)
            }
            Guest::Fork {
                guest,
                count,
                snapshot,
            } => Command::Fork {
                guest,
                snapshot,
                count,
            },
        }))
    })
}

/// Carries out `daruma log`.
pub fn log(guest: Option<String>, manner: &Manner) -> ExitCode {
    run(manner, |_| Ok(Some(Command::Log { guest })))
}

/// Carries out `daruma store`.
pub fn store(what: Store, manner: &Manner) -> ExitCode {
    run(manner, |_| {
        Ok(Some(stored(match what {
            Store::Status => StoreCommand::Status,
            Store::Gc { all } => StoreCommand::Collect { all },
            Store::Verify => StoreCommand::Verify,
        })))
    })
}

fn stored(what: StoreCommand) -> Command {
    Command::Store { what }
}

fn run(
    manner: &Manner,
    command: impl FnOnce(&Path) -> Result<Option<Command>, AskError>,
) -> ExitCode {
    let done = manner.socket().and_then(|socket| {
        let command = command(&socket)?;
        command.map(|command| ask(&socket, &command)).transpose()
    });
    match done {
        Ok(None) => {
            eprintln!("daruma: nothing done");
            ExitCode::FAILURE
        }
        Ok(Some(value)) => {
            if manner.json {
                println!("{value}");
            } else {
                println!("{}", as_text(&value));
            }
            let problems = value.get("problems").and_then(Value::as_array);
            if problems.is_some_and(|problems| !problems.is_empty()) {
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("daruma: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Asks the supervisor, with progress on a terminal.
fn ask(socket: &Path, command: &Command) -> Result<Value, AskError> {
    let terminal = io::stderr().is_terminal();
    let mut shown = false;
    let answer = remote::ask(socket, command, |what, done, total| {
        if terminal {
            shown = true;
            let bar = bar(done, total);
            eprint!("\r\x1b[K{bar}{}", amount(what, done, total));
        }
    });
    if shown {
        eprint!("\r\x1b[K");
    }
    answer
}

fn bar(done: u64, total: u64) -> String {
    const WIDTH: usize = 24;
    if total == 0 {
        return String::new();
    }
    let filled = u128::from(done.min(total)) * WIDTH as u128 / u128::from(total);
    let filled = usize::try_from(filled).unwrap_or(WIDTH);
    format!("[{}{}] ", "#".repeat(filled), "-".repeat(WIDTH - filled))
}

/// Whether a snapshot may go: nobody is asked about one of several.
fn may_delete(socket: &Path, snapshot: u64) -> Result<bool, AskError> {
    let list = stored(StoreCommand::List { guest: None });
    let all = remote::ask(socket, &list, |_, _, _| ())?;
    let all = all.get("snapshots").and_then(Value::as_array).cloned();
    let all = all.unwrap_or_default();
    let guest = all
        .iter()
        .find(|one| one.get("id") == Some(&json!(snapshot)));
    let Some(guest) = guest.and_then(|one| one.get("guest")) else {
        // The store says so.
        return Ok(true);
    };
    let of_guest = all.iter().filter(|one| one.get("guest") == Some(guest));
    if of_guest.count() > 1 {
        return Ok(true);
    }
    let guest = guest.as_str().unwrap_or_default();
    Ok(confirmed(&format!(
        "Snapshot {snapshot} is the last one of {guest}. Delete it?"
    )))
}

/// Asks on the terminal. Where there is none, the answer is no.
fn confirmed(question: &str) -> bool {
    if !io::stdin().is_terminal() {
        eprintln!("daruma: {question} Say so by --yes");
        return false;
    }
    eprint!("{question} [y/N] ");
    // A question that cannot be seen is not answered either.
    let _ = io::stderr().flush();
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).is_ok() && answer.trim().eq_ignore_ascii_case("y")
}

/// The supervisor works in another folder.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_full_as_what_is_done() {
        assert_eq!(bar(0, 0), "");
        assert_eq!(bar(1, 4), "[######------------------] ");
        assert_eq!(bar(9, 4), format!("[{}] ", "#".repeat(24)));
    }
}
