//! The guests on a whole screen, live: on the host's console, and by `daruma top` on any terminal.
//!
//! ```text
//!   supervisor ─ sample ─► Sample ─► View (what is selected, rates) ─► table ─► Screen ─ escape codes ─► terminal
//!   terminal ─ bytes ─► Keys ─► View ─► Wish
//! ```
//!
//! The terminal need not be more than a VT100 on a serial line: nothing is asked of it.

mod keys;
mod sample;
mod screen;
mod table;

use ratatui_core::buffer::Buffer;

pub use keys::{ESCAPE_PATIENCE, Key, Keys};
pub use sample::{Guest, Point, Rates, Sample, clean};
pub use screen::{DEFAULT_SIZE, LEAVE, Screen, size_of};

/// Ctrl-L.
const REDRAW: u8 = 0x0c;

/// What somebody at the view wants that is not the view's own business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// No more of it.
    Leave,
    /// All of it anew: something has spoiled the terminal.
    Redraw,
    /// The console of this guest.
    Console(String),
    /// This command of the host's prompt, whose answer is a line.
    Command(String),
    /// This one, whose answer is many.
    Lines(String),
}

/// What is asked before it is done.
#[derive(Debug)]
struct Question {
    text: String,
    command: String,
}

/// What is shown.
#[derive(Debug, Default)]
pub struct View {
    sample: Sample,
    /// Of the guests in the sample.
    rates: Vec<Rates>,
    selected: usize,
    /// Guests can be told what to do from here.
    acts: bool,
    question: Option<Question>,
    /// The last line that was said.
    news: String,
}

impl View {
    /// One from which guests are told what to do, by commands of the host's prompt.
    #[must_use]
    pub fn that_acts() -> Self {
        Self {
            acts: true,
            ..Self::default()
        }
    }

    /// Has a line seen.
    pub fn say(&mut self, line: &str) {
        self.news = clean(line);
    }

    /// Takes in what the guests are at now.
    pub fn update(&mut self, sample: Sample) {
        let before = std::mem::replace(&mut self.sample, sample);
        let rates = std::mem::take(&mut self.rates);
        let now = &self.sample;
        let rate = |guest: &Guest| {
            let place = before.guests.iter().position(|it| it.name == guest.name);
            let known = place.and_then(|at| Some((before.guests.get(at)?, rates.get(at)?)));
            known.map_or_else(Rates::default, |(old, rates)| {
                rates.next((before.ms, old), (now.ms, guest))
            })
        };
        self.rates = now.guests.iter().map(rate).collect();
        self.selected = self.selected.min(now.guests.len().saturating_sub(1));
    }

    /// Whether nothing is known of the guests yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sample == Sample::default()
    }

    /// What is known of the guests, with the rates between the last two samples.
    pub fn guests(&self) -> impl Iterator<Item = (&Guest, &Rates)> {
        self.sample.guests.iter().zip(&self.rates)
    }

    /// Takes a key.
    pub fn key(&mut self, key: Key) -> Option<Wish> {
        if key == Key::Byte(REDRAW) {
            return Some(Wish::Redraw);
        }
        if let Some(question) = self.question.take() {
            self.news.clear();
            // Anything else is a no.
            let yes = matches!(key, Key::Byte(b'y' | b'Y'));
            return yes.then_some(Wish::Command(question.command));
        }
        match key {
            Key::Up | Key::Byte(b'k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Byte(b'j') => {
                let last = self.sample.guests.len().saturating_sub(1);
                self.selected = (self.selected + 1).min(last);
            }
            Key::Escape | Key::Byte(b'q' | 0x03) => return Some(Wish::Leave),
            Key::Byte(b'\r' | b'\n' | b'c') => {
                return self.chosen().map(|guest| Wish::Console(guest.name.clone()));
            }
            Key::Byte(byte) if self.acts => return self.act(byte),
            Key::Byte(_) => {}
        }
        None
    }

    fn act(&mut self, key: u8) -> Option<Wish> {
        let guest = self.chosen()?;
        let name = &guest.name;
        match key {
            b's' => return Some(Wish::Command(format!("snapshot {name}"))),
            b'l' => return Some(Wish::Lines(format!("log {name}"))),
            b'r' => {
                self.question = Some(Question {
                    text: format!("restart {name}?"),
                    command: format!("restart {name}"),
                });
            }
            b'b' => {
                let (to, id) = match guest.good {
                    Some((id, age)) => (format!("snapshot {id}, {age} s old"), format!(" {id}")),
                    None => (
                        "its newest snapshot, not known to be good".to_owned(),
                        String::new(),
                    ),
                };
                self.question = Some(Question {
                    text: format!("roll {name} back to {to}? What it has done since is gone."),
                    command: format!("restore {name}{id}"),
                });
            }
            _ => {}
        }
        None
    }

    /// The line of news: a question comes before all else.
    fn news(&self) -> String {
        match &self.question {
            Some(question) => format!("{} y/n", question.text),
            None => self.news.clone(),
        }
    }

    fn chosen(&self) -> Option<&Guest> {
        self.sample.guests.get(self.selected)
    }

    /// Draws it.
    pub fn draw(&self, buffer: &mut Buffer) {
        table::draw(self, buffer);
    }

    /// The same without colours, for a terminal that scrolls, a file or a pipe: all guests.
    #[must_use]
    pub fn text(&self, width: u16) -> String {
        table::text(self, width)
    }
}

#[cfg(test)]
mod tests;
