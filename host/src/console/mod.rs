//! The host's console: several terminals, each showing the host or one guest, switched by a key chord.
//!
//! A *channel* is an endless output: the host's own lines (channel 0), each guest's serial line (channels 1, 2 …, the
//! numbers of the chord), and the recovery shell. A *head* is a terminal. What a head does not show is kept, bounded,
//! and shown when it comes back.

mod editor;
mod head;
mod ring;
mod table;

use std::time::Duration;

use serde_json::Value;

use crate::clock;
use editor::Key;
pub use head::Head;
use ring::Ring;
use table::{Left, Table};

/// Channel of the host's own lines.
pub const HOST: usize = 0;
/// Ctrl-], as in telnet and virsh.
pub const PREFIX: u8 = 0x1d;
/// Says that a key was lost.
pub const BELL: &[u8] = b"\x07";
/// Of output already seen, this much is shown again on return: enough for a prompt and some lines above it.
const TAIL: usize = 1024;

/// Of output, this much is shown to one who watches from elsewhere.
const BACKLOG: usize = 16 * 1024;

const HELP: &str = "\
Keys: Ctrl-] and then
  0 or h    the host        1 to 9    guest of that number
  n         the next one    Ctrl-]    send a Ctrl-] to the guest
  s         a shell on the host       v         all guests, live
  ?         this help
In the host's view, type 'help' for its commands.";

/// What a user asked for that is not the console's own business.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Keys for a guest or the shell.
    Input {
        /// Where they were typed.
        head: usize,
        /// Whom they are for.
        channel: usize,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A line at the host's prompt.
    Command {
        /// Where it was typed, for the answer.
        head: usize,
        /// The line.
        line: String,
    },
    /// Ctrl-C at the host, with no line begun.
    Interrupt {
        /// Where it was typed.
        head: usize,
    },
}

#[derive(Debug)]
struct Channel {
    name: String,
    ring: Ring,
}

/// All heads and channels.
#[derive(Debug)]
pub struct Console {
    heads: Vec<Head>,
    channels: Vec<Channel>,
    shell: Option<usize>,
}

impl Console {
    /// A console that shows the host on each head.
    #[must_use]
    pub fn new(heads: Vec<Head>) -> Self {
        let host = Channel {
            name: "host".to_owned(),
            ring: Ring::default(),
        };
        Self {
            heads,
            channels: vec![host],
            shell: None,
        }
    }

    /// Adds a guest's channel and returns its number.
    pub fn add_channel(&mut self, name: &str) -> usize {
        self.channels.push(Channel {
            name: name.to_owned(),
            ring: Ring::default(),
        });
        self.channels.len() - 1
    }

    /// The recovery shell's channel, made at the first call.
    pub fn shell_channel(&mut self) -> usize {
        if let Some(channel) = self.shell {
            return channel;
        }
        let channel = self.add_channel("shell");
        self.shell = Some(channel);
        channel
    }

    /// The heads, to wait for their input and output.
    #[must_use]
    pub fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// One head.
    pub fn head_mut(&mut self, head: usize) -> Option<&mut Head> {
        self.heads.get_mut(head)
    }

    /// The last lines of a channel, for one who begins to watch it.
    #[must_use]
    pub fn backlog(&self, channel: usize) -> Vec<u8> {
        let source = self.channels.get(channel);
        source.map_or_else(Vec::new, |source| source.ring.last(BACKLOG))
    }

    /// One line of the host, to be seen in its view.
    pub fn say(&mut self, text: &str) {
        for line in text.lines() {
            self.output(HOST, format!("{line}\r\n").as_bytes());
            self.tables().for_each(|table| table.say(line));
        }
    }

    fn tables(&mut self) -> impl Iterator<Item = &mut Table> {
        self.heads.iter_mut().filter_map(|head| head.table.as_mut())
    }

