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

/// What somebody at the view wants that is not the view's own business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// No more of it.
    Leave,
    /// All of it anew: something has spoiled the terminal.
    Redraw,
    /// The console of this guest.
    Console(String),
}

/// What is shown.
#[derive(Debug, Default)]
pub struct View {
    sample: Sample,
    /// Of the guests in the sample.
    rates: Vec<Rates>,
    selected: usize,
}

impl View {
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

    /// What is known of the guests, with the rates between the last two samples.
    pub fn guests(&self) -> impl Iterator<Item = (&Guest, &Rates)> {
        self.sample.guests.iter().zip(&self.rates)
    }

    /// Takes a key.
    pub fn key(&mut self, key: Key) -> Option<Wish> {
        match key {
            Key::Up | Key::Byte(b'k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Byte(b'j') => {
                let last = self.sample.guests.len().saturating_sub(1);
                self.selected = (self.selected + 1).min(last);
            }
            Key::Escape | Key::Byte(b'q' | 0x03) => return Some(Wish::Leave),
            Key::Byte(0x0c) => return Some(Wish::Redraw),
            Key::Byte(b'\r' | b'\n' | b'c') => {
                return self.chosen().map(|guest| Wish::Console(guest.name.clone()));
            }
            Key::Byte(_) => {}
        }
        None
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
