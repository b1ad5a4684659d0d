//! The guests on the whole of a terminal of the host, in place of the host's lines.

use std::time::Duration;

use serde_json::Value;

use super::{Head, Request};
use crate::view::{ESCAPE_PATIENCE, Keys, LEAVE, Sample, Screen, View, Wish};

/// What a terminal shows that shows the guests.
#[derive(Debug)]
pub(super) struct Table {
    view: View,
    screen: Screen,
    keys: Keys,
    /// Until when an escape may be the begin of something.
    escape_until: Option<Duration>,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            view: View::that_acts(),
            screen: Screen::default(),
            keys: Keys::default(),
            escape_until: None,
        }
    }

    pub(super) fn escape_until(&self) -> Option<Duration> {
        self.escape_until
    }

    /// A line for whoever looks.
    pub(super) fn say(&mut self, line: &str) {
        self.view.say(line);
    }
}

impl Head {
    /// Takes the terminal back from the table, if that has it.
    pub(super) fn leave_table(&mut self) {
        if self.table.take().is_some() {
            self.queue(LEAVE);
        }
    }

    /// What the guests are at now.
    pub(super) fn update_table(&mut self, sample: &Value) {
        if let Some(table) = &mut self.table {
            table.view.update(Sample::read(sample));
            self.draw_table();
        }
    }

    /// Draws it, but not for a terminal that is still busy with the last picture: it gets the next.
    pub(super) fn draw_table(&mut self) {
        let size = self.size();
        let is_busy = self.blocked_output().is_some();
        if let Some(table) = self
            .table
            .as_mut()
            .filter(|it| !is_busy && !it.view.is_empty())
        {
            let view = &table.view;
            let bytes = table.screen.draw(size, |buffer| view.draw(buffer));
            self.queue(&bytes);
        }
    }

    /// Takes a key for the table, or `None`: there was no other after an escape. Returns what is left to be done.
    pub(super) fn table_key(&mut self, index: usize, key: Option<u8>, now: Duration) -> Left {
        let Some(table) = &mut self.table else {
            return Left::Nothing;
        };
        let key = match key {
            Some(key) => table.keys.take(key),
            None => table.keys.pause(),
        };
        let waits = table.keys.is_waiting();
        table.escape_until = waits.then_some(now + ESCAPE_PATIENCE);
        let Some(key) = key else {
            return Left::Nothing;
        };
        let command = |line| Left::Request(Request::Command { head: index, line });
        match table.view.key(key) {
            Some(Wish::Leave) => return Left::Table,
            Some(Wish::Console(guest)) => return command(format!("view {guest}")),
            Some(Wish::Lines(line)) => return Left::For(line),
            Some(Wish::Command(line)) => return command(line),
            Some(Wish::Redraw) => table.screen.forget(),
            None => {}
        }
        self.draw_table();
        Left::Nothing
    }
}

/// What a key leaves to be done.
#[derive(Debug)]
pub(super) enum Left {
    Nothing,
    /// This.
    Request(Request),
    /// Show the host's lines.
    Table,
    /// The same, and this command there.
    For(String),
}
