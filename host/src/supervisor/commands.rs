//! The commands of the host's prompt.

use super::forks::Forks;
use super::inquiry::Asker;
use super::{Outcome, Supervisor};
use crate::config::nearest;
use crate::remote::Act;
use crate::snapshots::StoreCommand;

const COMMANDS: [&str; 22] = [
    "help",
    "list",
    "show",
    "view",
    "top",
    "start",
    "stop",
    "restart",
    "kill",
    "factory-reset",
    "log",
    "metrics",
    "network",
    "snapshot",
    "snapshots",
    "restore",
    "fork",
    "store",
    "shell",
    "poweroff",
    "reboot",
    "quit",
];

const HELP: &str = "\
list             the guests and their states
show GUEST       one guest: its health, its falls, what it would go back to
view             all guests, live, on the whole terminal; q leads back
view GUEST       show a guest; Ctrl-] 0 leads back
start GUEST      start a guest that does not run
stop GUEST       press its power button; stop it when its time is up
restart GUEST    stop, then start
kill GUEST       end its VMM at once
factory-reset GUEST yes  begin anew from its images; what its disks were is kept a while
log [GUEST]      falls and stands; newest lines of a guest's VMM's log
metrics [GUEST]  what its devices, or those of all guests, have counted
snapshot GUEST   take a snapshot while it runs
snapshots [GUEST]  the snapshots there are
restore GUEST [ID]  go on from a snapshot, the newest without an id
fork GUEST [N]   start N guests that go on from where it is, beside it
store            what the store has, and how much
network          the host's networks
shell            a shell on the host
poweroff         shut every guest down, then switch off
reboot           shut every guest down, then start anew
Ctrl-] ?         keys";

impl Supervisor {
    pub(super) fn command(&mut self, head: usize, line: &str) {
        let mut words = line.split_whitespace();
        let (Some(verb), argument, second) = (words.next(), words.next(), words.next()) else {
            return;
        };
        let answer = match (verb, argument) {
            ("help" | "?", _) => Ok(HELP.to_owned()),
            ("list", _) => Ok(self.list()),
            ("show", Some(name)) => self.show(name),
            ("log", guest) => self.log_text(guest),
            ("factory-reset", Some(name)) => match (self.find(name), second) {
                (Ok(index), Some("yes")) => {
                    self.act(index, Act::FactoryReset).map(|()| String::new())
                }
                (Ok(_), _) => Err(format!(
                    "{name} loses all that it has written; say: factory-reset {name} yes"
                )),
                (Err(reason), _) => Err(reason),
            },
            ("metrics", guest) => self
                .ask_metrics(Asker::Head(head), guest)
                .map(|()| String::new()),
            ("snapshots", guest) => self.ask_store(
                head,
                StoreCommand::List {
                    guest: guest.map(str::to_owned),
                },
            ),
            ("store", _) => self.ask_store(head, StoreCommand::Status),
            ("snapshot", Some(name)) => self
                .find(name)
                .and_then(|index| self.take_snapshot(Asker::Head(head), index, None))
                .map(|()| String::new()),
            ("restore", Some(name)) => self.restore_command(head, name, second),
            ("fork", Some(name)) => self.fork_command(head, name, second),
            ("network", _) if self.network_state.is_empty() => Ok("no network".to_owned()),
            ("network", _) => Ok(self.network_state.clone()),
            ("poweroff" | "quit", _) => {
                self.go_down(Outcome::PowerOff);
                Ok(String::new())
            }
            ("reboot", _) if self.settings.is_init => {
                self.go_down(Outcome::Reboot);
                Ok(String::new())
            }
            ("reboot", _) => {
                Err("this is an ordinary Linux; 'poweroff' stops the guests".to_owned())
            }
            ("shell", _) => self.open_shell().map(|()| {
                let channel = self.console.shell_channel();
                self.console.show(head, channel);
                String::new()
            }),
            ("view" | "top", None) => {
                self.show_table(head);
                Ok(String::new())
            }
            (
                "show" | "start" | "stop" | "restart" | "kill" | "factory-reset" | "snapshot"
                | "restore" | "fork",
                None,
            ) => Err(format!("which guest? {verb} GUEST")),
            ("view" | "start" | "stop" | "restart" | "kill", Some(name)) => self
                .find(name)
                .and_then(|index| self.guest_command(head, verb, index)),
            _ => Err(match nearest(verb, COMMANDS) {
                Some(meant) => format!("unknown command '{verb}'; did you mean '{meant}'?"),
                None => format!("unknown command '{verb}'; type 'help'"),
            }),
        };
        let (Ok(text) | Err(text)) = answer;
        self.console.reply(head, &text);
    }

    fn ask_store(&mut self, head: usize, command: StoreCommand) -> Result<String, String> {
        self.store_command(Asker::Head(head), command)
            .map(|()| String::new())
    }

    fn restore_command(
        &mut self,
        head: usize,
        name: &str,
        snapshot: Option<&str>,
    ) -> Result<String, String> {
        let index = self.find(name)?;
        let id = |text: &str| {
            text.parse::<u64>()
                .map_err(|_| format!("'{text}' is no snapshot; 'snapshots' lists them"))
        };
        let snapshot = snapshot.map(id).transpose()?;
        self.restore(Asker::Head(head), index, snapshot)
            .map(|()| String::new())
    }

    fn fork_command(
        &mut self,
        head: usize,
        name: &str,
        count: Option<&str>,
    ) -> Result<String, String> {
        let number = |text: &str| {
            let number = text.parse::<u32>();
            number.map_err(|_| format!("'{text}' is no number of forks"))
        };
        let forks = Forks {
            asker: Asker::Head(head),
            guest: self.find(name)?,
            count: count.map_or(Ok(1), number)?,
        };
        self.fork(forks, None).map(|()| String::new())
    }

    /// A guest by its name or its number.
    pub(super) fn find(&self, name: &str) -> Result<usize, String> {
        let named = self
            .guests
            .iter()
            .position(|guest| guest.name == name || guest.channel.to_string() == name);
        named.ok_or_else(|| {
            let names = self.guests.iter().map(|guest| guest.name.as_str());
            match nearest(name, names) {
                Some(meant) => format!("no guest '{name}'; did you mean '{meant}'?"),
                None => format!("no guest '{name}'; 'list' shows them"),
            }
        })
    }

    fn guest_command(&mut self, head: usize, verb: &str, index: usize) -> Result<String, String> {
        let act = match verb {
            "view" => {
                let channel = self.guests[index].channel;
                self.console.show(head, channel);
                return Ok(String::new());
            }
            "stop" => Act::Stop,
            "restart" => Act::Restart,
            "kill" => Act::Kill,
            _ => Act::Start,
        };
        self.act(index, act)?;
        Ok(String::new())
    }
}
