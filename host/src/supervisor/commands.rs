//! The commands of the host's prompt.

use std::fmt::Write;

use super::inquiry::Asker;
use super::{Outcome, Phase, State, Supervisor};
use crate::clock;
use crate::config::nearest;

const COMMANDS: [&str; 14] = [
    "help", "list", "view", "start", "stop", "restart", "kill", "log", "metrics", "network",
    "shell", "poweroff", "reboot", "quit",
];

const HELP: &str = "\
list             the guests and their states
view GUEST       show a guest; Ctrl-] 0 leads back
start GUEST      start a guest that does not run
stop GUEST       press its power button; stop it when its time is up
restart GUEST    stop, then start
kill GUEST       end its VMM at once
log GUEST        newest lines of its VMM's log
metrics [GUEST]  what its devices, or those of all guests, have counted
network          the host's networks
shell            a shell on the host
poweroff         shut every guest down, then switch off
reboot           shut every guest down, then start anew
Ctrl-] ?         keys";

impl Supervisor {
    pub(super) fn command(&mut self, head: usize, line: &str) {
        let mut words = line.split_whitespace();
        let (Some(verb), argument) = (words.next(), words.next()) else {
            return;
        };
        let answer = match (verb, argument) {
            ("help" | "?", _) => Ok(HELP.to_owned()),
            ("list", _) => Ok(self.list()),
            ("metrics", guest) => self
                .ask_metrics(Asker::Head(head), guest)
                .map(|()| String::new()),
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
            ("view" | "start" | "stop" | "restart" | "kill" | "log", None) => {
                Err(format!("which guest? {verb} GUEST"))
            }
            ("view" | "start" | "stop" | "restart" | "kill" | "log", Some(name)) => self
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
        let now = clock::now();
        let guest = &mut self.guests[index];
        let name = guest.name.clone();
        let is_up = guest.vm().is_some();
        match verb {
            "view" => {
                let channel = guest.channel;
                self.console.show(head, channel);
            }
            "log" => {
                let lines: Vec<_> = guest.log.iter().map(String::as_str).collect();
                return Ok(if lines.is_empty() {
                    "(empty)".to_owned()
                } else {
                    lines.join("\n")
                });
            }
            "kill" => match guest.vm() {
                Some(vm) => vm.kill(now),
                None => self.stop(index, now),
            },
            "stop" => {
                guest.start_when_down = false;
                self.stop(index, now);
            }
            "restart" if is_up => {
                guest.start_when_down = true;
                self.stop(index, now);
            }
            _ if self.going_down.is_some() => return Err("the machine goes down".to_owned()),
            _ if is_up => return Err(format!("guest '{name}' runs")),
            _ if guest.config.is_none() => {
                return Err(format!("guest '{name}' cannot run: {}", guest.detail));
            }
            // "start", and "restart" of a guest that is down.
            _ => {
                if !matches!(guest.phase, Phase::Preparing) {
                    guest.life.forgive();
                    self.start(&[index], "");
                }
            }
        }
        Ok(String::new())
    }

    fn list(&self) -> String {
        let width = self
            .guests
            .iter()
            .map(|guest| guest.name.len())
            .max()
            .unwrap_or(0)
            .max(5);
        let mut table = format!(
            "no {:width$} state    vcpus memory  address         ",
            "guest"
        );
        for guest in &self.guests {
            let (vcpus, memory) = guest
                .config
                .as_ref()
                .map_or((0, 0), |config| (config.vcpus, config.memory_mib));
            let address = guest.addresses.iter().map(|(_, address)| address);
            let address = address.min().map(ToString::to_string);
            let address = address.unwrap_or_default();
            // Writing to a string cannot fail.
            let _ = write!(
                table,
                "\n{:2} {:width$} {:8} {vcpus:5} {memory:4} M  {address:15} {}",
                guest.channel, guest.name, guest.state, guest.detail
            );
        }
        if self.guests.iter().all(|guest| guest.state == State::Ready) && !self.guests.is_empty() {
            table.push_str("\nall guests are ready");
        }
        table
    }
}