    /// Shows all guests on a head, from the next [`Self::update_tables`] on.
    pub fn show_table(&mut self, head: usize) {
        if let Some(head) = self.heads.get_mut(head) {
            head.view = HOST;
            head.table = Some(Table::new());
        }
    }

    /// Whether a head shows all guests.
    #[must_use]
    pub fn has_tables(&self) -> bool {
        self.heads.iter().any(|head| head.table.is_some())
    }

    /// What the guests are at now.
    pub fn update_tables(&mut self, sample: &Value) {
        (self.heads.iter_mut()).for_each(|head| head.update_table(sample));
    }

    /// Heads that show all guests show the host's lines again.
    pub fn leave_tables(&mut self) {
        for head in 0..self.heads.len() {
            if self.heads[head].table.is_some() {
                self.show(head, HOST);
            }
        }
    }

    /// When an escape that was pressed at a table becomes the key of that name.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        let tables = self.heads.iter().filter_map(|head| head.table.as_ref());
        tables.filter_map(Table::escape_until).min()
    }

    /// The time has come.
    pub fn timers(&mut self, now: Duration) -> Vec<Request> {
        let mut requests = Vec::new();
        for head in 0..self.heads.len() {
            let table = self.heads[head].table.as_ref();
            let until = table.and_then(Table::escape_until);
            if until.is_some_and(|until| until <= now) {
                requests.extend(self.table_key(head, None, now));
            }
        }
        requests
    }

    fn table_key(&mut self, index: usize, key: Option<u8>, now: Duration) -> Option<Request> {
        match self.heads.get_mut(index)?.table_key(index, key, now) {
            Left::Nothing => None,
            Left::Request(request) => Some(request),
            Left::Table => {
                self.show(index, HOST);
                None
            }
            Left::For(line) => {
                self.show(index, HOST);
                Some(Request::Command { head: index, line })
            }
        }
    }

    /// An answer to one head only.
    pub fn reply(&mut self, head: usize, text: &str) {
        let Some(head) = self.heads.get_mut(head) else {
            return;
        };
        for line in text.lines() {
            match &mut head.table {
                Some(table) => table.say(line),
                None => head.queue(format!("{line}\r\n").as_bytes()),
            }
        }
        head.draw_table();
    }

    /// Tells a head that its key was lost.
    pub fn bell(&mut self, head: usize) {
        if let Some(head) = self.heads.get_mut(head) {
            head.queue(BELL);
        }
    }

    /// Output of a channel: kept, and shown by the heads that are on it.
    pub fn output(&mut self, channel: usize, bytes: &[u8]) {
        let Some(source) = self.channels.get_mut(channel) else {
            return;
        };
        source.ring.push(bytes);
        let end = source.ring.end();
        let shows = |head: &&mut Head| head.view == channel && head.table.is_none();
        for head in self.heads.iter_mut().filter(shows) {
            // A line that is being typed moves below the host's.
            let typed = (channel == HOST).then(|| head.editor.visible()).flatten();
            if typed.is_some() {
                head.queue(b"\r\x1b[K");
            }
            head.queue(bytes);
            if let Some(typed) = typed {
                head.queue(typed.as_bytes());
            }
            set_seen(head, channel, end);
        }
    }

    /// Shows a channel on a head: what it missed, or the last lines.
    pub fn show(&mut self, head: usize, channel: usize) {
        let (Some(head), Some(source)) = (self.heads.get_mut(head), self.channels.get(channel))
        else {
            return;
        };
        let way_out = if channel == HOST {
            "Ctrl-] ? for help"
        } else {
            "Ctrl-] 0 for the host"
        };
        head.leave_table();
        // The guest that is left may have set colours or hidden the cursor.
        head.queue(b"\x1b[0m\x1b[?25h\r\n");
        head.queue(format!("--- {} ({way_out}) ---\r\n", source.name).as_bytes());
        let seen = head.seen.get(channel).copied().unwrap_or(0);
        let kept = source.ring.since(source.ring.resume(seen, TAIL));
        head.queue(&kept);
        head.view = channel;
        set_seen(head, channel, source.ring.end());
        if channel == HOST
            && let Some(typed) = head.editor.visible()
        {
            head.queue(typed.as_bytes());
        }
    }

    /// Shows a channel on all heads.
    pub fn show_everywhere(&mut self, channel: usize) {
        for head in 0..self.heads.len() {
            self.show(head, channel);
        }
    }

    /// Number of the channel of this name.
    #[must_use]
    pub fn channel(&self, name: &str) -> Option<usize> {
        self.channels
            .iter()
            .position(|channel| channel.name == name)
    }

    /// Takes keys in. Chords and line editing end here; the rest is for the caller.
    pub fn keys(&mut self, index: usize, keys: &[u8]) -> Vec<Request> {
        let mut requests = Vec::new();
        let now = clock::now();
        for key in keys {
            let Some(head) = self.heads.get_mut(index) else {
                break;
            };
            let view = head.view;
            if std::mem::take(&mut head.chord) {
                if *key == PREFIX && view != HOST {
                    push_input(&mut requests, index, view, PREFIX);
                } else if let b's' | b'v' = key {
                    let line = if *key == b's' { "shell" } else { "view" };
                    let line = line.to_owned();
                    requests.push(Request::Command { head: index, line });
                } else {
                    self.chord(index, *key);
                }
            } else if *key == PREFIX {
                head.chord = true;
            } else if head.table.is_some() {
                requests.extend(self.table_key(index, Some(*key), now));
            } else if view != HOST {
                push_input(&mut requests, index, view, *key);
            } else {
                match head.editor.key(*key) {
                    Key::Nothing => {}
                    Key::Echo(bytes) => head.queue(&bytes),
                    Key::Line(line) => {
                        head.queue(b"\r\n");
                        requests.push(Request::Command { head: index, line });
                    }
                    Key::Interrupt(begun) => {
                        head.queue(b"^C\r\n");
                        if !begun {
                            requests.push(Request::Interrupt { head: index });
                        }
                    }
                }
            }
        }
        requests
    }

    fn chord(&mut self, index: usize, key: u8) {
        let view = self.heads.get(index).map_or(HOST, |head| head.view);
        let target = match key {
            b'h' => Some(HOST),
            b'0'..=b'9' => Some(usize::from(key - b'0')),
            b'n' => Some((view + 1) % self.channels.len()),
            b'?' => {
                if self
                    .heads
                    .get(index)
                    .is_some_and(|head| head.table.is_some())
                {
                    self.show(index, HOST);
                }
                let help = format!("\n{HELP}\n{}", self.guests());
                return self.reply(index, &help);
            }
            _ => None,
        };
        match target.filter(|channel| *channel < self.channels.len()) {
            Some(channel) => self.show(index, channel),
            None => self.bell(index),
        }
    }

    /// `0 host, 1 pocket, …`: the numbers of the chord.
    #[must_use]
    pub fn guests(&self) -> String {
        let names: Vec<_> = self
            .channels
            .iter()
            .enumerate()
            .map(|(number, channel)| format!("{number} {}", channel.name))
            .collect();
        names.join(", ")
    }
}

fn set_seen(head: &mut Head, channel: usize, end: u64) {
    if head.seen.len() <= channel {
        head.seen.resize(channel + 1, 0);
    }
    head.seen[channel] = end;
}

/// Joins keys for one guest into one request.
fn push_input(requests: &mut Vec<Request>, head: usize, channel: usize, key: u8) {
    if let Some(Request::Input {
        channel: last,
        bytes,
        ..
    }) = requests.last_mut()
        && *last == channel
    {
        bytes.push(key);
        return;
    }
    requests.push(Request::Input {
        head,
        channel,
        bytes: vec![key],
    });
}

#[cfg(test)]
mod tests;
